"""stable-baselines3: optimize_memory_usage, ready-made stacks; it has no prioritized buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from replay_stream import ACTIONS, ENVS, HISTORY, TOKENS, VOCAB, Step
from stable_baselines3.common.buffers import ReplayBuffer

from rivals import Draw, Rival


class Sb3Stacks(Rival):
    """The state after an end is the next episode's first: next_state of a truncated step too."""

    package = "stable-baselines3"
    mode = "optimize_memory_usage, full stacks"
    modes = (False,)
    stacks = True
    keeps_final_frame = False
    why_not_prioritized = "it has no prioritized buffer"

    def __init__(self, capacity: int, prioritized: bool) -> None:
        assert not prioritized
        self.buffer = ReplayBuffer(
            capacity,
            spaces.Box(0, VOCAB - 1, (HISTORY, TOKENS), np.uint16),
            spaces.Discrete(ACTIONS),
            device="cpu",
            n_envs=ENVS,
            optimize_memory_usage=True,
            handle_timeout_termination=False,
        )
        self.infos: list[dict[str, Any]] = [{}] * ENVS

    def add(self, step: Step) -> None:
        self.buffer.add(
            step.stacks,
            step.next_stacks,
            step.actions,
            step.rewards,
            step.terminated,
            self.infos,
        )

    def sample(self, batch_size: int) -> Draw:
        return Draw(self.buffer.sample(batch_size), None)

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        batch = draw.batch
        return {
            "state": batch.observations.numpy(),
            "next_state": batch.next_observations.numpy(),
            "action": batch.actions.numpy().ravel(),
            "reward": batch.rewards.numpy().ravel(),
            "terminated": batch.dones.numpy().ravel().astype(bool),
        }
