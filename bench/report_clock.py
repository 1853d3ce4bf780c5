"""How the GPU report times: device, sizes and the time that is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from wmfast.kernels.tune import graph_seconds

Row = dict[str, Any]
LEFT_OUT: Row = {"result": "left out: no time left"}


class Clock:
    """Times calls on the GPU, or on the CPU in a dry run there.

    Attributes:
        dry: sizes are to be tiny, and nothing is compiled for speed.
        device: where everything runs.
    """

    def __init__(self, dry: bool, deadline: float) -> None:
        self.dry = dry
        self.deadline = deadline
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dry:
            torch.set_num_threads(1)  # two that wait for each other are slow on a busy machine

    def compile(
        self, function: Callable[..., Any], *, fullgraph: bool = False
    ) -> Callable[..., Any]:
        """``torch.compile``; in a dry run without the compiler behind it, which takes minutes.

        For the very shapes it gets: code for sizes of any value is slower, and torch would write
        it from the second shape on, and none at all from the ninth. What was compiled before is
        forgotten.
        """
        torch.compiler.reset()
        backend = "eager" if self.dry else "inductor"
        return torch.compile(function, backend=backend, dynamic=False, fullgraph=fullgraph)

    def late(self) -> bool:
        """Whether the time of this section is spent."""
        return time.perf_counter() > self.deadline

    def seconds(self, call: Callable[[], object], *, graph: bool = True) -> float:
        """Median seconds of ``call``, inside a CUDA graph unless told otherwise."""
        if self.device.type == "cuda" and graph:
            return graph_seconds(call)
        call()
        times = []
        for _ in range(1 if self.dry else 15):
            start = time.perf_counter()
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def row(
        self,
        name: str,
        way: str,
        make: Callable[[], Callable[[], object]],
        *,
        rival: bool = False,
        graph: bool = True,
    ) -> Row:
        """Time what ``make`` gives; an error, or no time left, is what the row says instead."""
        row: Row = {"name": name, "way": way, "rival": rival}
        if self.late():
            return row | LEFT_OUT
        try:
            return row | {"us": self.seconds(make(), graph=graph) * 1e6}
        except ModuleNotFoundError as error:
            return row | {"result": f"not installed: {error.name}"}
        except Exception as error:
            return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def compare(rows: list[Row]) -> list[Row]:
    """Say of our own row how many times the best rival's speed it has."""
    rivals = [row["us"] for row in rows if row["rival"] and "us" in row]
    for row in rows:
        if "us" in row and not row["rival"] and rivals:
            row["times_best_rival"] = min(rivals) / row["us"]
    return rows
