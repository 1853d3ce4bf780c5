"""Scores over seeds and games: means with intervals, and the aggregates of Agarwal et al. 2021.

"Deep reinforcement learning at the edge of the statistical precipice" (arXiv:2108.13264; rliable):
of scores normalised game by game, the interquartile mean (IQM) is the mean of what is left when
the lowest and the highest quarter of all runs are cut off; mean and median are those of the games'
means over seeds. Intervals are percentiles of a bootstrap that draws the seeds of each game anew
(stratified: no game gains or loses runs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2_000
_LEVEL = 0.95
_Z = 1.959964  # of the normal distribution, two-sided 95 %
# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, None where one run a game leaves none to be had."""

    value: float
    low: float | None = None
    high: float | None = None


def mean_over_seeds(scores: Sequence[float]) -> Estimate:
    """The mean of one game's runs with Student's t interval; none for a single run.

    Raises:
        ValueError: no score.
    """
    if not scores:
        raise ValueError("scores is empty: at least one run is needed")
    values = np.asarray(scores, np.float64)
    mean = float(values.mean())
    if len(values) == 1:
        return Estimate(mean)
    half = student_t(len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t for 1 or more degrees of freedom."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    # Cornish-Fisher (Abramowitz and Stegun 26.7.5): right to 0.001 from 30 on.
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)
    return _Z + (_Z**3 + _Z) / (4 * freedom) + second


def aggregate(scores: Mapping[str, Sequence[float]], *, seed: int = 0) -> dict[str, Estimate]:
    """``mean``, ``median`` and ``iqm`` of normalised scores, by game one a run.

    Args:
        scores: game to its runs' normalised scores; numbers of runs may differ (a run counts once
            in the IQM, a game once in mean and median).
        seed: of the bootstrap.

    Raises:
        ValueError: no game, or a game without a score.
    """
    games = [np.asarray(values, np.float64) for values in scores.values()]
    if not games or not all(map(len, games)):
        raise ValueError(f"scores has {len(games)} games: at least one run of each is needed")
    figures = _figures([game[None] for game in games])
    if all(len(game) == 1 for game in games):
        return {name: Estimate(float(value[0])) for name, value in figures.items()}
    rng = np.random.default_rng(seed)
    drawn = [game[rng.integers(len(game), size=(RESAMPLES, len(game)))] for game in games]
    edges = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
    estimates = {}
    for name, resampled in _figures(drawn).items():
        low, high = np.quantile(resampled, edges)
        estimates[name] = Estimate(float(figures[name][0]), float(low), float(high))
    return estimates


def _figures(games: list[Floats]) -> dict[str, Floats]:
    """Each aggregate (R,) of R resamples; of each game, (R, runs)."""
    means = np.stack([game.mean(axis=1) for game in games])
    return {
        "mean": means.mean(axis=0),
        "median": np.median(means, axis=0),
        "iqm": interquartile_mean(np.concatenate(games, axis=1)),
    }


def interquartile_mean(values: Floats) -> Floats:
    """Mean over the last axis (N) without its lowest and highest floor(N / 4) values."""
    count = values.shape[-1]
    cut = count // 4
    kept: Floats = np.sort(values, axis=-1)[..., cut : count - cut].mean(axis=-1)
    return kept
