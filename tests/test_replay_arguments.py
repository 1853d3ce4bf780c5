"""TokenReplay: what it refuses, by name, with nothing changed; arrays of the caller."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from replay_stream import NO, TOKENS, YES, add, filled, frame, make

from wmfast import TokenReplay


def assert_same_state(replay: TokenReplay, twin: TokenReplay, folder: Path) -> None:
    """Rows, priorities, random state and counts are the same to the last bit."""
    assert replay.stats() == twin.stats()
    replay.save(folder / "replay")
    twin.save(folder / "twin")
    assert (folder / "replay").read_bytes() == (folder / "twin").read_bytes()


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


def test_out_arrays_that_share_memory_are_refused() -> None:
    replay = filled()
    memory = np.zeros(4096, np.uint16)
    fresh = replay.sample(8)
    arrays = {name: fresh[name] for name in fresh}
    shared = {
        ("state", "next_state"): {
            "state": memory[:192].reshape(8, 4, TOKENS),
            "next_state": memory[191:383].reshape(8, 4, TOKENS),
        },
        ("discount", "weight"): {"weight": arrays["discount"]},
        ("action", "index"): {"action": arrays["index"]},
    }
    before = replay.stats()["sampled"]
    for (one, other), same in shared.items():
        with pytest.raises(ValueError, match=rf'out\["{one}"\] and out\["{other}"\] share memory'):
            replay.sample(8, out={**arrays, **same})
    runs = replay.sample_sequences(4, 8)
    arrays = {name: runs[name] for name in runs}
    with pytest.raises(ValueError, match=r'out\["terminated"\] and out\["mask"\] share memory'):
        replay.sample_sequences(4, 8, out={**arrays, "mask": runs.terminated})
    assert replay.stats()["sampled"] == before + 4  # the runs that were let through
    halves = {"state": memory[:192], "next_state": memory[192:384]}  # side by side is fine
    replay.sample(
        8,
        out={
            **{name: fresh[name] for name in fresh},
            **{name: half.reshape(8, 4, TOKENS) for name, half in halves.items()},
        },
    )


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = bytearray(array.nbytes + 1)
    copy = np.frombuffer(memory, array.dtype, array.size, offset=1).reshape(array.shape)
    copy[:] = array
    assert not copy.flags.aligned
    return copy


def test_misaligned_memory_is_refused_or_copied() -> None:
    replay, twin = filled(), filled()
    batch = replay.sample(8)
    twin.sample(8)
    arrays = {name: batch[name] for name in batch}
    with pytest.raises(ValueError, match=r'out."state".* is not aligned'):
        replay.sample(8, out={**arrays, "state": misaligned(batch.state)})
    with pytest.raises(ValueError, match="frames is not aligned"):
        replay.add(misaligned(frame(20)), np.zeros(2, int), np.zeros(2), NO, NO)
    replay.add(frame(20), misaligned(np.array([5, 6])), misaligned(np.ones(2, "f4")), NO, NO)
    twin.add(frame(20), [5, 6], [1, 1], NO, NO)
    replay.update_priorities(misaligned(np.arange(9)), misaligned(np.arange(9.0)))
    twin.update_priorities(np.arange(9), np.arange(9.0))
    ours, theirs = replay.sample(64), twin.sample(64)
    assert all((ours[name] == theirs[name]).all() for name in ours)


class Raises:
    """An array-like that fails when it is read."""

    def __len__(self) -> int:
        return 2

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise KeyError("no array today")


def test_array_likes_that_raise_are_named() -> None:
    replay = filled(3)
    before = replay.stats()
    for name in ("actions", "rewards", "terminated", "truncated", "life_lost"):
        step = {"actions": [0, 0], "rewards": [0, 0], "terminated": NO, "truncated": NO}
        with pytest.raises(TypeError, match=f"{name} can't be read as an array"):
            replay.add(frame(3), **{**step, name: Raises()})
    with pytest.raises(TypeError, match="frames is a Raises, must be a numpy array"):
        replay.add(Raises(), **step)
    with pytest.raises(TypeError, match="index can't be read"):
        replay.update_priorities(Raises(), [1.0, 1.0])
    with pytest.raises(TypeError, match="priority can't be read"):
        replay.update_priorities([0, 1], Raises())
    with pytest.raises(TypeError, match=r"state.* is a Raises"):
        replay.sample(2, out={"state": Raises()})
    with pytest.raises(TypeError):
        replay.sample(2, out=3)
    assert replay.stats() == before


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
        (np.array([2**64 - 20], np.uint64), [1.0], ValueError),
        ([10**30], [1.0], TypeError),
        ([True], [1.0], TypeError),
        ([0], [True], TypeError),
        ([0], np.array([1e4000], np.longdouble), ValueError),
        ([0], [1j], TypeError),
        (np.zeros(2, "i4,i4"), [1.0, 1.0], TypeError),
        (0, 1.0, TypeError),
        (None, None, TypeError),
    ],
)
def test_bad_updates_apply_nothing(tmp_path: Path, index, priority, error) -> None:
    replay, twin = filled(20), filled(20)
    with pytest.raises(error):
        replay.update_priorities(index, priority)
    assert_same_state(replay, twin, tmp_path)


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
        ("actions", np.array([2**64 - 1, 0], np.uint64), ValueError, "is 18446744073709551615, "),
        ("actions", [10**30, 0], TypeError, "actions has dtype object"),
        ("actions", NO, TypeError, "actions has dtype bool"),
        ("actions", None, TypeError, "actions has dtype object"),
        ("frames", frame(3).astype(">u2"), TypeError, "frames has dtype >u2"),
        ("frames", np.broadcast_to(np.uint16(3), (2, 6)), ValueError, "not C-contiguous"),
        ("frames", np.zeros((2, 6, 0), np.uint16), ValueError, r"\(2, 6, 0\)"),
        ("frames", np.uint16(3), TypeError, "frames is a uint16"),
        ("rewards", np.array([np.inf, 0]), ValueError, "rewards.env 0. is inf"),
        ("rewards", np.array([0, 1e300]), ValueError, "rewards has a value that does not fit"),
        ("rewards", [1j, 0], TypeError, "rewards has dtype complex128"),
        ("final_frames", np.zeros((2, 5), np.uint16), ValueError, r"final_frames has shape"),
        ("rewards", np.array([0, np.nan]), ValueError, "rewards.env 1. is nan"),
        ("rewards", np.zeros((2, 1)), ValueError, r"rewards has shape \(2, 1\)"),
        ("rewards", ["a", "b"], TypeError, "rewards has dtype"),
        ("terminated", np.zeros(2), TypeError, "terminated has dtype float64"),
        ("truncated", np.zeros(1, bool), ValueError, "truncated has shape"),
        ("life_lost", np.zeros(2, int), TypeError, "life_lost has dtype int64"),
        ("final_frames", frame(0), ValueError, "autoreset is next_step"),
    ],
)
def test_bad_steps_are_named_and_add_nothing(tmp_path: Path, field, value, error, message) -> None:
    replay, twin = filled(3), filled(3)
    step = {
        "frames": frame(3),
        "actions": np.zeros(2, int),
        "rewards": np.zeros(2),
        "terminated": NO,
        "truncated": NO,
    }
    with pytest.raises(error, match=message):
        replay.add(**{**step, field: value})
    assert_same_state(replay, twin, tmp_path)
    replay.add(**step)


def test_same_step_needs_the_final_frame_of_an_ended_env(tmp_path: Path) -> None:
    replay, twin = (filled(5, autoreset="same_step") for _ in range(2))
    with pytest.raises(ValueError, match=r"final_frames\[env 1\] is missing"):
        add(replay, 5, terminated=np.array([False, True]))
    with pytest.raises(ValueError, match=r"final_frames\[env 0\] has token 512 at position 0"):
        add(replay, 5, truncated=YES, final_frames=np.full((2, 2, 3), 512, np.uint16))
    assert_same_state(replay, twin, tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_envs": 0}, ValueError, "num_envs is 0"),
        ({"capacity": -5}, ValueError, "capacity is -5"),
        ({"capacity": 10**30}, TypeError, "incompatible constructor arguments"),
        ({"capacity": 80.0}, TypeError, "incompatible constructor arguments"),
        ({"capacity": True}, ValueError, "capacity is 1, too small"),
        ({"capacity": 2**63 - 1}, MemoryError, "capacity is 922337203685477580"),
        ({"num_envs": 2**40}, ValueError, "num_envs is 1099511627776"),
        ({"seed": -1}, TypeError, "incompatible constructor arguments"),
        ({"frame_shape": (2**40, 2**40)}, ValueError, "frame_shape is 1099511627776"),
        ({"frame_shape": (2**19, 2**19)}, ValueError, "product of frame_shape is 274877906944"),
        ({"alpha": float("inf")}, ValueError, "alpha is inf"),
        ({"path": ""}, ValueError, "path is '', must name a file"),
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
    for length in (0, -1, 2**62, 2**63 - 1):
        with pytest.raises(ValueError, match=f"length is {length}"):
            replay.sample_sequences(4, length)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"beta is {bad}"):
            replay.sample(4, beta=bad)
    beyond = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for huge in (2**62, 2**48, beyond // (4 * TOKENS * 2)):
        with pytest.raises((ValueError, MemoryError)):
            replay.sample(huge)
    for unfit in (10**30, 4.0, "4", None):
        with pytest.raises(TypeError):
            replay.sample(unfit)
    for recent in ((1, float("nan")), (-1, 0.5), (2, -0.1)):
        with pytest.raises(ValueError, match="recent is"):
            replay.sample_sequences(4, 1, recent=recent)
    assert replay.stats()["sampled"] == 0
    replay.update_priorities(np.arange(6), np.zeros(6))
    with pytest.raises(ValueError, match="all priorities are 0"):
        replay.sample(4)
