"""Pieces of the comparison, each in a process of its own: ``python bench/replay_pieces.py cpprb``.

A piece is a rival's name (answers, then every row it can do), ``memory`` or ``growth``; it leaves
build/bench-replay/<piece>.json for replay_report.py to merge.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import replay_growth
import replay_memory
from replay_answers import evenness, prioritized_errors, require_right, shares_right
from replay_stream import ENVS, Stream
from replay_timing import ROWS, Feed, Side, compare
from rivals import RIVALS, MissingRival, Rival, load
from rivals.wmfast_replay import WmfastReplay

PIECES_DIR = Path("build/bench-replay")
CAPACITY, FILLED = 200_000, 195_000
WEIGHT_ERROR = 2e-3  # float32 trees
# A batch of 1024 is 5.5 MB of new arrays. If glibc hands such memory back to the system after each
# batch (it may or may not, by the luck of the heap's state), 1300 page faults cost five times the
# work itself, on both sides alike.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
SPARE_STEPS = 20_000  # of the stream, for the timed adds


def fill(
    rival: type[Rival], prioritized: bool, capacity: int, filled: int
) -> tuple[Side, Side, Stream, Feed]:
    """Both buffers with the same stream."""
    stream = Stream(filled // ENVS + SPARE_STEPS)
    ours, its = WmfastReplay(capacity, prioritized), rival(capacity, prioritized)
    for step in stream.play(0, filled // ENVS, stacks=rival.stacks):
        ours.add(step)
        its.add(step)
    return Side(ours), Side(its), stream, Feed(stream, filled // ENVS, rival.stacks)


def check(side: Side, stream: Stream, filled: int, prioritized: bool) -> dict[str, Any]:
    """The answers of one side; raises AssertionError where they are wrong."""
    buffer = side.buffer
    shares = shares_right(buffer, stream)
    require_right(shares, buffer, always=isinstance(buffer, WmfastReplay))
    stored = slice(0, filled // ENVS)
    found: dict[str, Any] = {"right": shares}
    if prioritized:
        deviation, error = prioritized_errors(buffer, stream, stored)
        found["weight_error"] = error
        assert error < WEIGHT_ERROR, f"a weight is off by {error}"
    else:
        deviation = evenness(buffer, stream, stored)
    found["deviation"] = deviation
    assert deviation < buffer.even_enough, f"draws deviate by {deviation} standard deviations"
    return found


def rival_piece(name: str, rows: list[str], budget_s: float) -> dict[str, Any]:
    rival = load(name)
    piece: dict[str, Any] = {"mode": rival.mode, "answers": {}, "rows": {}, "not_done": {}}
    piece["version"] = importlib.metadata.version(rival.package) if rival.package else ""
    for prioritized in (False, True):
        chosen = [key for key in rows if ROWS[key].prioritized == prioritized]
        if prioritized not in rival.modes:
            piece["not_done"] |= dict.fromkeys(chosen, rival.why_not_prioritized)
            continue
        if not chosen:
            continue
        ours, its, stream, feed = fill(rival, prioritized, CAPACITY, FILLED)
        kind = "prioritized" if prioritized else "uniform"
        piece["answers"][kind] = {
            "wmfast": check(ours, stream, FILLED, prioritized),
            "rival": check(its, stream, FILLED, prioritized),
        }
        for key in chosen:
            piece["rows"][key] = result = compare(ROWS[key], ours, its, feed, budget_s)
            print(
                f"{name:16} {key:12} {result['rival_us']['median']:9.1f} us,"
                f" wmfast {result['wmfast_us']['median']:8.1f} us,"
                f" ratio {result['ratio']['median']:6.2f}",
                flush=True,
            )
    return piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("piece", choices=[*RIVALS, "memory", "growth"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a row")
    options = parser.parse_args()
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():
        # glibc reads them when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED_MEMORY)
    begin = time.time()
    try:
        if options.piece == "memory":
            piece = replay_memory.measure(CAPACITY)
        elif options.piece == "growth":
            piece = replay_growth.measure()
        else:
            piece = rival_piece(options.piece, options.rows, options.budget)
    except MissingRival as missing:
        piece = {"missing": str(missing)}
        print(missing)
    PIECES_DIR.mkdir(parents=True, exist_ok=True)
    path = PIECES_DIR / f"{options.piece}.json"
    path.write_text(json.dumps(piece, indent=1))
    print(f"{path}: {time.time() - begin:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
