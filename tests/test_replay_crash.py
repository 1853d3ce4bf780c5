"""Kill -9, full disks and damaged files: what was committed is there, what is broken is named."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wmfast import TokenReplay

ENVS, KEPT = 3, 50
HERE = str(Path(__file__).parent)


def make(path: str | Path | None) -> TokenReplay:
    return TokenReplay(ENVS * KEPT, ENVS, frame_shape=(5,), vocab_size=65536, path=path)


def add(replay: TokenReplay, t: int) -> None:
    """Every token of a frame is the id of its row."""
    ids = (np.arange(ENVS) + t * ENVS).astype(np.uint16)
    ended = np.full(ENVS, t % 9 == 8)
    replay.add(
        np.repeat(ids[:, None], 5, axis=1), np.full(ENVS, t), np.ones(ENVS), ended, ended & False
    )


def fill_the_disk(path: str) -> None:
    replay = make(None)
    add(replay, 0)
    replay.save(path)
    for t in range(1, 20):
        add(replay, t)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # a file can't grow past this
    report(lambda: replay.save(path))
    report(lambda: make(path + "-store"))


def report(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OSError as error:
        print(error)


def command(function: Callable[[str], None], path: Path) -> list[str]:
    """The function of this module in a process of its own."""
    code = f"import test_replay_crash as t; t.{function.__name__}({str(path)!r})"
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {HERE!r}); {code}"]


@pytest.mark.parametrize("what", ["store", "save"])
def test_two_hundred_kills_lose_at_most_the_step_or_the_save_under_way(
    tmp_path: Path, what: str
) -> None:
    program = Path(HERE) / "replay_killing.py"
    result = subprocess.run(
        [sys.executable, str(program), what, "200", "1", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    counts = [int(word) for word in result.stdout.replace(",", "").split() if word.isdigit()]
    assert counts[0] == 200
    if what == "store":
        assert counts[1] > 300  # steps; a process that is killed at its start proves nothing
    else:
        assert all(times > 3 for times in counts[1:])  # saves, old and new states


def small(**options) -> TokenReplay:
    return TokenReplay(60, ENVS, frame_shape=(5,), **options)


def add_some(replay: TokenReplay, steps: int = 10) -> None:
    for t in range(steps):
        frames = np.full((ENVS, 5), t, np.uint16)
        no = np.zeros(ENVS, bool)
        replay.add(frames, np.zeros(ENVS, int), np.zeros(ENVS), no, no)


def test_a_full_disk_is_an_error_that_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    result = subprocess.run(
        command(fill_the_disk, path), capture_output=True, text=True, check=True
    )
    assert result.stdout.count("File too large") == 2
    assert str(path) in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]
    assert len(TokenReplay.load(path)) == ENVS


def test_damaged_snapshots_are_named(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    replay = small()
    add_some(replay, 60)
    replay.save(path)
    good = path.read_bytes()
    for damaged in (
        good[:-1],
        good[: len(good) // 2],
        b"",
        good[:4300] + bytes([good[4300] ^ 4]) + good[4301:],
        good[:40] + b"\xff" + good[41:],
        b"something else altogether" * 1000,
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path}: "):
            TokenReplay.load(path)
    path.write_bytes(good[:8] + b"\x07" + good[9:])
    with pytest.raises(ValueError, match="format version 7, this program reads version 2"):
        TokenReplay.load(path)
    with pytest.raises(FileNotFoundError):
        TokenReplay.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="snapshot"):
        replay.save(tmp_path / "no" / "such" / "snapshot")


def test_damaged_and_foreign_stores_are_named(tmp_path: Path) -> None:
    path = tmp_path / "store"
    replay = small(path=path)
    add_some(replay)
    with pytest.raises(ValueError, match=f"{path}: is in use"):
        small(path=path)
    del replay
    good = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path}: is a live store"):
        TokenReplay.load(path)
    for field, options in {
        "vocab_size 512, asked for 32": {"vocab_size": 32},
        "autoreset next_step, asked for same_step": {"autoreset": "same_step"},
        "prioritized 1, asked for 0": {"prioritized": False},
    }.items():
        with pytest.raises(ValueError, match=f"{path}: the store has {field}"):
            small(path=path, **options)
    with pytest.raises(ValueError, match="the store has capacity 60, asked for 63"):
        TokenReplay(63, ENVS, frame_shape=(5,), path=path)
    # The first row of env 1 lies 21 slots into the second page: 12 bytes, then its frame.
    at = 4096 + 21 * 20 + 12
    path.write_bytes(good[:at] + b"\x09" + good[at + 1 :])
    with pytest.raises(ValueError, match=f"{path}: damaged row: env 1 step 0"):
        small(path=path)
    path.write_bytes(good[:-4096])
    with pytest.raises(ValueError, match="bytes long, should be"):
        small(path=path)
    path.write_bytes(good)
    replay = small(path=path, n_step=3, history=2, gamma=0.5)  # these may change
    assert replay.sample(4).state.shape == (4, 2, 5)
    replay.save(tmp_path / "snapshot")
    assert TokenReplay.load(tmp_path / "snapshot").n_step == 3


def test_a_snapshot_never_replaces_a_live_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    replay = small(path=path)
    add_some(replay)
    for saver in (replay, small()):
        with pytest.raises(ValueError, match=f"{path}: is a live store, a snapshot would replace"):
            saver.save(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["store"]
    with pytest.raises(ValueError, match=f"{path}: is a live store"):
        TokenReplay.load(path)
    # Nor does the file that a save writes first.
    beside = small(path=tmp_path / "snapshot.tmp")
    with pytest.raises(ValueError, match=r"snapshot.tmp: is in use by another process or buffer"):
        replay.save(tmp_path / "snapshot")
    add_some(beside)
    del replay
    assert len(small(path=path)) == len(beside) == 10 * ENVS


def test_paths_that_are_no_store_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "letter").write_text("Dear reader, " * 1000)
    (tmp_path / "short").write_text("Hi")
    small().save(tmp_path / "snapshot")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    openers = [lambda path: small(path=path), TokenReplay.load]
    for opener in openers:
        for name, why in {
            "empty": "the file ends too early",
            "short": "the file ends too early",
            "letter": "is not a replay buffer of wmfast",
        }.items():
            with pytest.raises(ValueError, match=f"{tmp_path / name}: {why}"):
                opener(tmp_path / name)
        for path in (tmp_path, tmp_path / "no" / "folder", tmp_path / ("x" * 300), b"/\xff/\xff"):
            with pytest.raises(OSError, match=r"cannot open|Is a directory|cannot read"):
                opener(path)
    with pytest.raises(ValueError, match="is a snapshot: open it with TokenReplay"):
        small(path=tmp_path / "snapshot")
    with pytest.raises(OSError, match="cannot move"):
        small().save(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
