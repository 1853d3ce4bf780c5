"""Evaluation on real games: whose score, which history, which recording, and how it repeats."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from wmfast.config import EnvConfig
from wmfast.envs import AtariEnvs
from wmfast.evaluate import Evaluation, RecordedStep, play, random_policy
from wmfast.games import RANDOM_HUMAN, human_normalised
from wmfast.types import TOKENS_PER_FRAME

CONFIG = EnvConfig(noop_max=30)
FIRE, RIGHT, LEFT = 1, 2, 3


def pixels(frames: Tensor) -> Tensor:
    """A stand-in tokenizer: the red of every fourth pixel, so that a token frame tells a frame."""
    return frames[:, ::4, ::4, 0].reshape(len(frames), -1).long()


def fire_and_wait(history: Tensor) -> Tensor:
    """Serve in Breakout and never move: five lives, a few points, a few hundred steps."""
    return torch.full((len(history),), FIRE)


def breakout(**changes: object) -> Evaluation:
    options: dict[str, object] = {"encode": pixels, "seed": 3, "episodes": 3} | changes
    policy = options.pop("policy", fire_and_wait)
    return play(policy, "breakout", CONFIG, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole() -> Evaluation:
    """Three full games."""
    return breakout()


def first_games(action: int, seed: int, episodes: int) -> list[tuple[float, int]]:
    """The same by AtariEnvs alone: our own sums up to the first end of each game."""
    with AtariEnvs("breakout", CONFIG, num_envs=episodes, seed=seed, stream="eval") as envs:
        envs.reset()
        games: dict[int, tuple[float, int]] = {}
        while len(games) < episodes:
            for env, score, length in envs.step(np.full(episodes, action)).finished:
                games.setdefault(env, (score, length))
    return [games[env] for env in range(episodes)]


def test_each_game_counts_its_first_full_game_only(whole: Evaluation) -> None:
    result = whole
    expected = first_games(FIRE, seed=3, episodes=3)
    assert list(zip(result.scores, result.lengths, strict=True)) == expected
    assert len(set(result.lengths)) > 1  # some ended while others went on
    assert result.cut_off == (False,) * 3
    assert result.mean == pytest.approx(np.mean(result.scores))
    assert result.std == pytest.approx(np.std(result.scores, ddof=1))


def test_ended_games_are_not_encoded_and_do_not_change_the_others() -> None:
    sizes: list[int] = []

    def counting(frames: Tensor) -> Tensor:
        sizes.append(len(frames))
        return pixels(frames)

    result = breakout(encode=counting)
    alive = [sum(length > step for length in result.lengths) for step in range(len(sizes))]
    assert sizes == alive
    assert len(sizes) == max(result.lengths)


def test_the_policy_sees_four_frames_and_the_first_stands_for_those_before() -> None:
    seen: list[Tensor] = []
    encoded: list[Tensor] = []

    def encode(frames: Tensor) -> Tensor:
        encoded.append(pixels(frames))
        return encoded[-1]

    def policy(history: Tensor) -> Tensor:
        assert history.shape == (2, 4, TOKENS_PER_FRAME)
        assert history.dtype == torch.int64
        seen.append(history.clone())
        return torch.tensor([RIGHT, LEFT])

    breakout(policy=policy, encode=encode, episodes=2, max_steps=12)
    assert not torch.equal(encoded[0], encoded[-1])
    for step, history in enumerate(seen):
        for age in range(4):
            assert torch.equal(history[:, 3 - age], encoded[max(step - age, 0)])


def test_greedy_play_repeats_and_another_seed_is_another_game(whole: Evaluation) -> None:
    assert breakout() == whole
    assert breakout(seed=4).lengths != whole.lengths


def test_epsilon_explores_repeatably() -> None:
    def policy(history: Tensor) -> Tensor:
        return torch.full((len(history),), LEFT)

    def actions(epsilon: float, seed: int = 0) -> np.ndarray:
        steps: list[RecordedStep] = []
        breakout(policy=policy, seed=seed, epsilon=epsilon, max_steps=70, on_step=steps.append)
        return np.stack([step.actions for step in steps])

    assert (actions(0.0) == LEFT).all()
    some = actions(0.2)
    # A fifth of the actions is random and a quarter of those is LEFT anyway: 15 % differ.
    assert 0.07 < (some != LEFT).mean() < 0.24
    assert np.array_equal(some, actions(0.2))
    assert not np.array_equal(some, actions(0.2, seed=1))


def test_cut_off_games_say_so_and_keep_their_score(whole: Evaluation) -> None:
    cap = sorted(whole.lengths)[1]
    cut = breakout(max_steps=cap)
    assert cut.protocol.max_steps == cap
    for env in range(3):
        assert cut.cut_off[env] == (whole.lengths[env] > cap)
        assert cut.lengths[env] == min(whole.lengths[env], cap)
    by_frames = play(
        fire_and_wait,
        "breakout",
        replace(CONFIG, max_frames=200),
        encode=pixels,
        seed=3,
        episodes=2,
    )
    assert by_frames.lengths == (50, 50)
    assert by_frames.cut_off == (True, True)


def test_scores_are_unclipped() -> None:
    policy = random_policy(9, seed=0)
    result = play(policy, "ms_pacman", encode=pixels, seed=0, episodes=2, max_steps=250)
    assert all(score >= 60 and score % 10 == 0 for score in result.scores)


def test_a_recording_is_a_step_stream_of_all_games(whole: Evaluation) -> None:
    """Next-step convention: the row after an end is the last frame, its action ignored."""
    steps: list[RecordedStep] = []
    result = breakout(on_step=steps.append)
    assert len(steps) == max(result.lengths)
    rewards = np.stack([step.rewards for step in steps])
    for env, length in enumerate(result.lengths):
        assert rewards[:length, env].sum() == result.scores[env]
        assert steps[length - 1].terminated[env]
        assert sum(step.life_lost[env] for step in steps[:length]) == 4
        if length < len(steps):
            assert steps[length].is_reset[env]
            # The stale picture at an end: the last frame looks like the one before it.
            assert np.array_equal(steps[length].tokens[env], steps[length - 1].tokens[env])
    assert steps[0].tokens.dtype == np.uint16
    assert steps[0].tokens.shape == (3, TOKENS_PER_FRAME)
    assert whole == result  # recording changes no score

    few: list[RecordedStep] = []
    assert breakout(on_step=few.append, record_steps=7) == result
    assert len(few) == 7
    for a, b in zip(few, steps[:7], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_frames_of_the_first_game_are_kept_for_a_film() -> None:
    result = breakout(record_frames=20, max_steps=30)
    assert result.frames is not None
    assert result.frames.shape == (20, 84, 64, 3)
    with AtariEnvs("breakout", CONFIG, num_envs=3, seed=3, stream="eval") as envs:
        assert np.array_equal(result.frames[0], envs.reset()[0])
    assert breakout(max_steps=5).frames is None


def test_the_protocol_travels_with_the_result() -> None:
    result = breakout(epsilon=0.01, max_steps=20)
    row = json.loads(json.dumps(result.as_json()))
    protocol = row["protocol"]
    assert protocol["game"] == "breakout"
    assert (protocol["sticky"], protocol["noop_max"], protocol["epsilon"]) == (0.0, 30, 0.01)
    assert (protocol["seed"], protocol["episodes"], protocol["max_steps"]) == (3, 3, 20)
    assert len(set(protocol["env_seeds"])) == 3
    assert row["mean"] == result.mean
    assert row["human_normalised"] == pytest.approx((result.mean - 1.7) / (30.5 - 1.7))


def test_human_normalised_scores() -> None:
    assert len(RANDOM_HUMAN) == 26
    for game, (random, human) in RANDOM_HUMAN.items():
        assert human_normalised(game, random) == 0
        assert human_normalised(game, human) == pytest.approx(1)
    assert human_normalised("ALE/MsPacman-v5", 6951.6) == pytest.approx(1)
    assert human_normalised("tetris", 5.0) is None
    with pytest.raises(ValueError, match="unknown game"):
        human_normalised("pacperson", 1.0)


def test_random_play_has_a_stream_of_its_own() -> None:
    history = torch.zeros(500, 4, 1, dtype=torch.int64)
    first = random_policy(6, seed=0)(history)
    assert first.unique().tolist() == list(range(6))
    assert torch.equal(first, random_policy(6, seed=0)(history))
    assert not torch.equal(first, random_policy(6, seed=1)(history))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 1.5}, r"epsilon must be within 0\.\.1, not 1\.5"),
        ({"episodes": 0}, "episodes must be at least 1, not 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"policy": lambda history: torch.full((len(history),), 4)}, r"within 0\.\.3"),
    ],
)
def test_bad_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        breakout(**changes)
