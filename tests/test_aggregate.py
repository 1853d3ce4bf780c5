"""Aggregates worked out by hand, and intervals that cover what they should."""

from __future__ import annotations

import numpy as np
import pytest

from wmfast.aggregate import aggregate, interquartile_mean, mean_over_seeds, student_t
from wmfast.games import RANDOM_HUMAN
from wmfast.published import published_agents


def test_the_iqm_by_hand() -> None:
    runs = np.array([100.0, 1.0, 7.0, 3.0, -50.0, 5.0])  # 6 // 4 = 1 is cut off at each end
    assert interquartile_mean(runs) == pytest.approx((1 + 3 + 5 + 7) / 4)
    eight = np.arange(8.0)[::-1]
    assert interquartile_mean(np.stack([eight, eight * 2])) == pytest.approx([3.5, 7.0])
    assert interquartile_mean(np.array([2.0, 4.0, 9.0])) == pytest.approx(5.0)  # nothing to cut


def test_mean_and_median_are_of_games_and_the_iqm_of_runs() -> None:
    found = aggregate({"a": [0.0, 0.0, 0.0, 0.0], "b": [10.0, 30.0], "c": [4.0]})
    assert found["mean"].value == pytest.approx((0 + 20 + 4) / 3)
    assert found["median"].value == pytest.approx(4.0)
    assert found["iqm"].value == pytest.approx((0 + 0 + 0 + 4 + 10) / 5)  # but one 0 and the 30


def test_published_aggregates_are_those_of_the_literature() -> None:
    """As the DIAMOND and IRIS papers give them for these runs."""
    agents = {agent.name: agent for agent in published_agents()}
    for name, mean, iqm in (("DIAMOND", 1.459, 0.641), ("IRIS", 1.046, 0.501)):
        scores = {
            game: [(s - RANDOM_HUMAN[game][0]) / np.ptp(RANDOM_HUMAN[game]) for s in runs]
            for game, runs in agents[name].scores.items()
        }
        assert set(scores) == set(RANDOM_HUMAN)
        found = aggregate(scores)
        assert found["mean"].value == pytest.approx(mean, abs=0.001)
        assert found["iqm"].value == pytest.approx(iqm, abs=0.001)
        assert found["iqm"].low < iqm < found["iqm"].high


def test_the_bootstrap_keeps_to_its_strata() -> None:
    """Games far apart, runs close together: an interval over all runs would be a hundred wide."""
    rng = np.random.default_rng(0)
    scores = {f"game {n}": (100 * n + rng.normal(size=5)).tolist() for n in range(4)}
    for estimate in aggregate(scores).values():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.high - estimate.low < 3


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    trials, inside_iqm, inside_mean = 150, 0, 0
    for trial in range(trials):
        runs = rng.normal(size=(4, 10))  # the truth of every figure is 0
        iqm = aggregate({str(game): row.tolist() for game, row in enumerate(runs)}, seed=trial)
        inside_iqm += iqm["iqm"].low <= 0 <= iqm["iqm"].high
        mean = mean_over_seeds(runs[0, :3].tolist())
        inside_mean += mean.low <= 0 <= mean.high
    assert 0.85 < inside_iqm / trials <= 1.0
    assert 0.9 < inside_mean / trials < 0.99  # Student's t is exact, three runs or not


def test_the_t_interval_by_hand() -> None:
    found = mean_over_seeds([1.0, 2.0, 3.0])
    half = 4.303 / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert student_t(31) == pytest.approx(2.040, abs=0.001)
    assert student_t(120) == pytest.approx(1.980, abs=0.001)


def test_single_runs_have_no_interval() -> None:
    assert mean_over_seeds([3.0]).low is None
    assert {estimate.high for estimate in aggregate({"a": [1.0], "b": [2.0]}).values()} == {None}
    assert aggregate({"a": [1.0], "b": [2.0, 3.0]})["mean"].low is not None


def test_nothing_to_aggregate_is_refused() -> None:
    with pytest.raises(ValueError, match="scores has 0 games"):
        aggregate({})
    with pytest.raises(ValueError, match="at least one run"):
        aggregate({"a": []})
    with pytest.raises(ValueError, match="at least one run"):
        mean_over_seeds([])
