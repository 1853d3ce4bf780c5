"""Numbers and durations as a person reads them, and whether a person is reading."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TextIO


def number(value: float | None) -> str:
    """1234.5 as 1,234; 0.01234 as 0.0123; whole numbers without decimals; nothing as a dash."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value) or value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """0.123 as 12.3 %."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """3725.2 as 1:02:05, 65 as 1:05."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that understands escape codes, whatever FORCE_COLOR says."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def print_plain(text: str, stream: TextIO) -> None:
    """Prints a line at once; what the stream's encoding lacks becomes a question mark.

    A reader that has gone (``| head -1``) stops nobody: this line and all later ones are lost.
    """
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        _into_nothing(stream)


def _into_nothing(stream: TextIO) -> None:
    """What the stream still buffers must go somewhere, or Python fails at exit with status 120."""
    with contextlib.suppress(OSError):  # no file is behind it: nothing to divert
        descriptor = stream.fileno()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


def fold(words: list[str], width: int, *, between: str = " · ") -> list[str]:
    """Joins words to lines of at most `width` columns, breaking only between words."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(between) + len(word) <= width:
            lines[-1] += between + word
        else:
            lines.append(word)
    return lines
