"""cpprb with next_of and stack_compress: a frame a step, stacks along the last axis.

It has no mode for several envs: a buffer an env takes the steps, and each batch is drawn from one
of them, in turn: generous, for batches of all would cost eight calls. Its stacks are (B, 336, 4)
and are compared, but not turned to (B, 4, 336) on its time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer, ReplayBuffer
from numpy.typing import NDArray
from replay_stream import ENVS, HISTORY, TOKENS, Step

from rivals import ALPHA, BETA, Draw, Rival
from rivals.cpprb_stacks import FIELDS


class CpprbCompressed(Rival):
    package = "cpprb"
    mode = "next_of + stack_compress"
    stacks = True

    def __init__(self, capacity: int, prioritized: bool) -> None:
        fields = {"obs": {"shape": (TOKENS, HISTORY), "dtype": np.uint16}, **FIELDS}
        options = {"next_of": "obs", "stack_compress": "obs"}
        self.prioritized = prioritized
        self.turn = 0
        self.buffers = [
            PrioritizedReplayBuffer(capacity // ENVS, fields, alpha=ALPHA, eps=1e-8, **options)
            if prioritized
            else ReplayBuffer(capacity // ENVS, fields, **options)
            for _ in range(ENVS)
        ]

    def add(self, step: Step) -> None:
        ended = step.terminated | step.truncated
        for env, buffer in enumerate(self.buffers):
            buffer.add(
                obs=step.stacks[env].T,
                next_obs=step.next_stacks[env].T,
                act=step.actions[env],
                rew=step.rewards[env],
                done=step.terminated[env],
            )
            if ended[env]:
                buffer.on_episode_end()

    def sample(self, batch_size: int) -> Draw:
        self.turn = (self.turn + 1) % ENVS
        if not self.prioritized:
            return Draw(self.buffers[self.turn].sample(batch_size), None)
        batch = self.buffers[self.turn].sample(batch_size, BETA)
        return Draw(batch, (self.turn, batch["indexes"]))

    def update(self, index: tuple[int, Any], priority: NDArray[np.float32]) -> object:
        turn, indexes = index
        return self.buffers[turn].update_priorities(indexes, priority)

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        batch = draw.batch
        arrays = {
            "state": batch["obs"].transpose(0, 2, 1),
            "next_state": batch["next_obs"].transpose(0, 2, 1),
            "action": batch["act"].ravel(),
            "reward": batch["rew"].ravel(),
            "terminated": batch["done"].ravel().astype(bool),
        }
        return arrays | ({"weight": batch["weights"]} if self.prioritized else {})
