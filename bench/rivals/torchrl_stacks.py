"""torchrl: TensorDictReplayBuffer of ready-made stacks in a contiguous storage.

int16 for uint16, bit for bit: torch indexes few types of unsigned numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from replay_stream import ENVS, Step
from tensordict import TensorDict
from torchrl.data import (
    LazyTensorStorage,
    PrioritizedSampler,
    RandomSampler,
    TensorDictReplayBuffer,
)

from rivals import ALPHA, BETA, Draw, Rival


def _why_no_tree() -> str:
    """The trees are in a C++ extension, which a wheel for another torch can't load."""
    try:
        PrioritizedSampler(8, ALPHA, BETA)
    except Exception as error:  # whatever type it is: the reader gets its words
        return str(error).splitlines()[0]
    return ""


def _bits(array: NDArray[np.uint16]) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16))


class TorchrlStacks(Rival):
    package = "torchrl"
    mode = "full stacks"
    stacks = True
    why_not_prioritized = _why_no_tree()
    modes = (False,) if why_not_prioritized else (False, True)

    def __init__(self, capacity: int, prioritized: bool) -> None:
        self.prioritized = prioritized
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity),
            sampler=PrioritizedSampler(capacity, ALPHA, BETA, eps=0.0)
            if prioritized
            else RandomSampler(),
            batch_size=256,
        )

    def add(self, step: Step) -> object:
        return self.buffer.extend(
            TensorDict(
                {
                    "obs": _bits(step.stacks),
                    "next_obs": _bits(step.next_stacks),
                    "action": torch.from_numpy(step.actions),
                    "reward": torch.from_numpy(step.rewards),
                    "terminated": torch.from_numpy(step.terminated),
                },
                batch_size=[ENVS],
            )
        )

    def sample(self, batch_size: int) -> Draw:
        batch = self.buffer.sample(batch_size)
        return Draw(batch, batch["index"] if self.prioritized else None)

    def update(self, index: Any, priority: NDArray[np.float32]) -> object:
        return self.buffer.update_priority(index, torch.from_numpy(priority))

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        batch = draw.batch
        arrays = {
            "state": batch["obs"].numpy().view(np.uint16),
            "next_state": batch["next_obs"].numpy().view(np.uint16),
            "action": batch["action"].numpy(),
            "reward": batch["reward"].numpy(),
            "terminated": batch["terminated"].numpy(),
        }
        return arrays | ({"weight": batch["priority_weight"].numpy()} if self.prioritized else {})
