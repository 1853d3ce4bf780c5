"""How index draw and priority update slow down from 10k to 10M steps stored, priorities random.

10M frames of 672 bytes don't fit into memory: frames are one token here and histories one frame, so
that the gather of frames is negligible. What is read of a row (action, reward, flags) is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from replay_stream import ENVS
from replay_timing import quartiles
from rivals import ALPHA, BETA, MissingRival, load

from wmfast import TokenReplay

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
BATCH, CALLS, ROUNDS = 256, 50, 60

DrawAndUpdate = Callable[[np.ndarray[Any, np.dtype[np.float32]]], None]


def _ours(size: int) -> DrawAndUpdate:
    replay = TokenReplay(size, ENVS, frame_shape=(1,), history=1, alpha=ALPHA)
    zeros = np.zeros(ENVS, np.int64), np.zeros(ENVS, np.float32), *[np.zeros(ENVS, bool)] * 2
    frames = np.zeros((ENVS, 1), np.uint16)
    for _ in range(size // ENVS):
        replay.add(frames, *zeros)
    rng = np.random.default_rng(0)
    for index in np.array_split(np.arange(size), max(1, size // 100_000)):
        replay.update_priorities(index, rng.random(len(index)) + 0.05)

    def work(priority: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        replay.update_priorities(replay.sample(BATCH, beta=BETA).index, priority)

    return work


def _numpy(size: int) -> DrawAndUpdate:
    """The hand-written tree alone: no fields at all."""
    from rivals.numpy_rings import NumpySumTree

    tree = NumpySumTree(size)
    rng = np.random.default_rng(0)
    tree.set(np.arange(size), rng.random(size) + 0.05)

    def work(priority: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        part = np.arange(BATCH) + rng.random(BATCH)
        leaf = tree.find(part * (tree.nodes[1] / BATCH))
        weight = tree.nodes[leaf + tree.leaf_0] ** -BETA
        weight /= weight.max()
        tree.set(leaf, priority.astype(np.float64) ** ALPHA)

    return work


def _cpprb(size: int) -> DrawAndUpdate:
    load("cpprb")
    from cpprb import PrioritizedReplayBuffer

    fields = {name: {"dtype": np.uint16} for name in ("obs", "next_obs")}
    buffer = PrioritizedReplayBuffer(size, fields, alpha=ALPHA)
    rng = np.random.default_rng(0)
    for index in np.array_split(np.arange(size), max(1, size // 100_000)):
        frames = np.zeros(len(index), np.uint16)
        buffer.add(obs=frames, next_obs=frames, priorities=rng.random(len(index)) + 0.05)

    def work(priority: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        buffer.update_priorities(buffer.sample(BATCH, BETA)["indexes"], priority)

    return work


def _grown(make: Callable[[int], DrawAndUpdate]) -> dict[str, Any]:
    """All sizes in turn, round by round."""
    works = [make(size) for size in SIZES]
    rng = np.random.default_rng(3)
    taken = np.empty((ROUNDS, len(SIZES)))
    for i in range(ROUNDS):
        for k, work in enumerate(works):
            priorities = rng.random((CALLS, BATCH), np.float32) + 0.05
            begin = time.perf_counter()
            for priority in priorities:
                work(priority)
            taken[i, k] = (time.perf_counter() - begin) / CALLS * 1e6
    return {
        "sizes": list(SIZES),
        "us": [quartiles(column) for column in taken.T],
        "growth": quartiles(taken[:, -1] / taken[:, 0]),
    }


def measure() -> dict[str, Any]:
    """By name: microseconds a call at each size, and growth = last / first."""
    found: dict[str, Any] = {}
    for name, make in {"wmfast": _ours, "numpy": _numpy, "cpprb": _cpprb}.items():
        try:
            found[name] = _grown(make)
        except MissingRival as missing:
            found[name] = {"missing": str(missing)}
            continue
        medians = ", ".join(f"{us['median']:.1f}" for us in found[name]["us"])
        print(f"{name:16} {medians} us; x{found[name]['growth']['median']:.2f}", flush=True)
    return found
