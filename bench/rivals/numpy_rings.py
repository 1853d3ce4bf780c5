"""What one would write by hand: a ring of frames an env, numpy's ``take``, a binary sum tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from replay_stream import ENVS, HISTORY, TOKENS, Step

from rivals import ALPHA, BETA, Draw, Rival

_LAG = np.arange(HISTORY - 1, -1, -1)
_WINDOW_LAG = np.arange(HISTORY - 1, -2, -1)


class NumpySumTree:
    """A binary heap of sums, every level of a batch in one numpy call."""

    def __init__(self, leaves: int) -> None:
        self.depth = int(np.ceil(np.log2(leaves)))
        self.leaf_0 = 1 << self.depth
        self.nodes = np.zeros(2 << self.depth)

    def set(self, leaf: NDArray[np.int64], weight: NDArray[np.float64] | float) -> None:
        node = leaf + self.leaf_0
        self.nodes[node] = weight
        for _ in range(self.depth):
            node = node >> 1  # doubles compute the same sum twice: cheaper than np.unique
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def find(self, target: NDArray[np.float64]) -> NDArray[np.int64]:
        node = np.ones(len(target), np.int64)
        for _ in range(self.depth):
            node = 2 * node
            left = self.nodes[node]
            right = target >= left
            target = target - left * right
            node += right
        return node - self.leaf_0


class NumpyRings(Rival):
    """No final frames: the frame after an end is the next episode's first, as most write it."""

    mode = "hand-written rings"
    keeps_final_frame = False

    def __init__(self, capacity: int, prioritized: bool) -> None:
        self.kept = capacity // ENVS
        rows = ENVS * self.kept
        self.frames = np.zeros((rows, TOKENS), np.uint16)
        self.action = np.zeros(rows, np.int64)
        self.reward = np.zeros(rows, np.float32)
        self.terminated = np.zeros(rows, bool)
        self.since = np.zeros(rows, np.int64)
        self.since_now = np.zeros(ENVS, np.int64)
        self.base = np.arange(ENVS) * self.kept
        self.steps = 0
        self.rng = np.random.default_rng(0)
        self.tree = NumpySumTree(rows) if prioritized else None

    def add(self, step: Step) -> None:
        row = self.base + self.steps % self.kept
        self.frames[row], self.action[row], self.reward[row] = (
            step.frames,
            step.actions,
            step.rewards,
        )
        self.terminated[row] = step.terminated
        self.since[row] = self.since_now
        self.since_now = np.where(step.terminated | step.truncated, 0, self.since_now + 1)
        self.steps += 1
        if self.tree is not None:
            # The newest can't be drawn yet (no successor), the oldest no more (no history).
            lost = self.base + (self.steps + HISTORY - 2) % self.kept
            last = self.base + (self.steps - 2) % self.kept
            leaf = np.concatenate([row, lost, last]) if self.steps > 1 else row
            weight = np.zeros(len(leaf))
            weight[2 * ENVS :] = 1.0
            self.tree.set(leaf, weight)

    def _rows(self, batch_size: int) -> NDArray[np.int64]:
        if self.tree is not None:
            part = np.arange(batch_size) + self.rng.random(batch_size)
            return self.tree.find(part * (self.tree.nodes[1] / batch_size))
        stored = min(self.steps, self.kept)
        # Until the ring is full its oldest rows have their whole history.
        age = self.rng.integers(2, stored - (HISTORY if stored == self.kept else -1), batch_size)
        return self.base[self.rng.integers(0, ENVS, batch_size)] + (self.steps - age) % self.kept

    def _fields(self, row: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        fields = {"action": self.action[row], "reward": self.reward[row]}
        fields["terminated"] = self.terminated[row]
        if self.tree is not None:
            weight = self.tree.nodes[row + self.tree.leaf_0] ** -BETA
            fields["weight"] = (weight / weight.max()).astype(np.float32)
        return fields

    def sample(self, batch_size: int) -> Draw:
        row = self._rows(batch_size)
        env, slot = (row // self.kept * self.kept)[:, None], (row % self.kept)[:, None]
        since = self.since[row][:, None]
        behind = np.minimum(_LAG, since)
        behind_next = np.minimum(_LAG, since + 1)
        fields = self._fields(row)
        fields["state"] = self.frames.take(env + (slot - behind) % self.kept, 0)
        fields["next_state"] = self.frames.take(env + (slot + 1 - behind_next) % self.kept, 0)
        return Draw(fields, row)

    def window(self, batch_size: int) -> Draw:
        """Five frames, of which both are views."""
        row = self._rows(batch_size)
        env, slot = (row // self.kept * self.kept)[:, None], (row % self.kept)[:, None]
        behind = np.minimum(_WINDOW_LAG, self.since[row][:, None])
        frames = self.frames.take(env + (slot - behind) % self.kept, 0)
        fields = self._fields(row)
        fields["state"], fields["next_state"] = frames[:, :-1], frames[:, 1:]
        return Draw(fields, row)

    def update(self, index: NDArray[np.int64], priority: NDArray[np.float32]) -> None:
        assert self.tree is not None
        self.tree.set(index, priority.astype(np.float64) ** ALPHA)

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        fields: dict[str, NDArray[Any]] = draw.batch
        return fields
