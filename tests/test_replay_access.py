"""TokenReplay seen without drawing: rows by id, episodes, stats, frames of either dtype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from replay_oracle import Oracle
from replay_stream import ENVS, NO, YES, add, filled, frame, make

from wmfast import TokenReplay

FIELDS = ["state", "next_state", "action", "reward", "discount", "index"]


def test_rows_by_id_are_those_that_are_drawn() -> None:
    replay = filled(60, n_step=2, seed=5)
    batch = replay.sample(32)
    before = replay.stats()
    again = replay[batch.index]
    assert list(again) == FIELDS
    for name in FIELDS:
        np.testing.assert_array_equal(again[name], batch[name])
    assert replay.stats() == before
    twin = filled(60, n_step=2, seed=5)
    twin.sample(32)
    assert (replay.sample(8).index == twin.sample(8).index).all()  # no random number was used


def test_one_id_has_no_batch_axis() -> None:
    replay = filled(20)
    row = replay[12]
    assert row.state.shape == row.next_state.shape == (4, 6)
    assert row.state[:, 0].tolist() == [103, 104, 105, 106]
    assert row.next_state[-1, 0] == 107
    assert (int(row.action), float(row.reward), int(row.index)) == (6, 1.0, 12)
    assert replay[np.int64(12)].action == 6
    assert replay[np.array([12, 13])].state.shape == (2, 4, 6)
    assert replay[[12]].action.tolist() == [6]
    assert replay[np.array([], np.int64)].state.shape == (0, 4, 6)
    with pytest.raises(AttributeError, match="weight"):
        _ = row.weight


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (-1, IndexError, "is -1: never issued, 200 ids were"),
        (200, IndexError, "is 200: never issued"),
        (10**30, IndexError, f"is {10**30}: never issued"),
        (119, IndexError, "is 119: overwritten or forgotten, the oldest stored is 120"),
        (121, IndexError, "is 121: can't be drawn"),  # its history is gone
        (199, IndexError, "is 199: can't be drawn"),  # its successor is not here yet
        (160, IndexError, "is 160: the final frame of an episode"),
        (np.array([150, 151, 7]), IndexError, r"index\[2\] is 7: overwritten"),
        (1.5, TypeError, "an id or an array of ids is wanted, this is a float"),
        (True, TypeError, "bool"),
        (slice(0, 4), TypeError, "slice"),
        (np.array([1.5]), TypeError, "float64"),
        (np.array([[150]]), ValueError, "shape"),
    ],
)
def test_ids_that_name_no_transition_are_named(index, error, message: str) -> None:
    replay = make()
    for t in range(100):
        add(replay, t, terminated=YES if t == 79 else NO)
    with pytest.raises(error, match=message):
        replay[index]


def test_a_buffer_is_no_sequence() -> None:
    replay = filled(20)
    for use in (iter, list, reversed, lambda buf: 3 in buf):
        with pytest.raises(TypeError):
            use(replay)


def expected_episodes(oracle: Oracle) -> list[tuple]:
    found = []
    for env, episodes in enumerate(oracle.episodes):
        for episode in episodes:
            skipped = max(0, oracle.oldest - episode.first)
            kept = episode.steps[skipped:]
            if not kept:
                continue
            first = (episode.first + skipped) * ENVS + env
            reward = sum(step[1] for step in kept)
            terminated, truncated = bool(kept[-1][2]), bool(kept[-1][3])
            ends = (terminated, truncated and not terminated, not (terminated or truncated))
            found.append((env, first, len(kept), reward, *ends, skipped == 0))
    return sorted(found, key=lambda record: record[1])


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize("stored", ["memory", "file"])
def test_episodes_match_the_oracle(tmp_path: Path, same_step: bool, stored: str) -> None:
    path = tmp_path / "store" if stored == "file" else None
    replay = make(autoreset="same_step" if same_step else "next_step", path=path)
    oracle = Oracle(40, ENVS, 4, 1, 0.99, same_step)
    rng = np.random.default_rng(7)
    assert len(replay.episodes()) == 0
    for t in range(150):
        if rng.random() < 0.05:
            replay.cut()
            oracle.was_cut = True
        ends = rng.random((2, ENVS)) < 0.08
        rewards = rng.integers(-3, 4, ENVS).astype(np.float32)
        finals = frame(100 + t)
        more = {"final_frames": finals} if same_step else {}
        replay.add(frame(t), np.full(ENVS, t), rewards, *ends, **more)
        oracle.add(frame(t), [t] * ENVS, rewards.tolist(), *ends, finals, NO)
        episodes = replay.episodes()
        assert episodes.dtype.names is not None
        assert [tuple(record) for record in episodes.tolist()] == expected_episodes(oracle)
        assert replay.stats()["episodes"] == (~episodes["open"]).sum()
    assert replay.stats()["episodes"] > 3
    assert not episodes["whole"].all()
    replay.save(tmp_path / "snapshot")
    loaded = TokenReplay.load(tmp_path / "snapshot")
    assert (loaded.episodes() == episodes).all()
    assert loaded.stats()["episodes"] == replay.stats()["episodes"]
    if path is not None:
        del replay
        assert (make(autoreset=loaded_autoreset(same_step), path=path).episodes() == episodes).all()


def loaded_autoreset(same_step: bool) -> str:
    return "same_step" if same_step else "next_step"


def test_stats_count_what_was_done() -> None:
    replay = filled(20)
    stats = replay.stats()
    assert stats["fill"] == 0.5
    assert (stats["inserts"], stats["samples"]) == (40, 0)
    assert stats["mean_sample_age"] == stats["stale_update_share"] == 0
    drawn = [replay.sample(16).index for _ in range(3)]
    ages = (19 - np.concatenate(drawn) // ENVS) * ENVS
    assert replay.stats()["mean_sample_age"] == ages.mean()
    runs = replay.sample_sequences(4, 2)
    assert replay.stats()["samples"] == replay.stats()["sampled"] == 48 + len(runs.mask)
    replay.update_priorities([0, 1, 2, 3], np.ones(4))
    for t in range(20, 70):
        add(replay, t)
    replay.update_priorities([0, 1, 100, 101], np.ones(4))
    assert replay.stats()["stale_update_share"] == 0.25
    assert replay.stats()["fill"] == 1


def test_a_loaded_buffer_counts_from_where_it_was_made(tmp_path: Path) -> None:
    replay = filled(30)
    replay.save(tmp_path / "snapshot")
    loaded = TokenReplay.load(tmp_path / "snapshot")
    assert (loaded.stats()["added"], loaded.stats()["inserts"]) == (60, 0)
    assert loaded.stats()["fill"] == replay.stats()["fill"]


@pytest.mark.parametrize("vocab_size", [2, 200, 256, 257, 512, 1000, 4096, 5000, 65536])
@pytest.mark.parametrize("tokens", [1, 7, 16, 33, 70])
def test_every_vocabulary_comes_back_as_it_went_in(vocab_size: int, tokens: int) -> None:
    rng = np.random.default_rng(vocab_size + tokens)
    replay = TokenReplay(80, 2, frame_shape=(tokens,), vocab_size=vocab_size, history=1)
    given = rng.integers(0, vocab_size, (30, 2, tokens)).astype(np.uint16)
    given[3, 1] = vocab_size - 1
    for frames in given:
        replay.add(frames, [0, 0], [0.0, 0.0], NO, NO)
    rows = replay[np.arange(58)]
    assert (rows.state[:, 0] == given.reshape(60, tokens)[:58]).all()
    assert (rows.next_state[:, 0] == given.reshape(60, tokens)[2:]).all()
    if vocab_size < 65536:
        bad = given[0].copy()
        bad[1, tokens - 1] = vocab_size
        with pytest.raises(ValueError, match=rf"frames\[env 1\] has token {vocab_size} at"):
            replay.add(bad, [0, 0], [0.0, 0.0], NO, NO)


def test_a_smaller_vocabulary_takes_less_memory() -> None:
    sizes = [TokenReplay(8000, 8, vocab_size=v).nbytes / 8000 for v in (256, 512, 1024, 65536)]
    assert [round(size / 42) for size in sizes] == [9, 10, 11, 17]  # a bit a token is 42 bytes


@pytest.mark.parametrize("same_step", [False, True])
def test_uint8_frames(tmp_path: Path, same_step: bool) -> None:
    rng = np.random.default_rng(0)
    options = {"autoreset": loaded_autoreset(same_step), "dtype": "uint8", "path": tmp_path / "s"}
    replay = TokenReplay(200, ENVS, frame_shape=(3, 5, 2), **options)
    assert replay.dtype == np.uint8
    given = rng.integers(0, 256, (60, ENVS, 3, 5, 2), dtype=np.uint8)
    for t, frames in enumerate(given):
        more = {"final_frames": 255 - frames} if same_step else {}
        replay.add(frames, [0, 0], [0.0, 0.0], NO, np.full(ENVS, t == 30), **more)
    row = replay[2 * 30 + 1]
    assert row.state.dtype == np.uint8
    assert (row.state[-1] == given[30, 1].ravel()).all()
    final = 255 - given[30, 1] if same_step else given[31, 1]
    assert (row.next_state[-1] == final.ravel()).all()
    assert replay.sample(8, window=True).window.dtype == np.uint8
    assert replay.sample_sequences(4, 3).tokens.dtype == np.uint8
    with pytest.raises(TypeError, match="frames has dtype uint16, must be uint8"):
        replay.add(given[0].astype(np.uint16), [0, 0], [0.0, 0.0], NO, NO)
    replay.save(tmp_path / "snapshot")
    loaded = TokenReplay.load(tmp_path / "snapshot")
    assert loaded.dtype == np.uint8
    assert (loaded.sample(16).state == replay.sample(16).state).all()
    del replay
    with pytest.raises(ValueError, match="the store has dtype uint8, asked for uint16"):
        TokenReplay(200, ENVS, frame_shape=(3, 5, 2), **{**options, "dtype": "uint16"})
    with pytest.raises(ValueError, match="dtype is 'int64', allowed are 'uint16', 'uint8'"):
        make(dtype="int64")
    small = make(dtype="uint8", vocab_size=10)
    with pytest.raises(ValueError, match="has token 10 at position 0, allowed are 0 to 9"):
        small.add(np.full((ENVS, 6), 10, np.uint8), [0, 0], [0.0, 0.0], NO, NO)


def test_dropped_batches_leave_kept_ones_alone() -> None:
    """Memory of dropped outputs is used again; that of outputs in use never is."""
    replay = TokenReplay(4000, 8)
    frames = np.random.default_rng(0).integers(0, 512, (8, 336), dtype=np.uint16)
    none = np.zeros(8, bool)
    for t in range(60):
        replay.add((frames + t) % 512, np.full(8, t), np.zeros(8), none, none)
    kept = [replay.sample(64) for _ in range(12)]
    copies = [batch.state.copy() for batch in kept]
    views = [batch.next_state[3:5] for batch in kept]
    view_copies = [view.copy() for view in views]
    ids = [batch.index for batch in kept]
    del kept[::2]
    for _ in range(40):
        replay.sample(64)
    for batch, copy in zip(kept, copies[1::2], strict=True):
        assert (batch.state == copy).all()
    for view, copy in zip(views, view_copies, strict=True):
        assert (view == copy).all()
    for index, copy in zip(ids, copies, strict=True):
        assert (replay[index].state == copy).all()
