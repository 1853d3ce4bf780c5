"""Are a buffer's answers right? Asked of both sides before anything is timed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from replay_stream import ENVS, Ints, Stream
from rivals import ALPHA, BETA, Draw, Rival

BATCH = 256
BUCKETS = 32


def shares_right(buffer: Rival, stream: Stream, batches: int = 64) -> dict[str, float]:
    """Share of right values by field, over draws of both kinds."""
    counts = [
        stream.right(**_transitions(buffer, draw(BATCH)))
        for draw in (buffer.sample, buffer.window)
        for _ in range(batches)
    ]
    shares = {}
    for name in counts[0]:
        right, judged = np.sum([count[name] for count in counts], 0)
        shares[name] = float(right / max(judged, 1))
    return shares


def _transitions(buffer: Rival, draw: Draw) -> dict[str, NDArray[np.generic]]:
    arrays = buffer.arrays(draw)
    names = ("state", "next_state", "action", "reward", "terminated")
    return {name: np.asarray(arrays[name]) for name in names}


def require_right(shares: dict[str, float], buffer: Rival, always: bool) -> None:
    """``always`` for us; a rival may err at its newest record, and where it says that it does."""
    allowed = 1.0 if always else 0.98 if buffer.crosses_episodes else 0.995
    for name, share in shares.items():
        if name == "final_frame" and not buffer.keeps_final_frame:
            continue
        if share < allowed:
            raise AssertionError(f"{name} is right in {share:.4f} of the draws only")


def evenness(buffer: Rival, stream: Stream, stored: slice, batches: int = 200) -> float:
    """Largest deviation of 32 spans of time from their share, in standard deviations."""
    steps = np.concatenate(
        [_origin(buffer, stream, buffer.sample(BATCH))[1] for _ in range(batches)]
    )
    spans = np.linspace(stored.start, stored.stop, BUCKETS + 1)
    return _largest_deviation(np.histogram(steps, spans)[0], np.diff(spans))


def prioritized_errors(
    buffer: Rival, stream: Stream, stored: slice, batches: int = 200
) -> tuple[float, float]:
    """Sets priorities by a known rule, then draws: (deviation, weight error).

    The deviation is that of 32 bands of priority from their share of the sum, in standard
    deviations; the error the largest relative one of a weight. Weights are compared over the
    batch's largest, for that is what most libraries divide by.
    """
    priority = np.ones((stream.steps, ENVS))  # of a row that was never updated
    for _ in range(batches):
        draw = buffer.sample(BATCH)
        env, step = _origin(buffer, stream, draw)
        priority[step, env] = _rule(env, step)
        buffer.update(draw.index, priority[step, env].astype(np.float32))
    drawn, error = [], 0.0
    for _ in range(batches):
        draw = buffer.sample(BATCH)
        env, step = _origin(buffer, stream, draw)
        drawn.append(np.stack([step, env]))
        want = priority[step, env] ** (-ALPHA * BETA)
        weight = np.asarray(buffer.arrays(draw)["weight"], np.float64)
        error = max(error, float(np.abs(weight / weight.max() / (want / want.max()) - 1).max()))
    step, env = np.concatenate(drawn, 1)
    envs = np.unique(env)
    mass = priority[stored][:, envs] ** ALPHA
    # Bands of priority of about equal mass, the many rows that were never updated in the last.
    bands = np.append(np.quantile(mass[mass < 1], np.linspace(0, 1, BUCKETS)), 1.0)
    bands[0], bands[-2] = 0.0, (bands[-2] + 1) / 2
    counts = np.histogram(priority[step, env] ** ALPHA, bands)[0]
    shares = np.histogram(mass, bands, weights=mass)[0]
    return _largest_deviation(counts, shares), error


def _rule(env: Ints, step: Ints) -> NDArray[np.float64]:
    return 0.05 + 0.9 * ((step * 37 + env * 11) % 101) / 101


def _origin(buffer: Rival, stream: Stream, draw: Draw) -> tuple[Ints, Ints]:
    return stream.origin(np.asarray(buffer.arrays(draw)["state"]))


def _largest_deviation(counts: Ints, weight: NDArray[np.floating]) -> float:
    share = weight / weight.sum()
    total = counts.sum()
    return float(np.abs((counts - total * share) / np.sqrt(total * share * (1 - share))).max())
