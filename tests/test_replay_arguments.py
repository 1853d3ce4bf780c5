"""TokenReplay: what it refuses, by name, with nothing changed; arrays of the caller."""

from __future__ import annotations

import numpy as np
import pytest
from replay_stream import NO, TOKENS, add, filled, frame, make


def test_out_is_written_in_place_and_must_fit_exactly() -> None:
    replay = filled()
    out = replay.sample(8)
    again = replay.sample(8, out=out)
    assert np.shares_memory(again.state, out.state)
    assert (again.index == out.index).all()
    arrays = {name: out[name] for name in out}
    assert replay.sample(8, out=arrays).reward is arrays["reward"]
    for name, bad in {
        "state": np.zeros((8, 4, TOKENS), np.int64),
        "next_state": np.zeros((8, 4, TOKENS + 1), np.uint16),
        "action": np.zeros(16, np.int64)[::2],
        "reward": np.zeros(8),
    }.items():
        before = replay.stats()["sampled"]
        with pytest.raises((TypeError, ValueError), match=name):
            replay.sample(8, out={**arrays, name: bad})
        assert replay.stats()["sampled"] == before
    with pytest.raises(ValueError, match='no array "state"'):
        replay.sample(8, out={})
    frozen = np.zeros(8, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        replay.sample(8, out={**arrays, "weight": frozen})


@pytest.mark.parametrize(
    ("index", "priority", "error"),
    [
        ([0, -1], [1.0, 1.0], IndexError),
        ([0, 40], [1.0, 1.0], IndexError),
        ([0, 1], [7.0, np.nan], ValueError),
        ([0, 1], [7.0, np.inf], ValueError),
        ([0, 1], [7.0, -1e-9], ValueError),
        ([0, 1], [7.0], ValueError),
        ([[0]], [[1.0]], ValueError),
        ([0.0], [1.0], TypeError),
        ([0], ["a"], TypeError),
    ],
)
def test_bad_updates_apply_nothing(index, priority, error) -> None:
    replay = filled(20)
    before = replay.stats()
    with pytest.raises(error, match=r"index|priority"):
        replay.update_priorities(index, priority)
    assert replay.stats() == before


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("frames", np.zeros((2, 6), np.int64), TypeError, "frames has dtype int64"),
        ("frames", [[0] * 6] * 2, TypeError, "frames is a list"),
        ("frames", np.zeros((2, 7), np.uint16), ValueError, r"\(2, 7\), must be \(2, 6\) or"),
        ("frames", np.zeros((6, 2), np.uint16).T, ValueError, "not C-contiguous"),
        ("frames", np.full((2, 6), 512, np.uint16), ValueError, "frames.env 0. has token 512"),
        ("actions", np.zeros(3, int), ValueError, r"actions has shape \(3,\), must be \(2,\)"),
        ("actions", np.zeros(2), TypeError, "actions has dtype float64"),
        ("actions", np.array([0, 2**40]), ValueError, "actions.env 1. is 1099511627776"),
        ("rewards", np.array([0, np.nan]), ValueError, "rewards.env 1. is nan"),
        ("rewards", np.zeros((2, 1)), ValueError, r"rewards has shape \(2, 1\)"),
        ("rewards", ["a", "b"], TypeError, "rewards has dtype"),
        ("terminated", np.zeros(2), TypeError, "terminated has dtype float64"),
        ("truncated", np.zeros(1, bool), ValueError, "truncated has shape"),
        ("life_lost", np.zeros(2, int), TypeError, "life_lost has dtype int64"),
        ("final_frames", frame(0), ValueError, "autoreset is next_step"),
    ],
)
def test_bad_steps_are_named_and_add_nothing(field, value, error, message) -> None:
    replay = filled(3)
    step = {
        "frames": frame(3),
        "actions": np.zeros(2, int),
        "rewards": np.zeros(2),
        "terminated": NO,
        "truncated": NO,
    }
    with pytest.raises(error, match=message):
        replay.add(**{**step, field: value})
    assert len(replay) == 6
    replay.add(**step)


def test_same_step_needs_the_final_frame_of_an_ended_env() -> None:
    replay = make(autoreset="same_step")
    with pytest.raises(ValueError, match=r"final_frames\[env 1\] is missing"):
        add(replay, 0, terminated=np.array([False, True]))
    assert len(replay) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_envs": 0}, ValueError, "num_envs is 0"),
        ({"capacity": -5}, ValueError, "capacity is -5"),
        ({"capacity": 2}, ValueError, "capacity is 2, too small"),
        ({"capacity": 10**13}, MemoryError, "capacity is 10000000000000"),
        ({"capacity": 4 * 10**9, "frame_shape": (21, 16)}, MemoryError, "the machine has"),
        ({"history": 0}, ValueError, "history is 0, allowed are 1 to 255"),
        ({"n_step": 0}, ValueError, "n_step is 0"),
        ({"vocab_size": 65537}, ValueError, "vocab_size is 65537"),
        ({"frame_shape": ()}, ValueError, "frame_shape"),
        ({"frame_shape": (3, 0)}, ValueError, "frame_shape is 0"),
        ({"gamma": float("nan")}, ValueError, "gamma is nan"),
        ({"alpha": -0.1}, ValueError, "alpha is -0.1"),
        ({"autoreset": "later"}, ValueError, "autoreset is 'later', allowed"),
        ({"reward_transform": "clip"}, ValueError, "reward_transform is 'clip', allowed"),
    ],
)
def test_bad_options_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_empty_and_too_small_buffers_say_so_with_numbers() -> None:
    for steps in (0, 1, 2):
        replay = filled(steps, n_step=2)
        message = rf"no row can be drawn: {steps} steps are stored in each of 2 envs.*2 successors"
        with pytest.raises(ValueError, match=message):
            replay.sample(4)
        with pytest.raises(ValueError, match=message):
            replay.sample_sequences(4, 2)
    replay = filled(4)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {bad}"):
            replay.sample(bad)
    with pytest.raises(ValueError, match="beta is -1"):
        replay.sample(4, beta=-1.0)
    with pytest.raises(ValueError, match="length is 0"):
        replay.sample_sequences(4, 0)
    replay.update_priorities(np.arange(6), np.zeros(6))
    with pytest.raises(ValueError, match="all priorities are 0"):
        replay.sample(4)
