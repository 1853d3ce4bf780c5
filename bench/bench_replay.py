"""TokenReplay beside other replay buffers: adding, uniform draws, the prioritized loop.

A quick look at 40k steps; ``make bench-replay`` measures 200k with both sides in turn, and writes
the table. The answers of both sides are compared with an identifiable stream before any timing. A
library that is not installed is skipped with the reason; the numpy rings are always there.
"""

from __future__ import annotations

import functools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from replay_pieces import check, fill
from replay_timing import ROWS, Feed, Side
from rivals import RIVALS, MissingRival, load

CAPACITY, FILLED = 40_000, 39_000
CALLS = 8

# Other libraries' deprecations are not ours to fix.
pytestmark = pytest.mark.filterwarnings("default")


@functools.lru_cache(maxsize=1)  # the tests come in this order
def filled(name: str, prioritized: bool) -> tuple[Side, Side, Feed]:
    """Both buffers with the same stream; the answers of both are right."""
    ours, its, stream, feed = fill(load(name), prioritized, CAPACITY, FILLED)
    for side in (ours, its):
        check(side, stream, FILLED, prioritized)
    return ours, its, feed


@pytest.mark.parametrize(
    ("name", "key", "side"),
    [
        (name, key, side)
        for name in RIVALS
        for prioritized in (False, True)
        for key, row in ROWS.items()
        if row.prioritized == prioritized
        for side in ("wmfast", "rival")
    ],
)
def test_row(benchmark: BenchmarkFixture, name: str, key: str, side: str) -> None:
    """Times are of CALLS calls."""
    row = ROWS[key]
    try:
        rival = load(name)
    except MissingRival as missing:
        pytest.skip(str(missing))
    if row.prioritized not in rival.modes:
        pytest.skip(f"{name}: {rival.why_not_prioritized}")
    ours, its, feed = filled(name, row.prioritized)
    benchmark.group = f"{key}, {name}"
    benchmark.extra_info["calls"] = CALLS
    chosen = ours if side == "wmfast" else its
    benchmark.pedantic(
        row.work, setup=lambda: ((chosen, feed.inputs(row, CALLS)), {}), rounds=40, warmup_rounds=2
    )
