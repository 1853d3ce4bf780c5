"""An agent of another library, unchanged, learns in a dream; the example runs to its end."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_dreams import REWARDS, A, GreyTokenizer, ScriptedModel
from stable_baselines3 import PPO

from wmfast import DreamVectorEnv

EXAMPLE = Path(__file__).parents[1] / "examples" / "ppo_in_a_dream.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def dreams(num_envs: int, **options: Any) -> DreamVectorEnv:
    starts = np.zeros((1, 4, 336), int)
    return DreamVectorEnv(
        ScriptedModel(9), GreyTokenizer(), starts, num_envs,
        num_actions=A, observations="tokens", autoreset_mode="same_step", **options,
    )  # fmt: skip


def test_the_adapter_tells_final_observations_and_truncation(
    example: dict[str, Callable[..., Any]],
) -> None:
    envs = example["DreamVecEnv"](dreams(2, horizon=5))
    envs.seed(0)
    assert envs.reset()[:, -1, 0].tolist() == [0, 0]
    for _ in range(4):
        envs.step(np.array([0, 1]))
    observations, rewards, ended, infos = envs.step(np.array([0, 1]))
    assert ended.tolist() == [True, True]
    assert rewards.tolist() == pytest.approx([0.0, REWARDS[1]])
    assert observations[:, -1, 0].tolist() == [0, 0]
    assert [info["terminal_observation"][-1, 0] for info in infos] == [5, 10]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False]


def test_ppo_learns_which_action_pays(example: dict[str, Callable[..., Any]]) -> None:
    envs = example["DreamVecEnv"](dreams(8, horizon=4))
    agent = PPO("MlpPolicy", envs, n_steps=16, batch_size=64, learning_rate=3e-3, gamma=0.5, seed=0)
    before = rate(agent)
    agent.learn(1024)
    assert before < 0.6
    assert rate(agent) > 0.9


def rate(agent: PPO) -> float:
    """How often the policy takes the action that pays."""
    observations = np.zeros((200, 4, 336), np.uint16)
    return float((agent.predict(observations)[0] == int(np.argmax(REWARDS))).mean())


def test_the_example_runs(
    example: dict[str, Callable[..., Any]],
    finished: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--steps=64", "--envs=2", "--horizon=4", "--games=2", "--max-steps=8"]
    example["main"]([str(finished[0]), *arguments])
    printed = capsys.readouterr().out
    assert "PPO, trained in the dream:" in printed
    assert "random play:" in printed
