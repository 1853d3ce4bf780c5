"""The window of raw frames: what comes out went in, by id, oldest out first, saved and loaded."""

from __future__ import annotations

import numpy as np
import pytest

from wmfast.frame_window import FrameWindow


def frames(first: int, count: int = 3) -> np.ndarray:
    """Noise that tells its id, on a board."""
    film = np.zeros((count, 84, 64, 3), np.uint8)
    for i in range(count):
        film[i, 10:14, :20] = np.random.default_rng(first + i).integers(0, 256, (4, 20, 3))
    return film


def filled(steps: int, capacity: int = 10) -> FrameWindow:
    window = FrameWindow(capacity)
    for step in range(steps):
        window.push(6 + 3 * step, frames(6 + 3 * step))
    return window


def test_the_newest_frames_come_back_by_id() -> None:
    window = filled(7)
    assert (window.oldest_id, window.next_id, len(window)) == (17, 27, 10)
    ids = [20, 17, 26, 20]
    assert (window.frames(ids) == np.concatenate([frames(i, 1) for i in ids])).all()
    for gone in (16, 27):
        with pytest.raises(IndexError, match=f"id {gone}: frames 17 to 26 are here"):
            window.blob(gone)
    with pytest.raises(ValueError, match="first_id is 30, the next frame's id is 27"):
        window.push(30, frames(30))


def test_frames_take_a_tenth_of_their_bytes() -> None:
    assert filled(3).nbytes < 9 * 84 * 64 * 3 / 10


def test_memory_is_of_the_frames_that_are_here() -> None:
    window = filled(2, capacity=10**12)
    assert (window.oldest_id, window.next_id) == (6, 12)
    assert (window.frames(range(6, 12)) == np.concatenate([frames(6), frames(9)])).all()


def test_a_loaded_window_goes_on_as_the_saved_one() -> None:
    window, loaded, narrow = filled(7), FrameWindow(10), FrameWindow(4)
    loaded.load(window.arrays())
    narrow.load(window.arrays())
    for each in (window, loaded, narrow):
        each.push(27, frames(27))
    assert (window.oldest_id, window.next_id) == (loaded.oldest_id, loaded.next_id)
    ids = range(window.oldest_id, window.next_id)
    assert (window.frames(ids) == loaded.frames(ids)).all()
    assert (narrow.frames(range(26, 30)) == window.frames(range(26, 30))).all()
    assert narrow.oldest_id == 26
