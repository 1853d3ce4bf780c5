"""Where the time went: exclusive wall seconds by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Stopwatch:
    """``with clock("agent"): ...`` books the time within, less that of stopwatch blocks in it.

    A block costs about a microsecond. It measures the host: work queued on a GPU is booked where
    the host waits for it. For one thread.

    Args:
        seconds: what an earlier part of the run has booked (a resumed run goes on counting).
    """

    def __init__(
        self,
        seconds: Mapping[str, float] | None = None,
        *,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._seconds = dict(seconds or {})
        self._now = now
        self._open: list[str] = []
        self._mark = 0.0
        self._blocks: dict[str, _Block] = {}

    def __call__(self, name: str) -> _Block:
        """The block of that name; blocks nest, also in themselves."""
        block = self._blocks.get(name)
        if block is None:
            block = self._blocks[name] = _Block(self, name)
            self._seconds.setdefault(name, 0.0)
        return block

    def seconds(self) -> dict[str, float]:
        """Booked seconds by name, open blocks included."""
        self._book()
        return dict(self._seconds)

    def restore(self, seconds: Mapping[str, float]) -> None:
        """Starts over from what an earlier part of the run has booked."""
        self._seconds = dict(seconds)
        for name in self._blocks:
            self._seconds.setdefault(name, 0.0)

    def enter(self, name: str) -> None:
        """Books the time so far to the block around, and opens this one."""
        self._book()
        self._open.append(name)

    def leave(self) -> None:
        """Books the time to the innermost block, and closes it."""
        self._book()
        self._open.pop()

    def _book(self) -> None:
        now = self._now()
        if self._open:
            self._seconds[self._open[-1]] += now - self._mark
        self._mark = now


class _Block:
    def __init__(self, clock: Stopwatch, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._clock.enter(self._name)

    def __exit__(self, *_: object) -> None:
        self._clock.leave()
