"""Batches for a training step, on the device: drawn when asked, drawn ahead, gathered there.

The work: 8 envs, 336 tokens, 40k steps, prioritized; then rounds of "a batch of 256, 3 ms of a
consumer". The consumer is a program that waits (``wait``), torch on one core or the GPU
(``compute``), or Python itself (``python``, which holds the interpreter's lock). Rivals:

    plain      ReplaySampler
    prefetch   PrefetchingSampler, two batches ahead
    resident   all tokens live on the device; a buffer of pointers to them draws, one gather a batch

Equal answers: from equal buffers all three give the same batches. Runs on the CPU, and on CUDA
where there is one; there the time ends when the last kernel has. Adding is not timed: the resident
store sends each step's frames to the device, 5 KB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from wmfast import TokenReplay
from wmfast.replay import PrefetchingSampler, ReplaySampler
from wmfast.types import Transitions

ENVS, TOKENS, CAPACITY, BATCH = 8, 336, 40_000, 256
CONSUMER_S = 0.003
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

Step = tuple[NDArray[np.generic], ...]


class ResidentSampler:
    """Tokens on the device; a ``TokenReplay`` of two-token pointers to them does all the rest."""

    def __init__(self, device: str) -> None:
        slots = CAPACITY // ENVS + 1  # a row is overwritten when no history reaches it any more
        self.tokens_rk = torch.zeros((slots * ENVS, TOKENS), dtype=torch.int16, device=device)
        self.pointers = buffer((2,), vocab_size=65536)
        self.sampler = ReplaySampler(self.pointers, device)
        self.slots, self.steps = slots, 0

    def add(self, frames: NDArray[np.uint16], *what_they_brought: NDArray[np.generic]) -> None:
        first = self.steps % self.slots * ENVS
        self.steps += 1
        self.tokens_rk[first : first + ENVS] = torch.from_numpy(frames.view(np.int16))
        row = np.arange(first, first + ENVS)
        pointers = np.stack([row >> 16, row & 0xFFFF], axis=1).astype(np.uint16)
        self.pointers.add(pointers, *what_they_brought)

    def transitions(self, batch_size: int) -> tuple[Transitions, NDArray[np.int64]]:
        batch, index = self.sampler.transitions(batch_size)
        state, next_state = (
            self.tokens_rk[(pointer[..., 0] << 16) + pointer[..., 1]].long()
            for pointer in (batch.state_btk, batch.next_state_btk)
        )
        return batch._replace(state_btk=state, next_state_btk=next_state), index


def buffer(frame_shape: tuple[int, ...], vocab_size: int = 512) -> TokenReplay:
    return TokenReplay(CAPACITY, ENVS, frame_shape=frame_shape, vocab_size=vocab_size, seed=5)


def steps() -> Iterator[Step]:
    """Enough to go round the ring."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 512, (97, ENVS, TOKENS), dtype=np.uint16)
    for t in range(CAPACITY // ENVS + 100):
        yield (
            frames[t % 97],
            rng.integers(0, 18, ENVS),
            rng.normal(size=ENVS).astype(np.float32),
            rng.random(ENVS) < 0.002,
            rng.random(ENVS) < 0.001,
        )


Samplers = dict[str, ReplaySampler | PrefetchingSampler | ResidentSampler]


@pytest.fixture(scope="module", params=DEVICES)
def samplers(request: pytest.FixtureRequest) -> Iterator[Samplers]:
    """The three, their buffers filled alike; the answers are equal."""
    device = request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain, resident = ReplaySampler(buffer((TOKENS,)), device), ResidentSampler(device)
    with PrefetchingSampler(buffer((TOKENS,)), device) as prefetch:
        rivals = {"plain": plain, "prefetch": prefetch, "resident": resident}
        for step in steps():
            for target in (plain.replay, prefetch.replay, resident):
                target.add(*step)
        for _ in range(20):
            drawn = {name: sampler.transitions(BATCH) for name, sampler in rivals.items()}
            expected, expected_index = drawn["plain"]
            assert expected.state_btk.device.type == device
            for batch, index in drawn.values():
                assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
                assert (index == expected_index).all()
        yield rivals
    torch.set_num_threads(threads)


def consumer(kind: str, device: str) -> Callable[[], object]:
    """Something that takes CONSUMER_S, as measured now."""
    if kind == "wait":
        return lambda: time.sleep(CONSUMER_S)
    if kind == "python":

        def count() -> None:
            end = time.perf_counter() + CONSUMER_S
            while time.perf_counter() < end:
                pass

        return count
    size = 256 if device == "cpu" else 2048
    factor = torch.randn(size, size, device=device) / size**0.5

    def multiply(times: int) -> torch.Tensor:
        product = factor
        for _ in range(times):
            product = product @ factor
        return product

    multiply(50).sum().item()
    times = [elapsed(lambda: multiply(200).sum().item()) for _ in range(3)]
    needed = max(1, round(200 * CONSUMER_S / sorted(times)[1]))
    return lambda: multiply(needed)


def elapsed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@pytest.mark.parametrize("side", ["plain", "prefetch", "resident"])
@pytest.mark.parametrize("kind", ["wait", "compute", "python"])
def test_step(benchmark: BenchmarkFixture, samplers: Samplers, kind: str, side: str) -> None:
    """A batch, its use, and on a GPU the end of both."""
    sampler = samplers[side]
    device = sampler.transitions(BATCH)[0].state_btk.device.type
    benchmark.group = f"batch of {BATCH} on {device}, then 3 ms of {kind}"
    consume = consumer(kind, device)

    def steps() -> None:
        for _ in range(10):
            sampler.transitions(BATCH)
            consume()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(steps, rounds=20, warmup_rounds=2)
    benchmark.extra_info["steps_per_round"] = 10
