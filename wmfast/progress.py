"""What a person sees while training: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wmfast.closing import Summary, closing_table
from wmfast.stopwatch import Stopwatch
from wmfast.wording import duration, fold, is_terminal, number, percent, print_plain

__all__ = ["Reporter", "Stopwatch", "Summary", "closing_table"]

LABELS = {
    "collect/return": "score",
    "eval/greedy/return": "last eval",
    "tokenizer/train/loss": "tokenizer loss",
    "agent/train/loss": "agent loss",
    "world_model/train/token_loss": "world model loss",
    "world_model/train/changed_accuracy": "changed tokens right",
    "collect/epsilon": "epsilon",
}
"""The metrics that are shown, and what they are called."""

_EVAL, _BEST_EVAL = "last eval", "best eval"
_SHARES = ("changed tokens right",)
_RATE_WINDOW_S = 20.0
_SAMPLE_EVERY_S = 0.5


class Reporter:
    """Shows phase, progress, speed, time left, score and losses.

        with Reporter.create(config.steps) as reporter:
            reporter.phase("training", total=config.steps, unit="env steps")
            reporter.advance_to(env_step)
            reporter.update(log.log(...))
            with reporter.aside("evaluating", total=10, unit="games"):
                reporter.advance(1)

    On a terminal this is a bar that rich redraws four times a second; elsewhere (or with TERM=dumb)
    a plain line at most each `every_s` seconds, and one where a phase begins or ends, without
    escape codes.
    """

    def __init__(
        self, total_steps: int, stream: TextIO, *, every_s: float, now: Callable[[], float]
    ) -> None:
        self._stream = stream
        self._every_s = every_s
        self._now = now
        self._begun = self._last_line = now()
        self._phase = _Phase("starting", total_steps, "env steps", 0, self._begun)
        self._values: dict[str, float | None] = {}
        self._live: Live | None = None
        if is_terminal(stream):
            console = Console(file=stream, highlight=False)
            self._live = Live(console=console, get_renderable=self._render, transient=True)

    @classmethod
    def create(
        cls,
        total_steps: int,
        *,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> Reporter:
        """A reporter on `stream` (standard output unless given) for a run of `total_steps`."""
        return cls(total_steps, stream or sys.stdout, every_s=every_s, now=now)

    def __enter__(self) -> Reporter:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_phase()
        if self._live:
            self._live.stop()

    def phase(self, name: str, total: int, *, completed: int = 0, unit: str = "steps") -> None:
        """Ends the phase before and begins one of `total` units, `completed` of which are done."""
        self._finish_phase()
        self._values = {}
        self._phase = _Phase(name, total, unit, completed, self._now())
        if not self._live:
            self._line(f"{name}, {total:,} {unit}")

    @contextmanager
    def aside(self, name: str, total: int, *, unit: str = "steps") -> Iterator[None]:
        """A short phase within the phase, whose progress and speed it leaves as they are."""
        outer, begun = self._phase, self._now()
        self._phase = _Phase(name, total, unit, 0, begun)
        try:
            yield
        finally:
            outer.aside_s += self._now() - begun
            self._phase = outer

    def advance(self, count: int = 1) -> None:
        """The phase is `count` units further."""
        self.advance_to(self._phase.done + count)

    def advance_to(self, done: int) -> None:
        """`done` units of the phase are done."""
        now = self._now()
        self._phase.move_to(done, now)
        if not self._live and now - self._last_line >= self._every_s:
            self._line("  ".join([self._phase.name, *self._progress(now), *self._shown()]))

    def update(self, values: Mapping[str, float | None]) -> None:
        """Takes a row of metrics: those in `LABELS` are shown, and every name without a slash but
        for the columns of each row (env_step, train_step, wall_s)."""
        shown = dict(self._values)
        for key, value in values.items():
            if key in LABELS:
                shown[LABELS[key]] = value
            elif "/" not in key and key not in ("env_step", "train_step", "wall_s"):
                shown[key] = value
        if (last := shown.get(_EVAL)) is not None:
            best = shown.get(_BEST_EVAL)
            shown[_BEST_EVAL] = last if best is None else max(best, last)
        self._values = shown  # whole, for rich draws in a thread of its own

    def message(self, text: str) -> None:
        """A line that stays."""
        if self._live:
            self._live.console.print(Text(text))
        else:
            self._line(text)

    def _finish_phase(self) -> None:
        phase, now = self._phase, self._now()
        if phase.done == phase.completed:
            return
        took = phase.active_s(now)
        rate = number((phase.done - phase.completed) / took) if took > 0 else "-"
        self.message(
            f"{phase.name}: {phase.done:,} of {phase.total:,} {phase.unit} "
            f"in {duration(took)}, {rate} {phase.unit}/s"
        )

    def _progress(self, now: float) -> list[str]:
        phase = self._phase
        share = f"{phase.done / phase.total:.0%}" if phase.total else "-"
        return [
            f"{phase.done:,}/{phase.total:,}",
            share,
            f"{number(phase.rate(now))} {phase.unit}/s",
            f"ETA {duration(phase.left_s(now))}",
        ]

    def _shown(self) -> list[str]:
        values = self._values
        return [
            f"{name} {percent(value) if name in _SHARES else number(value)}"
            for name, value in values.items()
        ]

    def _line(self, text: str) -> None:
        self._last_line = self._now()
        elapsed = duration(self._last_line - self._begun)
        print_plain(f"[{elapsed:>7}] {text}", self._stream)

    def _render(self) -> RenderableType:
        now, phase = self._now(), self._phase
        done, share, rate, left = self._progress(now)
        bar = Table.grid(padding=(0, 1), expand=True)
        for _ in range(2):
            bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        for _ in range(3):
            bar.add_column(justify="right", no_wrap=True)
        total = float(max(1, phase.total))
        bar.add_row(
            Text(phase.name, style="bold"),
            duration(phase.active_s(now)),
            ProgressBar(total=total, completed=min(float(phase.done), total)),
            share,
            done,
            Text(left, style="cyan"),
        )
        width = self._live.console.width if self._live else 80
        return Group(bar, *map(Text, fold([rate, *self._shown()], width)))


@dataclass
class _Phase:
    """A stretch of work of one kind; times in it leave out the asides."""

    name: str
    total: int
    unit: str
    completed: int
    begun: float
    done: int = field(init=False)
    aside_s: float = 0.0
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.done = self.completed
        self.samples.append((0.0, self.completed))

    def active_s(self, now: float) -> float:
        return now - self.begun - self.aside_s

    def move_to(self, done: int, now: float) -> None:
        self.done = done
        active = self.active_s(now)
        if active - self.samples[-1][0] >= _SAMPLE_EVERY_S:
            self.samples.append((active, done))
            while active - self.samples[0][0] > _RATE_WINDOW_S and len(self.samples) > 2:
                self.samples.popleft()

    def rate(self, now: float) -> float | None:
        """Units a second, lately; None until there is something to tell it by."""
        since, done = self.samples[0]
        elapsed = self.active_s(now) - since
        return (self.done - done) / elapsed if elapsed > 0 and self.done > done else None

    def left_s(self, now: float) -> float | None:
        rate = self.rate(now)
        return (self.total - self.done) / rate if rate else None
