"""How often TokenReplay draws each row, against what its priority asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from replay_stream import ENVS, add, filled, make

from wmfast import TokenReplay

ALPHA = 0.7


def chi_square_excess(count: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic lies above its mean."""
    freedom = len(count) - 1
    statistic = ((count - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def ids_of(replay: TokenReplay) -> np.ndarray:
    """All rows that can be drawn: every episode goes on here, so they lie in a row."""
    newest = int(replay.stats()["added"]) - ENVS  # the newest step has no successor yet
    return np.arange(newest - int(replay.stats()["drawable"]), newest)


def fresh(replay: TokenReplay, _: Path) -> TokenReplay:
    return replay


def wrapped(replay: TokenReplay, _: Path) -> TokenReplay:
    for t in range(20, 95):
        add(replay, t)
    return replay


def loaded(replay: TokenReplay, folder: Path) -> TokenReplay:
    wrapped(replay, folder).save(folder / "snapshot")
    return TokenReplay.load(folder / "snapshot")


def updated_many_times(replay: TokenReplay, folder: Path) -> TokenReplay:
    wrapped(replay, folder)
    rng = np.random.default_rng(0)
    for _ in range(300):
        replay.update_priorities(rng.choice(ids_of(replay), 20), 10.0 ** rng.normal(0, 4, 20))
    return replay


ROUTES = [fresh, wrapped, loaded, updated_many_times]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("batch_size", [1, 50])
def test_draws_follow_priority_to_the_alpha(
    tmp_path: Path, route: Callable[..., TokenReplay], batch_size: int
) -> None:
    replay = route(filled(alpha=ALPHA, seed=2), tmp_path)
    ids = ids_of(replay)
    priority = np.abs(np.random.default_rng(1).normal(size=len(ids))) + 0.05
    priority[::7] = 0.0
    assert replay.update_priorities(ids, priority) == len(ids)
    weight = priority**ALPHA / (priority**ALPHA).sum()
    count = draws(replay, ids, batch_size)
    assert (count[::7] == 0).all()
    some = weight > 0
    expected = weight[some] * count.sum()
    assert chi_square_excess(count[some], expected) < 4
    assert np.abs((count[some] - expected) / np.sqrt(expected)).max() < 5
    even = np.full(some.sum(), count.sum() / some.sum())
    assert chi_square_excess(count[some], even) > 100  # a wrong distribution would be seen


def draws(replay: TokenReplay, ids: np.ndarray, batch_size: int) -> np.ndarray:
    """How often each of the ids came up in 20,000 draws."""
    drawn = np.concatenate([replay.sample(batch_size).index for _ in range(20_000 // batch_size)])
    assert set(drawn.tolist()) <= set(ids.tolist())
    return np.bincount(drawn - ids[0], minlength=len(ids))


@pytest.mark.parametrize("route", ROUTES[:3])
def test_draws_without_priorities_are_even(
    tmp_path: Path, route: Callable[..., TokenReplay]
) -> None:
    replay = route(filled(prioritized=False), tmp_path)
    ids = ids_of(replay)
    count = draws(replay, ids, 50)
    assert chi_square_excess(count, np.full(len(ids), count.mean())) < 4
    # Independent of one another, too: pairs of one batch are as even as single rows.
    pairs = np.stack([replay.sample(2).index - ids[0] for _ in range(20_000)]) % 5
    table = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
    share = np.bincount((ids - ids[0]) % 5, minlength=5) / len(ids)
    assert chi_square_excess(table, np.outer(share, share).ravel() * table.sum()) < 4


@pytest.mark.parametrize("prioritized", [True, False])
@pytest.mark.parametrize("route", ROUTES[:3])
def test_sequences_begin_at_every_row_alike(
    tmp_path: Path, route: Callable[..., TokenReplay], prioritized: bool
) -> None:
    replay = route(filled(prioritized=prioritized, seed=3), tmp_path)
    ids = ids_of(replay)
    if prioritized:  # which is of no account here
        replay.update_priorities(ids, np.arange(len(ids)) ** 3.0)
    runs = replay.sample_sequences(20_000, 1)
    env, step = np.divmod(runs.tokens[:, 3, 0].astype(int) - 100, 100)
    count = np.bincount(step * ENVS + env - ids[0], minlength=len(ids))
    assert len(count) == len(ids)
    assert chi_square_excess(count, np.full(len(ids), count.mean())) < 4


def test_each_part_of_the_sum_gives_one_draw_of_a_batch() -> None:
    """Stratified: of n rows with equal priorities a batch of n draws each about once."""
    replay = filled(40, seed=4)
    ids = ids_of(replay)
    for _ in range(50):
        count = np.bincount(replay.sample(len(ids)).index - ids[0], minlength=len(ids))
        assert count.max() <= 2  # independent draws of 74 would give 3 or more nearly always


def test_seeds_tell_draws_apart() -> None:
    drawn = [tuple(filled(seed=seed).sample(40).index.tolist()) for seed in (0, 1, 2**64 - 1, 1)]
    assert drawn[1] == drawn[3]
    assert len(set(drawn)) == 3
    empty = make(seed=1)
    for t in range(20):
        add(empty, t)
    assert tuple(empty.sample(40).index.tolist()) == drawn[1]
