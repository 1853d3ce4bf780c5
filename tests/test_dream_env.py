"""Dreams as environments: against Gymnasium's own vector env, its checker, and by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from scripted_dreams import REWARDS, A, GreyTokenizer, ScriptedModel, UnsureModel, V

import wmfast.dream_games
from wmfast import DreamVectorEnv, TokenReplay
from wmfast.checkpoint import load_checkpoint
from wmfast.dream_games import starts_of
from wmfast.dream_single import DreamEnv
from wmfast.errors import UserError

START = np.stack([np.full((4, 336), value) for value in (0,)])
HORIZON, LAST = 5, 9


def scripted(num_envs: int = 3, **options: Any) -> DreamVectorEnv:
    defaults: dict[str, Any] = {
        "num_actions": A, "temperature": 0.0, "horizon": HORIZON, "observations": "tokens",
    }  # fmt: skip
    return DreamVectorEnv(
        ScriptedModel(LAST), GreyTokenizer(), START, num_envs, **(defaults | options)
    )


class CountingGame(gymnasium.Env):
    """What `ScriptedModel` should dream, written out."""

    def __init__(self, observations: str) -> None:
        self.rgb = observations == "rgb"
        single = scripted(1, observations=observations)
        self.observation_space = single.single_observation_space
        self.action_space = single.single_action_space

    def observation(self) -> np.ndarray:
        if self.rgb:
            return np.full((84, 64, 3), self.seen[-1] * 8, np.uint8)
        return np.repeat(np.array(self.seen[-4:], np.uint16)[:, None], 336, axis=1)

    def reset(self, *, seed=None, options=None):
        self.seen, self.steps = [0] * 4, 0
        return self.observation(), {}

    def step(self, action):
        self.seen.append(min(self.seen[-1] + 1 + int(action), V - 1))
        self.steps += 1
        terminated = self.seen[-1] >= LAST
        info = {"done_probability": 1.0 if terminated else 0.0}
        truncated = self.steps >= HORIZON and not terminated
        return self.observation(), REWARDS[action], terminated, truncated, info


@pytest.mark.parametrize("observations", ["rgb", "tokens"])
@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_both_autoreset_modes_do_what_gymnasiums_own_vector_env_does(
    mode: str, observations: str
) -> None:
    dreams = scripted(observations=observations, autoreset_mode=mode)
    games = [lambda: CountingGame(observations)] * 3
    truth = SyncVectorEnv(games, autoreset_mode=AutoresetMode[mode.upper()])
    assert dreams.metadata["autoreset_mode"] is truth.metadata["autoreset_mode"]
    assert dreams.observation_space == truth.observation_space
    assert dreams.action_space == truth.action_space
    assert np.array_equal(dreams.reset(seed=0)[0], truth.reset(seed=0)[0])
    rng = np.random.default_rng(0)
    ends = np.zeros(2, int)
    for _ in range(60):
        actions = rng.integers(A, size=3)
        dreamed, expected = dreams.step(actions), truth.step(actions)
        for mine, theirs in zip(dreamed[:4], expected[:4], strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        ends += dreamed[2].sum(), dreamed[3].sum()
        assert_same_info(dreamed[4], expected[4])
    assert ends.min() >= 5  # both kinds of end were seen


def assert_same_info(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Equal where the masks say that something is there; keys without any may be left out."""
    assert theirs.keys() <= mine.keys()
    for key in mine.keys() - theirs.keys():
        assert not mine[f"_{key.removeprefix('_')}"].any()
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert_same_info(mine[key], value)
        elif value.dtype == object:
            assert mine[key].dtype == object
            for one, other in zip(mine[key], value, strict=True):
                assert (one is None) == (other is None)
                assert one is None or np.array_equal(one, other)
        else:
            assert mine[key].dtype == value.dtype
            np.testing.assert_allclose(mine[key], value, atol=1e-6)


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_gymnasiums_episode_statistics_are_right_in_both_modes(mode: str) -> None:
    dreams = RecordEpisodeStatistics(scripted(2, autoreset_mode=mode))
    dreams.reset(seed=0)
    for _ in range(18):
        dreams.step(np.array([0, 1]))  # by 1: truncated after 5; by 2: at 10 after 5, terminated
    whole = 3
    assert list(dreams.return_queue) == pytest.approx([0.0, 50.0] * whole)
    assert list(dreams.length_queue) == [5, 5] * whole


def test_disabled_leaves_resets_to_the_caller() -> None:
    dreams = scripted(2, autoreset_mode="disabled")
    dreams.reset(seed=0)
    for _ in range(3):
        _, _, terminated, _, _ = dreams.step(np.array([2, 0]))
    assert terminated.tolist() == [True, False]
    with pytest.raises(ResetNeeded, match=r"envs 0 have ended"):
        dreams.step(np.array([0, 0]))
    observations, _ = dreams.reset(options={"reset_mask": np.array([True, False])})
    assert observations[:, -1, 0].tolist() == [0, 3]
    for _ in range(2):
        _, _, _, truncated, _ = dreams.step(np.array([0, 0]))
    assert truncated.tolist() == [False, True]  # the other one's horizon went on


def unsure(num_envs: int = 4, **options: Any) -> DreamVectorEnv:
    starts = np.random.default_rng(0).integers(V, size=(50, 4, 336))
    defaults: dict[str, Any] = {"num_actions": A, "observations": "tokens", "horizon": 6}
    return DreamVectorEnv(UnsureModel(), GreyTokenizer(), starts, num_envs, **(defaults | options))


def roll(dreams: DreamVectorEnv, seed: int | None, steps: int = 12) -> list[np.ndarray]:
    seen = [dreams.reset(seed=seed)[0]]
    for _ in range(steps):
        seen += dreams.step(np.zeros(dreams.num_envs, int))[:4]
    return seen


def test_the_same_seed_gives_the_same_dreams_to_the_digit() -> None:
    one, other = unsure(), unsure()
    first, again, different = roll(one, 7), roll(other, 7), roll(other, 8)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, different, strict=True))
    assert not np.array_equal(first[0][0], first[0][1])  # the envs begin apart
    further, again = roll(one, None), roll(one, 7)  # a reset without a seed goes on
    assert not np.array_equal(further[0], first[0])
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_one_envs_luck_does_not_depend_on_anothers_end(mode: str) -> None:
    starts = np.random.default_rng(0).integers(4, size=(50, 4, 1)).repeat(336, axis=2)
    seen = []
    for busy in (0, 2):  # env 0 ends at other steps; env 1 does the same in both
        dreams = DreamVectorEnv(
            ScriptedModel(LAST), GreyTokenizer(), starts, 2,
            num_actions=A, observations="tokens", temperature=1.0, autoreset_mode=mode, horizon=4,
        )  # fmt: skip
        dreams.reset(seed=3)
        seen.append([dreams.step(np.array([busy, 1])) for _ in range(20)])
    ends = [[bool(step[2][0]) for step in run] for run in seen]
    assert ends[0] != ends[1]
    for mine, other in zip(*seen, strict=True):
        assert all(np.array_equal(a[1], b[1]) for a, b in zip(mine[:4], other[:4], strict=True))


def test_one_envs_luck_does_not_depend_on_when_the_caller_resets_another() -> None:
    def of_env_1(resets_env_0_at: set[int]) -> list[list[object]]:
        dreams = unsure(2, autoreset_mode="disabled", horizon=20)
        dreams.reset(seed=3)
        seen = []
        for step in range(60):
            histories, rewards, terminated, truncated, _ = dreams.step(np.zeros(2, int))
            begins = terminated | truncated
            seen.append([histories[1].tobytes(), rewards[1], begins[1]])
            begins[0] |= step in resets_env_0_at
            if begins.any():
                histories, _ = dreams.reset(options={"reset_mask": begins})
                seen[-1].append(histories[1].tobytes())  # its new start, or where it stays
            else:
                seen[-1].append(seen[-1][0])
        assert sum(bool(step[2]) for step in seen) > 4
        return seen

    assert of_env_1(set()) == of_env_1({2, 3, 11, 25})


def test_rewards_and_ends_come_as_often_as_the_heads_say() -> None:
    games = 3000
    dreams = unsure(games)
    dreams.reset(seed=1)
    tokens, rewards, terminated, _, infos = dreams.step(np.zeros(games, int))
    assert set(np.unique(rewards.round(4))) == {-4.0, 0.0, 4.0}
    shares = [(rewards < 0).mean(), (rewards > 0).mean(), terminated.mean()]
    assert shares == pytest.approx([0.1, 0.3, 0.2], abs=0.03)
    assert np.abs(np.corrcoef(rewards, terminated)[0, 1]) < 0.08  # each has its own luck
    assert infos["done_probability"] == pytest.approx(0.2)
    assert np.bincount(tokens[:300, -1].ravel(), minlength=V) / 300 / 336 == pytest.approx(
        1 / V, rel=0.15
    )


@pytest.mark.parametrize(("rewards", "value"), [("expected", 0.8), ("likeliest", 0.0)])
@pytest.mark.parametrize(("threshold", "ends"), [(0.1, True), (0.3, False)])
def test_rewards_and_ends_without_luck(
    rewards: str, value: float, threshold: float, ends: bool
) -> None:
    dreams = unsure(3, rewards=rewards, done_threshold=threshold)
    dreams.reset(seed=1)
    _, reward, terminated, truncated, _ = dreams.step(np.zeros(3, int))
    assert reward == pytest.approx(value)
    assert terminated.tolist() == [ends] * 3
    assert not truncated.any()


def test_the_model_dreams_in_eval_mode_and_keeps_its_own() -> None:
    model = ScriptedModel().train()
    dreams = DreamVectorEnv(model, GreyTokenizer(), START, 1, num_actions=A)
    dreams.reset(seed=0)
    dreams.step(np.array([0]))
    assert model.modes == [False]
    assert model.training


def test_gymnasiums_checker_passes_on_a_run(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    name = "wmfast.dream_single:wmfast/Dream-v0"
    for observations in ("rgb", "tokens"):
        made = gymnasium.make(name, run=folder, starts=32, observations=observations)
        check_env(made.unwrapped)  # warnings are errors here
    dreams = gymnasium.make_vec(name, num_envs=2, run=folder, starts=32, render_mode="rgb_array")
    frames, _ = dreams.reset(seed=0)
    assert np.array_equal(np.stack(dreams.render()), frames)
    assert dreams.single_action_space.n == 4  # Breakout's


def test_dreams_of_a_run_begin_where_its_games_have_been(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    replay = TokenReplay.load(str(load_checkpoint(folder).file("replay.bin")))
    stored = {history.tobytes() for history in starts_of(replay, 3000)}
    dreams = DreamVectorEnv.from_run(folder, 16, observations="tokens", starts=100)
    histories, _ = dreams.reset(seed=0)
    assert len({history.tobytes() for history in histories}) > 8
    assert {history.tobytes() for history in histories} <= stored
    pictures = DreamVectorEnv.from_run(folder, 16, starts=100)
    frames, _ = pictures.reset(seed=0)
    assert frames.shape == (16, 84, 64, 3)
    assert frames.std(axis=(1, 2, 3)).min() > 5  # a game is to be seen, not a plain colour


def test_runs_that_cannot_be_dreamed(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    with pytest.raises(UserError, match=r"absent holds no run"):
        DreamVectorEnv.from_run(tmp_path / "absent")
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="has no checkpoint"):
        DreamVectorEnv.from_run(tmp_path)
    headless = config.replace('"reward_done_heads": true', '"reward_done_heads": false')
    (tmp_path / "config.json").write_text(headless)
    with pytest.raises(UserError, match="no reward and done heads"):
        DreamVectorEnv.from_run(tmp_path)
    counters = {"world_model_updates": 0}
    untrained = replace(load_checkpoint(folder), state={"counters": counters})
    monkeypatch.setattr(wmfast.dream_games, "load_checkpoint", lambda run: untrained)
    with pytest.raises(UserError, match=r"world model is untrained at env step 600"):
        DreamVectorEnv.from_run(folder)


def test_top_k_keeps_a_hot_dream_to_the_likeliest_tokens() -> None:
    def dreamed(**options: Any) -> list[int]:
        dreams = scripted(1, **options)
        dreams.reset(seed=0)
        return dreams.step(np.zeros(1, np.int64))[0][0, -1].tolist()

    assert dreamed(temperature=50.0, top_k=1) == dreamed() == [1] * 336
    assert len(set(dreamed(temperature=50.0))) > 8  # nearly even over 32 tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"observations": "pixels"}, "observations = 'pixels': must be 'rgb' or 'tokens'"),
        ({"horizon": 0}, "horizon = 0: must be at least 1"),
        ({"num_envs": 0}, "num_envs = 0: must be at least 1"),
        ({"temperature": -1.0}, r"temperature = -1\.0"),
        ({"top_k": 0}, "top_k = 0: must be at least 1, or None"),
        ({"rewards": "clipped"}, "rewards = 'clipped': must be 'sampled' or 'expected'"),
        ({"done_threshold": 1.5}, r"done_threshold = 1\.5: must be 0 to 1"),
        ({"autoreset_mode": "later"}, "autoreset_mode = 'later': must be 'next_step' or"),
        ({"render_mode": "human"}, "render_mode = 'human': must be None or 'rgb_array'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scripted(**options)


def test_bad_starts_and_actions_are_named() -> None:
    for starts, words in (
        (START[0], r"starts are int64 \(4, 336\): must be integers \(N, 4, 336\)"),
        (START + V, "tokens 32 to 32: must be 0 to 31"),
    ):
        with pytest.raises(ValueError, match=words):
            DreamVectorEnv(ScriptedModel(), GreyTokenizer(), starts, 1, num_actions=A)
    dreams = scripted(2)
    with pytest.raises(ResetNeeded, match="call reset"):
        dreams.step(np.array([0, 0]))
    dreams.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions are int64 \(3,\): must be integers \(2,\)"):
        dreams.step(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"actions are float64"):
        dreams.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"actions are \[0, 3\]: must be 0 to 2"):
        dreams.step(np.array([0, 3]))
    with pytest.raises(ValueError, match=r"reset_mask.*must be \(2,\) with one env or more"):
        dreams.reset(options={"reset_mask": np.zeros(2, bool)})
    with pytest.raises(TypeError, match="must be a numpy array of bool"):
        dreams.reset(options={"reset_mask": [True, False]})
    with pytest.raises(ValueError, match="dreams has 2 envs and autoreset_mode NextStep"):
        DreamEnv(dreams)


def test_the_package_knows_it_without_importing_torch() -> None:
    check = (
        "import sys, wmfast; assert 'torch' not in sys.modules;"
        "assert wmfast.DreamVectorEnv.__name__ == 'DreamVectorEnv'; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    with pytest.raises(AttributeError, match="no attribute 'DreamVectorEnvs'"):
        wmfast.DreamVectorEnvs  # noqa: B018


@pytest.mark.gpu
def test_dreams_on_a_gpu(finished: tuple[Path, str]) -> None:
    dreams = DreamVectorEnv.from_run(finished[0], 4, starts=32, device="cuda")
    frames, _ = dreams.reset(seed=0)
    frames, rewards, *_ = dreams.step(np.zeros(4, int))
    assert frames.shape == (4, 84, 64, 3)
    assert rewards.shape == (4,)
    assert torch.cuda.is_available()
