"""tianshou: VectorReplayBuffer that stacks when it samples, next observations not stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from replay_stream import ENVS, HISTORY, Step
from tianshou.data import Batch, PrioritizedVectorReplayBuffer, VectorReplayBuffer

from rivals import ALPHA, BETA, Draw, Rival


class TianshouVector(Rival):
    package = "tianshou"
    mode = "stack_num=4, ignore_obs_next"
    keeps_final_frame = False
    # Its buffers of the 8 envs share a seed (42) and draw the same steps: sqrt(8) times the spread.
    even_enough = 17.0

    def __init__(self, capacity: int, prioritized: bool) -> None:
        options = {"stack_num": HISTORY, "ignore_obs_next": True}
        self.prioritized = prioritized
        self.buffer = (
            PrioritizedVectorReplayBuffer(capacity, ENVS, alpha=ALPHA, beta=BETA, **options)
            if prioritized
            else VectorReplayBuffer(capacity, ENVS, **options)
        )

    def add(self, step: Step) -> object:
        return self.buffer.add(
            Batch(
                obs=step.frames,
                act=step.actions,
                rew=step.rewards,
                terminated=step.terminated,
                truncated=step.truncated,
            )
        )

    def sample(self, batch_size: int) -> Draw:
        return Draw(*self.buffer.sample(batch_size))

    def update(self, index: Any, priority: NDArray[np.float32]) -> object:
        return self.buffer.update_weight(index, priority)

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        batch = draw.batch
        arrays = {
            "state": batch.obs,
            "next_state": batch.obs_next,
            "action": batch.act,
            "reward": batch.rew,
            "terminated": batch.terminated,
        }
        return arrays | ({"weight": batch.weight} if self.prioritized else {})
