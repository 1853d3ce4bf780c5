"""Env steps: AtariEnvs beside Gymnasium's SyncVectorEnv of the same games.

Equal answers: rewards and ends of the same actions in the same deterministic games (no sticky
actions, no no-op starts). The pictures can't be compared: Gymnasium's are 210 x 160, neither pooled
over two frames nor resized, which is less work than AtariEnvs does. Divide STEPS * NUM_ENVS by a
time for env steps per second.
"""

from __future__ import annotations

from collections.abc import Callable

import ale_py
import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from wmfast.config import EnvConfig
from wmfast.envs import AtariEnvs

NUM_ENVS = 8
STEPS = 120  # the first 65 are the tune that MsPacman begins with
ACTIONS = np.random.default_rng(0).integers(0, 9, (STEPS, NUM_ENVS))

Answers = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Rewards and ends, (STEPS, NUM_ENVS)."""


def atari_envs() -> Callable[[], Answers]:
    envs = AtariEnvs("ms_pacman", EnvConfig(noop_max=0), num_envs=NUM_ENVS, seed=0)

    def run() -> Answers:
        envs.reset()
        steps = [envs.step(actions) for actions in ACTIONS]
        return np.stack([s.rewards for s in steps]), np.stack([s.terminated for s in steps])

    return run


def sync_vector_env() -> Callable[[], Answers]:
    gymnasium.register_envs(ale_py)
    envs = gymnasium.make_vec(
        "ALE/MsPacman-v5",
        num_envs=NUM_ENVS,
        vectorization_mode="sync",
        frameskip=4,
        repeat_action_probability=0.0,
    )

    def run() -> Answers:
        envs.reset(seed=0)
        steps = [envs.step(actions) for actions in ACTIONS]
        return (
            np.stack([s[1] for s in steps]).astype(np.float32),
            np.stack([s[2] for s in steps]),
        )

    return run


RIVALS = {"wmfast": atari_envs, "gymnasium_sync": sync_vector_env}


@pytest.mark.parametrize("rival", RIVALS)
def test_env_steps(benchmark: BenchmarkFixture, rival: str) -> None:
    expected_rewards, expected_ends = atari_envs()()
    assert expected_rewards.sum() > 0
    run = RIVALS[rival]()
    rewards, ends = run()
    assert np.array_equal(rewards, expected_rewards)
    assert np.array_equal(ends, expected_ends)
    benchmark.extra_info["env_steps"] = STEPS * NUM_ENVS
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
