"""cpprb (C++ and Cython) in its default use: ready-made stacks of state and next_state."""

from __future__ import annotations

from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer, ReplayBuffer
from numpy.typing import NDArray
from replay_stream import HISTORY, TOKENS, Step

from rivals import ALPHA, BETA, Draw, Rival

FIELDS = {
    "act": {"dtype": np.int64},
    "rew": {"dtype": np.float32},
    "done": {"dtype": np.bool_},
}


class CpprbStacks(Rival):
    package = "cpprb"
    mode = "full stacks"
    stacks = True

    def __init__(self, capacity: int, prioritized: bool) -> None:
        stack = {"shape": (HISTORY, TOKENS), "dtype": np.uint16}
        fields = {"obs": stack, "next_obs": stack, **FIELDS}
        self.prioritized = prioritized
        self.buffer = (
            PrioritizedReplayBuffer(capacity, fields, alpha=ALPHA, eps=1e-8)
            if prioritized
            else ReplayBuffer(capacity, fields)
        )

    def add(self, step: Step) -> object:
        return self.buffer.add(
            obs=step.stacks,
            next_obs=step.next_stacks,
            act=step.actions,
            rew=step.rewards,
            done=step.terminated,
        )

    def sample(self, batch_size: int) -> Draw:
        if not self.prioritized:
            return Draw(self.buffer.sample(batch_size), None)
        batch = self.buffer.sample(batch_size, BETA)
        return Draw(batch, batch["indexes"])

    def update(self, index: Any, priority: NDArray[np.float32]) -> object:
        return self.buffer.update_priorities(index, priority)

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        batch = draw.batch
        arrays = {
            "state": batch["obs"],
            "next_state": batch["next_obs"],
            "action": batch["act"].ravel(),
            "reward": batch["rew"].ravel(),
            "terminated": batch["done"].ravel().astype(bool),
        }
        return arrays | ({"weight": batch["weights"]} if self.prioritized else {})
