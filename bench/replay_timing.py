"""The timed work: rows of the table, our side and a rival's in turn (ours, its, its, ours, ...)."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from replay_stream import Step, Stream
from rivals import Rival

CALLS = 64  # of a block


@dataclass
class Side:
    """A filled buffer and what its calls need."""

    buffer: Rival
    indices: dict[int, list[Any]] = field(default_factory=dict)  # drawn ids by batch size

    def drawn(self, batch_size: int) -> list[Any]:
        if batch_size not in self.indices:
            draws = [self.buffer.sample(batch_size) for _ in range(CALLS)]
            self.indices[batch_size] = [draw.index for draw in draws]
        return self.indices[batch_size]


@dataclass
class Inputs:
    """What both sides get in one round, made before the clock starts."""

    steps: list[Step]
    priorities: np.ndarray[Any, np.dtype[np.float32]]  # (calls, B) never the same


Work = Callable[[Side, Inputs], None]


@dataclass(frozen=True)
class Row:
    title: str
    prioritized: bool
    work: Work
    batch_size: int = 256
    adds: bool = False


def _add(side: Side, inputs: Inputs) -> None:
    add = side.buffer.add
    for step in inputs.steps:
        add(step)


def _sample(batch_size: int) -> Work:
    def work(side: Side, inputs: Inputs) -> None:
        sample = side.buffer.sample
        for _ in inputs.priorities:
            sample(batch_size)

    return work


def _window(side: Side, inputs: Inputs) -> None:
    window = side.buffer.window
    for _ in inputs.priorities:
        window(256)


def _update(batch_size: int) -> Work:
    def work(side: Side, inputs: Inputs) -> None:
        update = side.buffer.update
        for index, priority in zip(side.drawn(batch_size), inputs.priorities, strict=False):
            update(index, priority)

    return work


def _loop(side: Side, inputs: Inputs) -> None:
    buffer = side.buffer
    for step, priority in zip(inputs.steps, inputs.priorities, strict=True):
        buffer.add(step)
        draw = buffer.sample(256)
        buffer.update(draw.index, priority)


ROWS = {
    "loop_256": Row("add 8 + PER sample 256 + update 256", True, _loop, adds=True),
    "per_256": Row("PER sample 256 with weights", True, _sample(256)),
    "window_256": Row("window=True sample 256", False, _window),
    "uniform_32": Row("uniform sample 32", False, _sample(32)),
    "uniform_256": Row("uniform sample 256", False, _sample(256)),
    "uniform_1024": Row("uniform sample 1024", False, _sample(1024)),
    "update_256": Row("update 256 priorities", True, _update(256)),
    "update_1024": Row("update 1024 priorities", True, _update(1024), batch_size=1024),
    "add_8": Row("add, 8 envs a call, no priorities", False, _add, adds=True),
    "add_8_per": Row("add, 8 envs a call, prioritized", True, _add, adds=True),
}


class Feed:
    """Goes on with the stream from ``position``."""

    def __init__(self, stream: Stream, position: int, stacks: bool) -> None:
        self.stream, self.position, self.stacks = stream, position, stacks
        self.rng = np.random.default_rng(3)

    def inputs(self, row: Row, calls: int) -> Inputs:
        steps: list[Step] = []
        if row.adds:
            end = self.position + calls
            if end > self.stream.steps:
                raise ValueError(f"the stream ends at step {self.stream.steps}, asked for {end}")
            steps = list(self.stream.play(self.position, end, self.stacks))
            self.position = end
        priorities = self.rng.random((calls, row.batch_size), np.float32) * 0.95 + 0.05
        return Inputs(steps, priorities)


def seconds(row: Row, side: Side, inputs: Inputs) -> float:
    gc.disable()
    begin = time.perf_counter()
    row.work(side, inputs)
    taken = time.perf_counter() - begin
    gc.enable()
    return taken


def compare(row: Row, ours: Side, rival: Side, feed: Feed, budget_s: float) -> dict[str, Any]:
    """Medians and quartiles of microseconds a call, and of the ratio rival / ours by round."""
    if not row.adds and row.work.__qualname__.startswith("_update"):
        ours.drawn(row.batch_size), rival.drawn(row.batch_size)
    inputs = feed.inputs(row, 4)
    slow = sum(seconds(row, side, inputs) for side in (ours, rival)) / 4
    calls = int(np.clip(0.02 / slow, 4, CALLS))
    rounds = int(np.clip(budget_s / (slow * calls), 12, 200)) // 2 * 2
    taken = np.empty((rounds, 2))
    for i in range(rounds):
        inputs = feed.inputs(row, calls)
        order = (0, 1) if i % 2 == 0 else (1, 0)
        for side in order:
            taken[i, side] = seconds(row, (ours, rival)[side], inputs) / calls * 1e6
    return {
        "wmfast_us": quartiles(taken[:, 0]),
        "rival_us": quartiles(taken[:, 1]),
        "ratio": quartiles(taken[:, 1] / taken[:, 0]),
        "rounds": rounds,
        "calls": calls,
    }


def quartiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {
        "median": round(float(median), 3),
        "q1": round(float(low), 3),
        "q3": round(float(high), 3),
    }
