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
    bank.begin(FRAMES, tokens(0), moving)
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


def test_a_loaded_bank_goes_on_as_the_saved_one() -> None:
    bank, loaded = begun(moving=np.ones_like(MOVING)), DriftBank()
    bank.moved(tokens(30), 100, 0)
    loaded.load(bank.arrays())
    assert bank.moved(tokens(90), 200, 0) == loaded.moved(tokens(90), 200, 0)
    assert loaded.stale_before(70 / 336) == bank.stale_before(70 / 336) == 100
    assert loaded.stale_before(50 / 336) == 200
