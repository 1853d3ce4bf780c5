"""Drift: what share of tokens stays, and which rows are too old to be drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wmfast.drift import DriftBank, moving_cells

FRAMES = np.zeros((2, 84, 64, 3), np.uint8)
MOVING = np.zeros((2, 336), np.bool_)
MOVING[:, :4] = True


def tokens(changed: int) -> np.ndarray:
    """The first `changed` tokens of each frame differ from those of ``tokens(0)``."""
    bank = np.zeros((2, 336), np.uint16)
    bank[:, :changed] = 1
    return bank


def begun(moving: np.ndarray = MOVING) -> DriftBank:
    bank = DriftBank()
    bank.begin(FRAMES, np.array([3, 7]), tokens(0), moving)
    return bank


def test_moving_cells_are_those_with_a_pixel_off_the_median() -> None:
    frames = torch.zeros(2, 84, 64, 3, dtype=torch.uint8)
    frames[1, 11, 63, 2] = 200
    moving = moving_cells(frames, frames[0])
    assert np.argwhere(moving).tolist() == [[1, 2 * 16 + 15]]


def test_retention_is_over_all_and_over_moving_cells_since_last_time_and_since_the_start() -> None:
    bank = begun()
    bank.moved(tokens(2), 10, 0)
    assert bank.moved(tokens(3), 20, 0) == {
        "retention": pytest.approx(1 - 1 / 336),
        "retention_moving": 0.75,
        "retention_since_start": pytest.approx(1 - 3 / 336),
        "retention_moving_since_start": 0.25,
    }


def test_rows_are_stale_once_the_drift_since_they_were_encoded_passes_the_bound() -> None:
    bank = begun(moving=np.ones_like(MOVING))
    bank.moved(tokens(30), 100, 0)  # rows 0..99 keep the first tokens
    bank.moved(tokens(60), 200, 0)  # 100..199 those of the first training
    assert bank.stale_before(61 / 336) == 0
    assert bank.stale_before(59 / 336) == 100
    assert bank.stale_before(29 / 336) == 200
    bank.moved(tokens(60), 150, 0)  # the window reaches further back: these are new again
    assert bank.stale_before(29 / 336) == 150
    bank.moved(tokens(60), 250, 150)  # what lies before 150 is not stored any more
    assert bank.stale_before(0.0) == 0


def test_moving_cells_alone_make_rows_stale() -> None:
    """Two of four moving cells: under a hundredth of all cells."""
    bank = begun()
    bank.moved(tokens(2), 100, 0)
    assert bank.stale_before(0.51) == 0
    assert bank.stale_before(0.49) == 100


def many(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Empty frames that bear their number, and their cells, all of them moving."""
    frames = np.zeros((count, 84, 64, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(count)
    return frames, np.ones((count, 336), np.bool_)


def grown(later: np.ndarray, *, oldest_id: int = 0, most: int = 40) -> DriftBank:
    """40 frames of rows 0..390, then frames of these rows, all of token 0."""
    frames, moving = many(40 + len(later))
    bank = DriftBank()
    zeros = np.zeros((len(frames), 336), np.uint16)
    bank.begin(frames[:40], np.arange(0, 400, 10), zeros[:40], moving[:40])
    bank.moved(zeros[:40], 400, 0)
    bank.grow(frames[40:], later, zeros[40:], moving[40:], oldest_id=oldest_id, most=most)
    return bank


def test_rows_are_judged_by_the_frames_that_were_played_with_them() -> None:
    bank = grown(np.arange(400, 800, 10))
    now = np.zeros((80, 336), np.uint16)
    now[40:, :34] = 1  # the later look alone drifts, by a tenth
    drift = bank.moved(now, 800, 0)
    assert drift["retention"] == pytest.approx(1 - 34 / 336 / 2)
    assert drift["retention_since_start"] == 1
    assert bank.stale_before(0.11) == 0
    assert bank.stale_before(0.10) == 800
    early = grown(np.arange(400, 800, 10))
    now[:] = 0
    now[:40, :34] = 1  # the early look alone
    early.moved(now, 800, 0)
    assert early.stale_before(0.10) == 400


def test_later_frames_are_thinned_where_they_lie_densest() -> None:
    stretches = np.concatenate([np.arange(first, first + 8) for first in range(400, 1200, 100)])
    bank = grown(stretches, most=10)
    assert (bank.ids[:40] == np.arange(0, 400, 10)).all()
    assert len(bank.ids) == 50
    assert set(bank.ids[40:] // 100) == set(range(4, 12))  # of every stretch at least one
    numbers = bank.frames[40:, 0, 0, 0] - 40
    assert (stretches[numbers] == bank.ids[40:]).all()
    assert bank.frames_of_start[:, 0, 0, 0].tolist() == list(range(40))


def test_frames_of_rows_that_are_not_stored_any_more_leave_but_for_those_of_the_start() -> None:
    bank = grown(np.arange(400, 800, 10))
    now = np.repeat(np.arange(80, dtype=np.uint16)[:, None], 336, axis=1)
    bank.moved(now, 800, 500)
    frames, moving = many(1)
    bank.grow(frames, np.array([805]), np.full((1, 336), 99, np.uint16), moving,
              oldest_id=500, most=40)  # fmt: skip
    assert bank.ids[40:].tolist() == [*range(500, 800, 10), 805]
    newest = np.append(now[np.r_[:40, 50:80]], np.full((1, 336), 99, np.uint16), axis=0)
    assert bank.moved(newest, 900, 500)["retention"] == 1  # each frame kept its own tokens


def test_a_loaded_bank_goes_on_as_the_saved_one() -> None:
    bank, loaded = grown(np.arange(400, 800, 10)), DriftBank()
    loaded.load(bank.arrays())
    now = np.zeros((80, 336), np.uint16)
    now[40:, :34] = 1
    assert bank.moved(now, 800, 0) == loaded.moved(now, 800, 0)
    assert loaded.stale_before(0.1) == bank.stale_before(0.1) == 800
    assert (loaded.frames == bank.frames).all()
    for key, array in bank.arrays().items():
        assert (loaded.arrays()[key] == array).all()


def test_a_loaded_bank_knows_all_states_of_the_tokenizer() -> None:
    bank, loaded = begun(moving=np.ones_like(MOVING)), DriftBank()
    bank.moved(tokens(30), 100, 0)
    loaded.load(bank.arrays())
    assert bank.moved(tokens(90), 200, 0) == loaded.moved(tokens(90), 200, 0)
    assert loaded.stale_before(70 / 336) == bank.stale_before(70 / 336) == 100
    assert loaded.stale_before(50 / 336) == 200
