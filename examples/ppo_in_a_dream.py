"""Train Stable-Baselines3's PPO inside a run's dream, then see what it is worth in the real game.

    pip install stable-baselines3
    wmfast-train --game mspacman                      # a run to dream of
    python examples/ppo_in_a_dream.py runs/ms_pacman/...

PPO is used as it comes. The one piece between is `DreamVecEnv`: Stable-Baselines3 has a vector
interface of its own (observations of the next episode in place of final ones, a list of infos).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from wmfast import DreamVectorEnv
from wmfast.envs import AtariEnvs
from wmfast.trained import load_trained
from wmfast.types import HISTORY


class DreamVecEnv(VecEnv):
    """A `DreamVectorEnv` with ``autoreset_mode="same_step"`` as Stable-Baselines3 sees it."""

    def __init__(self, dreams: DreamVectorEnv) -> None:
        self.dreams = dreams
        space, actions = dreams.single_observation_space, dreams.single_action_space
        super().__init__(dreams.num_envs, space, actions)

    def reset(self) -> np.ndarray:
        observations, _ = self.dreams.reset(seed=self._seeds[0])
        self._reset_seeds()  # the next reset goes on
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, infos = self.dreams.step(self._actions)
        ended = terminated | truncated
        told: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env in np.flatnonzero(ended):
            told[env]["terminal_observation"] = infos["final_obs"][env]
            told[env]["TimeLimit.truncated"] = bool(truncated[env])
        return observations, rewards.astype(np.float32), ended, told

    def close(self) -> None:
        self.dreams.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.dreams, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the dreams share one model: there is nothing to set in one env")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError("the dreams share one model: there is no env of its own to call")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


def play_for_real(
    run: Path, act: Callable[[np.ndarray], np.ndarray], *, games: int, max_steps: int, seed: int
) -> list[float]:
    """Scores of full games (cut off after `max_steps`) of a policy over stacked frames.

    The frames pass through the run's tokenizer, so that the policy sees what it saw in its dreams.
    """
    trained = load_trained(run)
    scores, over = np.zeros(games), np.zeros(games, bool)
    with AtariEnvs(trained.config.game, trained.config.env, num_envs=games, seed=seed) as envs:
        frames, fresh = envs.reset(), np.ones(games, bool)
        stack = np.zeros((games, 84, 64, 3 * HISTORY), np.uint8)
        for _ in range(max_steps):
            with torch.no_grad():
                tokens = trained.tokenizer.encode(torch.from_numpy(frames))
                seen = trained.tokenizer.decode(tokens).numpy()
            stack[fresh] = 0  # as VecFrameStack begins
            stack = np.concatenate([stack[..., 3:], seen], axis=-1)
            step = envs.step(act(stack))
            scores += np.where(over, 0.0, step.rewards)
            over |= step.terminated | step.truncated
            if over.all():
                break
            frames, fresh = step.frames, step.is_reset
    return [float(score) for score in scores]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--steps", type=int, default=20_000, help="imagined steps")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--horizon", type=int, default=20, help="steps of a dream")
    parser.add_argument("--games", type=int, default=5, help="real games afterwards")
    parser.add_argument("--max-steps", type=int, default=2_000, help="of a real game")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    dreams = DreamVectorEnv.from_run(
        options.run,
        options.envs,
        horizon=options.horizon,
        rewards="expected",
        autoreset_mode="same_step",
    )
    envs = VecFrameStack(DreamVecEnv(dreams), HISTORY)
    agent = PPO(
        "CnnPolicy", envs, n_steps=64, batch_size=16 * options.envs, seed=options.seed, verbose=1
    )
    agent.learn(options.steps)

    rng = np.random.default_rng(options.seed)
    policies: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "PPO, trained in the dream": lambda seen: agent.predict(seen)[0],
        "random play": lambda seen: rng.integers(dreams.single_action_space.n, size=len(seen)),
    }
    for name, act in policies.items():
        scores = play_for_real(
            options.run, act, games=options.games, max_steps=options.max_steps, seed=options.seed
        )
        print(f"{name}: {np.mean(scores):.1f} on average in real games {scores}")


if __name__ == "__main__":
    main()
