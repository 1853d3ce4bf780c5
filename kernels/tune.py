"""Time configs of the kernels on the GPU here; write the best to the table.

    python -m wmfast.kernels.tune [--only NAME] [--budget SECONDS] [--table FILE]

Tuned are the entries that the models use, for the GPU here: ``nearest_code`` (float32) in all its
buckets, ``code_sums``, and ``film_attention``, forward and backward, in bfloat16 with heads of 64,
for a batch of 32 and of 1 (``d64`` and ``d64-few``). All other entries stay as they are.
NAME is part of "op dtype bucket", or all of it for one entry: ``--only "nearest_code any d256"``.

The table is written after each entry, so that a run that is stopped keeps what it found. With a
budget each entry gets its share of the time that is left, and configs beyond it are not tried.
A config whose answer is not that of the config in the table is never taken; one that needs more
than the GPU has is passed over, be it the one in the table. Exit status 2 without a CUDA device.
Look at the new table with ``python -m wmfast.kernels.lint`` before it is committed.

A module with kernels stands in ``MODULES`` and has ``tunables(device) -> Iterator[Tunable]``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.launch import Config, Table

MODULES = (
    "wmfast.kernels.nearest_code_cases",
    "wmfast.kernels.film_attention_cases",
    "wmfast.kernels.code_sums_triton",
)
_CALLS = 20  # in one graph: the time of a launch must not hide that of a short kernel
_REPLAYS = 9
_GAIN = 0.98  # a config in the table stays unless another is 2 % faster

Timer = Callable[[Callable[[], Tensor]], float]


class Tunable(NamedTuple):
    """One entry of the table: which configs may serve, and a call on data of its shape."""

    op: str
    dtype: str
    bucket: str
    candidates: tuple[Config, ...]
    call: Callable[[Config], Tensor]

    @property
    def name(self) -> str:
        """What ``--only`` looks at."""
        return f"{self.op} {self.dtype} {self.bucket}"


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The graph of one ``call``; one that cannot be captured leaves the current stream current."""
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        torch.cuda.set_stream(before)
    return graph


def graph_seconds(call: Callable[[], object]) -> float:
    """Seconds of one ``call`` on the GPU: the median over replays of a graph of 20 calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and fills the allocator
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = captured(lambda: [call() for _ in range(_CALLS)])
    seconds = []
    for _ in range(_REPLAYS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(float(begin.elapsed_time(end)) / 1e3 / _CALLS)
    return float(statistics.median(seconds[2:]))


def same(answer: Tensor, truth: Tensor) -> bool:
    """Equal integers; floats but for what another order of a bfloat16 sum may change."""
    if not truth.is_floating_point():
        return torch.equal(answer, truth)
    return bool((answer - truth).abs().max() <= 0.02 * truth.abs().max())


def pick(
    tunable: Tunable, current: Config, timer: Timer, late: Callable[[], bool] = lambda: False
) -> tuple[Config, list[str]]:
    """The fastest config that gives the answer of ``current``, and a line about each.

    Where ``current`` does not run here, the first candidate that does takes its place; where none
    runs, ``current`` stays. None is tried once ``late()``.
    """
    truth: Tensor | None = None
    best, least, lines = current, math.inf, []
    configs = (current, *(c for c in tunable.candidates if c != current))
    for tried, config in enumerate(configs):
        if late():
            lines.append(f"{len(configs) - tried} of {len(configs)} configs left out: no time left")
            return best, lines
        words = f"{config} (in the table)" if config == current else f"{config}"
        try:
            answer = tunable.call(config)
            seconds = timer(lambda config=config: tunable.call(config))  # type: ignore[misc]
        except Exception as error:  # too large for this GPU: of many kinds, by version of Triton
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            lines.append(f"        -     {words}: {reason[:120]}")
            continue
        truth = answer if truth is None else truth
        equal = same(answer, truth)
        lines.append(f"{seconds * 1e6:9.1f} us  {words}{'' if equal else ': ANOTHER ANSWER'}")
        needed = least * (_GAIN if best == current else 1)
        if equal and seconds < needed:
            best, least = config, seconds
    return best, lines if truth is not None else [*lines, "no config runs here, the table stays"]


def tuned(
    table: Table,
    tunables: Sequence[Tunable],
    sm: int,
    timer: Timer,
    budget: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Table]:
    """The table after each tunable, with the best configs so far; prints what was timed.

    Each gets an equal share of what is left of ``budget`` seconds, as told by ``clock``.
    """
    table = copy.deepcopy(table)
    deadline = clock() + budget
    for done, tunable in enumerate(tunables):
        row = table[tunable.op][f"sm{sm}"][tunable.dtype]
        end = clock() + (deadline - clock()) / (len(tunables) - done)
        best, lines = pick(
            tunable,
            row[tunable.bucket],
            timer,
            lambda end=end: clock() >= end,  # type: ignore[misc]
        )
        print(f"{tunable.op} sm{sm} {tunable.dtype} {tunable.bucket}", *lines, sep="\n  ")
        row[tunable.bucket] = best
        yield copy.deepcopy(table)


def select(tunables: Sequence[Tunable], only: str) -> list[Tunable]:
    """The one of that name; where none has it, those with ``only`` in their name."""
    return [t for t in tunables if t.name == only] or [t for t in tunables if only in t.name]


def write(table: Table, file: Path) -> None:
    """Replace ``file`` at once, so that no reader sees half of it."""
    beside = file.with_suffix(".new")
    text = json.dumps(table, indent=2)
    # a config is a line
    text = re.sub(r"{[^{}]*}", lambda m: "{" + " ".join(m[0][1:-1].split()) + "}", text)
    beside.write_text(text + "\n")
    beside.replace(file)


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m wmfast.kernels.tune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", help="NAME: part of an entry, or all of it")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds; inf if not given")
    parser.add_argument("--table", type=Path, default=launch.TABLE_FILE, help="file to write")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("tune: no CUDA device is visible here, so there is nothing to time", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    found = [t for name in MODULES for t in importlib.import_module(name).tunables(device)]
    wanted = select(found, options.only)
    if not wanted:
        names = ", ".join(repr(tunable.name) for tunable in found)
        print(
            f"tune: no entry has {options.only!r} in its name; there are {names}", file=sys.stderr
        )
        return 2
    sm = launch.sm_of(device)
    for table in tuned(launch.table(), wanted, sm, graph_seconds, options.budget):
        write(table, options.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
