"""AtariEnvs against the emulator itself: names, scores, lives, resets, determinism, refusals."""

from __future__ import annotations

from itertools import pairwise

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py import roms

from wmfast.config import EnvConfig
from wmfast.envs import AtariEnvs, EnvStep, Stream, env_seeds
from wmfast.games import GAMES, game_name

STREAMS: tuple[Stream, ...] = ("train", "eval")
STICKY = EnvConfig(num_envs=3, sticky=0.25)


def play_random(envs: AtariEnvs, steps: int, seed: int = 0) -> list[EnvStep]:
    rng = np.random.default_rng(seed)
    envs.reset()
    return [envs.step(rng.integers(0, envs.num_actions, envs.num_envs)) for _ in range(steps)]


def same(a: EnvStep, b: EnvStep) -> bool:
    return a.finished == b.finished and all(
        np.array_equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True)
    )


@pytest.fixture(scope="module")
def breakout() -> list[EnvStep]:
    """Three games of Breakout at random, several ends each."""
    with AtariEnvs("breakout", STICKY, seed=2) as envs:
        return play_random(envs, 700)


@pytest.mark.parametrize(
    "name",
    [
        "ms_pacman",
        "mspacman",
        "MS PACMAN",
        "ms-pacman",
        " Ms_Pacman ",
        "ALE/MsPacman-v5",
        "MsPacmanNoFrameskip-v4",
    ],
)
def test_a_name_is_matched_forgivingly(name: str) -> None:
    assert game_name(name) == "ms_pacman"


def test_the_games_are_those_with_an_environment_id() -> None:
    gymnasium.register_envs(ale_py)
    ids = [i for i in gymnasium.registry if i.startswith("ALE/") and i.endswith("-v5")]
    assert len(GAMES) == 104
    assert sorted(game_name(i) for i in ids) == sorted(GAMES)


def test_an_unknown_game_is_one_line_with_near_misses() -> None:
    with pytest.raises(ValueError, match=r"unknown game 'mspackman'.*did you mean ms_pacman") as e:
        game_name("mspackman")
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="unknown game 'xyzzyplugh'"):
        game_name("xyzzyplugh")
    with pytest.raises(ValueError, match="unknown game 'combat'"):
        AtariEnvs("combat", seed=0)


@pytest.mark.parametrize("game", ["breakout", "pong", "qbert", "tetris", "skiing"])
def test_frames_and_actions_of_a_handful_of_games(game: str) -> None:
    with AtariEnvs(game, num_envs=2, seed=0) as envs:
        frames = envs.reset()
        assert frames.shape == (2, 84, 64, 3)
        assert frames.dtype == np.uint8
        assert frames.max() > 0
        assert envs.action_meanings[0] == "NOOP" or game == "skiing"
        assert len(envs.action_meanings) == envs.num_actions <= 18
        step = envs.step(np.zeros(2, np.int64))
        assert step.frames.shape == frames.shape
        assert not step.is_reset.any()


def test_a_row_is_the_same_game_as_the_emulator_plays_alone() -> None:
    """Row e equals gymnasium's own single environment, started from the seed of row e."""
    config = EnvConfig(num_envs=3, noop_max=0)
    with AtariEnvs("ms_pacman", config, seed=5) as envs:
        steps = play_random(envs, 150)
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, 9, 3) for _ in range(150)]
    totals = sum(step.rewards for step in steps)
    assert min(totals) > 0
    assert len(set(totals)) > 1  # so that rows in another order would show
    for row in range(3):
        ale = ale_py.ALEInterface()
        ale.setFloat("repeat_action_probability", 0.0)
        ale.loadROM(roms.get_rom_path("ms_pacman"))
        moves = ale.getMinimalActionSet()
        for step, action in zip(steps, actions, strict=True):
            reward = sum(ale.act(moves[action[row]]) for _ in range(4))
            assert step.rewards[row] == reward


def test_rewards_are_raw_and_scores_are_the_whole_game() -> None:
    """Our own sum over the raw rewards, per game; MsPacman pays 10 a pellet and more."""
    with AtariEnvs("ms_pacman", STICKY, seed=1) as envs:
        steps = play_random(envs, 800)
    assert max(step.rewards.max() for step in steps) >= 10
    score, length = np.zeros(3), np.zeros(3, int)
    games = 0
    for step in steps:
        score += step.rewards
        length += 1
        for env, true_score, true_length in step.finished:
            assert step.terminated[env]
            assert (score[env], length[env]) == (true_score, true_length)
            # The next step only begins the next game: it is not part of either.
            score[env], length[env] = 0, -1
            games += 1
    assert games >= 3


def test_a_reset_row_follows_each_end_and_brings_no_reward(breakout: list[EnvStep]) -> None:
    for before, after in pairwise(breakout):
        assert np.array_equal(after.is_reset, before.terminated | before.truncated)
        assert not after.rewards[after.is_reset].any()
        assert not after.life_lost[after.is_reset].any()
    assert sum(step.is_reset.sum() for step in breakout) >= 3


def test_life_lost_marks_each_life_but_the_last(breakout: list[EnvStep]) -> None:
    """Breakout has five lives: four are lost on the way, the fifth is the end of the game."""
    lost, games = np.zeros(3, int), 0
    for step in breakout:
        assert not (step.life_lost & step.terminated).any()
        lost += step.life_lost
        for env in np.flatnonzero(step.terminated):
            assert lost[env] == 4
            lost[env] = 0
            games += 1
    assert games >= 3


def test_a_game_without_lives_never_loses_one() -> None:
    with AtariEnvs("pong", STICKY, seed=0) as envs:
        steps = play_random(envs, 300)
    assert not any(step.life_lost.any() for step in steps)
    assert min(step.rewards.min() for step in steps) == -1


def test_truncation_is_not_termination() -> None:
    config = EnvConfig(num_envs=2, max_frames=120)
    with AtariEnvs("pong", config, seed=0) as envs:
        steps = play_random(envs, 62)
    ends = [t for t, step in enumerate(steps) if step.truncated.all()]
    assert ends == [29, 60]  # 120 frames are 30 steps; one more step begins the next game
    assert not any(step.terminated.any() for step in steps)
    assert [game.length for game in steps[29].finished] == [30, 30]


def test_the_same_seed_gives_the_same_games_and_another_does_not() -> None:
    def run(seed: int, threads: int, stream: Stream = "train") -> list[EnvStep]:
        with AtariEnvs("breakout", STICKY, seed=seed, stream=stream, num_threads=threads) as envs:
            return play_random(envs, 60)

    first = run(7, 1)
    assert all(same(a, b) for a, b in zip(first, run(7, 2), strict=True))
    assert not all(same(a, b) for a, b in zip(first, run(8, 2), strict=True))
    assert not all(same(a, b) for a, b in zip(first, run(7, 2, "eval"), strict=True))


def test_seeds_of_neighbouring_runs_streams_and_games_are_all_different() -> None:
    seeds = [
        int(value)
        for seed in range(10)
        for stream in STREAMS
        for value in env_seeds(seed, stream, 16)
    ]
    assert len(set(seeds)) == 320
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert env_seeds(0, "train", 40)[:16].tolist() == seeds[:16]


def test_send_and_recv_are_step() -> None:
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, 4, 3) for _ in range(40)]
    with AtariEnvs("breakout", STICKY, seed=1) as one, AtariEnvs("breakout", STICKY, seed=1) as two:
        one.reset()
        two.reset()
        for action in actions:
            one.send(action)
            step = two.step(action)
            assert same(one.recv(), step)


def test_returned_arrays_stay_as_they_were() -> None:
    with AtariEnvs("breakout", STICKY, seed=1) as envs:
        steps = play_random(envs, 5)
        kept = [step.frames.copy() for step in steps]
        for _ in range(20):
            envs.step(np.ones(3, np.int64))
        assert all(
            np.array_equal(step.frames, copy) for step, copy in zip(steps, kept, strict=True)
        )


def test_reset_in_the_middle_starts_the_same_games_again() -> None:
    with AtariEnvs("breakout", STICKY, seed=4) as envs:
        first = envs.reset()
        envs.step(np.ones(3, np.int64))
        envs.send(np.ones(3, np.int64))
        again = envs.reset()
        assert np.array_equal(first, again)
        assert not envs.step(np.zeros(3, np.int64)).is_reset.any()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 4, 0]), r"within 0\.\.3"),
        (np.array([0, -1, 0]), r"within 0\.\.3"),
        (np.array([0, 0]), r"shape \(3,\)"),
        (np.array([0.0, 0.0, 0.0]), "float64"),
    ],
)
def test_bad_actions_are_refused_before_the_emulator_sees_them(
    actions: np.ndarray, message: str
) -> None:
    with AtariEnvs("breakout", STICKY, seed=0) as envs:
        envs.reset()
        with pytest.raises(ValueError, match=message):
            envs.send(actions)
        envs.step(np.zeros(3, np.int32))


def test_calls_out_of_order_are_refused_not_hung() -> None:
    envs = AtariEnvs("breakout", STICKY, seed=0)
    with pytest.raises(RuntimeError, match="send"):
        envs.recv()
    with pytest.raises(RuntimeError, match="reset"):
        envs.send(np.zeros(3, np.int64))
    envs.reset()
    envs.send(np.zeros(3, np.int64))
    with pytest.raises(RuntimeError, match="recv"):
        envs.send(np.zeros(3, np.int64))
    envs.close()
    envs.close()
    with pytest.raises(RuntimeError, match="reset"):
        envs.send(np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvConfig(num_envs=0), "num_envs must be at least 1, not 0"),
        (EnvConfig(sticky=1.5), r"sticky must be within 0\.\.1, not 1\.5"),
        (EnvConfig(noop_max=-1), "noop_max must be at least 0, not -1"),
        (EnvConfig(max_frames=0), "max_frames must be at least 4, not 0"),
    ],
)
def test_bad_configuration_names_the_value(config: EnvConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtariEnvs("pong", config, seed=0)
