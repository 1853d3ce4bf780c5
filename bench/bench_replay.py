"""TokenReplay beside a replay buffer in plain numpy: adding, even draws, the prioritized loop.

The work: 8 envs, 336 tokens a frame, 80k steps, histories of 4, episodes that end at random. Equal
answers: for the ids that TokenReplay drew, the rival gives the same transitions and weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from wmfast import TokenReplay

ENVS, TOKENS, HISTORY, CAPACITY = 8, 336, 4, 80_000
KEPT = CAPACITY // ENVS
GAMMA, ALPHA, BETA = 0.99, 0.6, 0.4

Arrays = dict[str, NDArray[np.generic]]


class NumpySumTree:
    """A binary sum tree, every level of a batch in one numpy call."""

    def __init__(self, leaves: int) -> None:
        self.depth = int(np.ceil(np.log2(leaves)))
        self.nodes = np.zeros(2 << self.depth)

    def set(self, leaf: NDArray[np.int64], weight: NDArray[np.float64] | float) -> None:
        node = leaf + (1 << self.depth)
        self.nodes[node] = weight
        for _ in range(self.depth):
            node = np.unique(node >> 1)
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def find(self, target: NDArray[np.float64]) -> NDArray[np.int64]:
        node = np.ones(len(target), np.int64)
        for _ in range(self.depth):
            left = self.nodes[2 * node]
            right = target >= left
            target = np.where(right, target - left, target)
            node = 2 * node + right
        return node - (1 << self.depth)


class NumpyReplay:
    """A ring of token frames an env, histories by index arithmetic (autoreset "next_step")."""

    def __init__(self, prioritized: bool) -> None:
        self.frames = np.zeros((ENVS * KEPT, TOKENS), np.uint16)
        self.action = np.zeros(ENVS * KEPT, np.int64)
        self.reward = np.zeros(ENVS * KEPT, np.float32)
        self.terminated = np.zeros(ENVS * KEPT, bool)
        self.ended = np.zeros(ENVS * KEPT, bool)
        self.is_final = np.zeros(ENVS * KEPT, bool)
        self.since = np.zeros(ENVS * KEPT, np.int64)
        self.base = np.arange(ENVS) * KEPT
        self.steps = 0
        self.rng = np.random.default_rng(0)
        self.tree = NumpySumTree(ENVS * KEPT) if prioritized else None

    def add(self, frames, actions, rewards, terminated, truncated) -> None:
        row, last = self.base + self.steps % KEPT, self.base + (self.steps - 1) % KEPT
        was_final, was_ended = self.is_final[last], self.ended[last]
        fresh = was_final | (self.steps == 0)
        self.frames[row], self.action[row], self.reward[row] = frames, actions, rewards
        self.is_final[row] = was_ended
        self.terminated[row] = terminated & ~was_ended
        self.ended[row] = (terminated | truncated) & ~was_ended
        self.since[row] = np.where(fresh, 0, self.since[last] + 1)
        self.steps += 1
        if self.tree is not None:
            lost = self.base + (self.steps + HISTORY - 2) % KEPT
            self.tree.set(np.concatenate([row, lost]), 0.0)
            self.tree.set(last[~was_final], 1.0)

    def drawn_evenly(self, batch_size: int) -> NDArray[np.int64]:
        """Rows; the few final frames among them are drawn again until none is left."""
        row = np.empty(0, np.int64)
        while len(row) < batch_size:
            age = self.rng.integers(2, KEPT - HISTORY, batch_size - len(row))
            more = self.rng.choice(self.base, len(age)) + (self.steps - age) % KEPT
            row = np.concatenate([row, more[~self.is_final[more]]])
        return row

    def drawn_by_priority(self, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert self.tree is not None
        total = self.tree.nodes[1]
        part = np.arange(batch_size) + self.rng.random(batch_size)
        row = self.tree.find(part * (total / batch_size))
        return row, self.weights(row)

    def weights(self, row: NDArray[np.int64]) -> NDArray[np.float32]:
        assert self.tree is not None
        weight = (self.tree.nodes[row + (1 << self.tree.depth)]) ** -BETA
        return (weight / weight.max()).astype(np.float32)

    def transitions(self, row: NDArray[np.int64]) -> Arrays:
        env, slot = row // KEPT * KEPT, row % KEPT
        lag = np.arange(HISTORY - 1, -1, -1)
        behind = np.minimum(lag, self.since[row][:, None])
        behind_next = np.minimum(lag, self.since[row][:, None] + 1)
        return {
            "state": self.frames[env[:, None] + (slot[:, None] - behind) % KEPT],
            "next_state": self.frames[env[:, None] + (slot[:, None] + 1 - behind_next) % KEPT],
            "action": self.action[row],
            "reward": self.reward[row],
            "discount": np.where(self.terminated[row], 0.0, GAMMA).astype(np.float32),
        }

    def update(self, row: NDArray[np.int64], priority: NDArray[np.float64]) -> None:
        assert self.tree is not None
        self.tree.set(row, priority**ALPHA)


def steps(count: int) -> Iterator[tuple[NDArray[np.generic], ...]]:
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield (
            rng.integers(0, 512, (ENVS, TOKENS), dtype=np.uint16),
            rng.integers(0, 18, ENVS),
            rng.normal(size=ENVS).astype(np.float32),
            rng.random(ENVS) < 0.002,
            rng.random(ENVS) < 0.001,
        )


def rows_of(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rival's rows of our ids."""
    return index % ENVS * KEPT + index // ENVS % KEPT


@pytest.fixture(scope="module", params=[False, True], ids=["even", "prioritized"])
def filled(request: pytest.FixtureRequest) -> tuple[TokenReplay, NumpyReplay]:
    """Both buffers with the same stream, gone round once; the answers are equal."""
    ours = TokenReplay(CAPACITY, ENVS, gamma=GAMMA, alpha=ALPHA, prioritized=request.param)
    rival = NumpyReplay(request.param)
    for step in steps(KEPT + 100):
        ours.add(*step)
        rival.add(*step)
    for _ in range(20):
        batch = ours.sample(256, beta=BETA)
        for name, answer in rival.transitions(rows_of(batch.index)).items():
            np.testing.assert_array_equal(batch[name], answer)
        if request.param:
            np.testing.assert_allclose(batch.weight, rival.weights(rows_of(batch.index)), 1e-5)
            priority = np.random.default_rng(2).random(256) + 0.01
            ours.update_priorities(batch.index, priority)
            rival.update(rows_of(batch.index), priority)
    if rival.tree is not None:
        np.testing.assert_allclose(ours.stats()["priority_sum"], rival.tree.nodes[1], 1e-9)
    return ours, rival


@pytest.mark.parametrize("side", ["wmfast", "numpy"])
@pytest.mark.parametrize("batch_size", [32, 256, 1024])
def test_sample(
    benchmark: BenchmarkFixture,
    filled: tuple[TokenReplay, NumpyReplay],
    batch_size: int,
    side: str,
) -> None:
    ours, rival = filled
    benchmark.group = f"sample {batch_size}, {'prioritized' if rival.tree else 'even'}"
    if side == "wmfast":
        benchmark(lambda: ours.sample(batch_size, beta=BETA))
    elif rival.tree is None:
        benchmark(lambda: rival.transitions(rival.drawn_evenly(batch_size)))
    else:
        benchmark(lambda: rival.transitions(rival.drawn_by_priority(batch_size)[0]))


@pytest.mark.parametrize("side", ["wmfast", "numpy"])
def test_loop(
    benchmark: BenchmarkFixture, filled: tuple[TokenReplay, NumpyReplay], side: str
) -> None:
    """One step of 8 envs, a batch of 256, its priorities."""
    ours, rival = filled
    benchmark.group = f"add 8, sample 256, {'update' if rival.tree else 'even'}"
    step = next(steps(1))
    priority = np.random.default_rng(3).random(256)

    def our_loop() -> None:
        ours.add(*step)
        index = ours.sample(256, beta=BETA).index
        if rival.tree is not None:
            ours.update_priorities(index, priority)

    def rival_loop() -> None:
        rival.add(*step)
        if rival.tree is None:
            rival.transitions(rival.drawn_evenly(256))
        else:
            row, _ = rival.drawn_by_priority(256)
            rival.transitions(row)
            rival.update(row, priority)

    benchmark(our_loop if side == "wmfast" else rival_loop)


@pytest.mark.parametrize("side", ["wmfast", "numpy"])
def test_add(
    benchmark: BenchmarkFixture, filled: tuple[TokenReplay, NumpyReplay], side: str
) -> None:
    """One step of 8 envs."""
    ours, rival = filled
    benchmark.group = f"add 8, {'prioritized' if rival.tree else 'even'}"
    step = next(steps(1))
    benchmark(lambda: (ours if side == "wmfast" else rival).add(*step))
