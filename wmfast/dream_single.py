"""One dream at a time, as a plain `gymnasium.Env`; and the dream's name in Gymnasium's registry.

Importing this module registers it, which Gymnasium does by itself for a name with a colon:

    gymnasium.make("wmfast.dream_single:wmfast/Dream-v0", run="runs/ms_pacman/...")
    gymnasium.make_vec("wmfast.dream_single:wmfast/Dream-v0", num_envs=8, run="runs/...")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from wmfast.dream_env import FPS, Array, DreamVectorEnv


class DreamEnv(gymnasium.Env[Array, int]):
    """One dream at a time: the single-env face of a `DreamVectorEnv`.

    Args:
        dreams: of one env, with ``autoreset_mode="disabled"``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 - Gymnasium's

    def __init__(self, dreams: DreamVectorEnv) -> None:
        mode = dreams.metadata["autoreset_mode"]
        if dreams.num_envs != 1 or mode is not AutoresetMode.DISABLED:
            raise ValueError(
                f"dreams has {dreams.num_envs} envs and autoreset_mode {mode.value}: "
                "must have 1 and be disabled"
            )
        self._dreams = dreams
        self.render_mode = dreams.render_mode
        self.observation_space = dreams.single_observation_space
        self.action_space = dreams.single_action_space

    @classmethod
    def from_run(
        cls, run: Path | str, *, render_mode: str | None = None, **options: Any
    ) -> DreamEnv:
        """A dream of a run; arguments and errors as for `DreamVectorEnv.from_run`."""
        dreams = DreamVectorEnv.from_run(
            run, autoreset_mode="disabled", render_mode=render_mode, **options
        )
        return cls(dreams)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin a dream in a real history."""
        super().reset(seed=seed)
        observation, info = self._dreams.reset(seed=seed)
        return observation[0], info

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One imagined step; ``info["done_probability"]`` as in `DreamVectorEnv`."""
        observation, reward, terminated, truncated, infos = self._dreams.step(np.array([action]))
        info = {"done_probability": float(infos["done_probability"][0])}
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Array | None:
        """The newest frame uint8 (84, 64, 3), or None without a render mode."""
        frames = self._dreams.render()
        return None if frames is None else frames[0]


def one_dream(**options: Any) -> DreamEnv:
    """``gymnasium.make``'s door to `DreamEnv.from_run`."""
    return DreamEnv.from_run(**options)


def dreams(**options: Any) -> DreamVectorEnv:
    """``gymnasium.make_vec``'s door to `DreamVectorEnv.from_run`."""
    return DreamVectorEnv.from_run(**options)


gymnasium.register(
    "wmfast/Dream-v0",
    entry_point="wmfast.dream_single:one_dream",
    vector_entry_point="wmfast.dream_single:dreams",
)
