"""A small buffer and a stream whose frames tell their env and step, for the tests."""

from __future__ import annotations

import numpy as np

from wmfast import TokenReplay

ENVS = 2
TOKENS = 6
NO = np.zeros(ENVS, dtype=bool)
YES = np.ones(ENVS, dtype=bool)


def frame(t: int) -> np.ndarray:
    """Frames that tell their env and step: env 0 holds 100 + t, env 1 holds 200 + t."""
    return np.repeat(np.array([[100 + t], [200 + t]], dtype=np.uint16), TOKENS, axis=1)


def make(**options) -> TokenReplay:
    return TokenReplay(**{"capacity": 80, "num_envs": ENVS, "frame_shape": (2, 3), **options})


def add(replay: TokenReplay, t: int, terminated=NO, truncated=NO, reward=1.0, **more) -> None:
    rewards = np.full(ENVS, reward)
    replay.add(frame(t), np.full(ENVS, t), rewards, terminated, truncated, **more)


def filled(steps: int = 20, **options) -> TokenReplay:
    replay = make(**options)
    for t in range(steps):
        add(replay, t)
    return replay
