"""TokenReplay among threads and processes: whole rows, no deadlock, no crash at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from replay_stream import ENVS, add, filled, make

from wmfast import TokenReplay

HERE = str(Path(__file__).parent)


def python(code: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path.insert(0, {HERE!r})\nfrom replay_stream import *\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def in_child(call: Callable[[], object]) -> str:
    """What the call says in a forked child; killed after ten seconds."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = repr(call())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write_end, text.encode())
        os._exit(0)
    os.close(write_end)
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.0005)
    text = os.read(read_end, 4096).decode()
    os.close(read_end)
    return text or "no answer: it hangs"


def test_a_fork_waits_for_the_calls_under_way() -> None:
    replay = filled(200, capacity=8000)
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            replay.sample(1000)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(25):
            assert in_child(lambda: (len(replay), len(replay.sample(3).index))) == "(400, 3)"
    finally:
        done.set()
        thread.join()
    add(replay, 0)  # the parent's lock is free again
    assert len(replay) == 402


def test_a_forked_child_leaves_the_parents_store_alone(tmp_path: Path) -> None:
    replay = filled(10, path=tmp_path / "store")
    before = (tmp_path / "store").read_bytes()
    calls: list[Callable[[], object]] = [
        lambda: add(replay, 10),
        lambda: replay.sample(4),
        lambda: replay.sample_sequences(4, 2),
        lambda: replay.update_priorities([0], [3.0]),
        replay.cut,
        lambda: replay.save(tmp_path / "snapshot"),
        replay.stats,
    ]
    for call in calls:
        assert in_child(call).startswith("RuntimeError: this buffer's file belongs to the process")
    assert (tmp_path / "store").read_bytes() == before
    assert in_child(lambda: len(filled(7, path=tmp_path / "another"))) == "14"
    add(replay, 10)
    assert len(replay) == 22


@pytest.mark.parametrize(
    "call",
    [
        "r.sample(200)",
        "r.sample_sequences(50, 20)",
        "r.update_priorities(ids, ones)",
        "add(r, 3)",
        "r.stats()",
        "r.save(path)",
    ],
)
def test_daemon_threads_end_with_the_interpreter(tmp_path: Path, call: str) -> None:
    code = f"""
import threading, time
path = {str(tmp_path / "snapshot")!r}
r, ids, ones = filled(30), np.arange(20), np.ones(20)
def loop():
    while True:
        {call}
for _ in range(3):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.05)
"""
    ended = python(code)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_every_call_at_once_and_every_row_whole(tmp_path: Path) -> None:
    replay = filled(20, capacity=400, vocab_size=65536, seed=1)
    failures: list[BaseException] = []
    done = threading.Event()
    rounds = dict.fromkeys(("rows", "runs", "save", "load", "counts"), 0)

    def rows() -> None:
        out = replay.sample(32)
        batch = replay.sample(32, out={name: out[name] for name in out})
        step, env = np.divmod(batch.index, ENVS)
        newest = (100 + step + 100 * env) % 65536
        assert (batch.action == step).all()
        assert (batch.state[:, -1] == newest[:, None]).all()
        assert (batch.next_state[:, -1] == newest[:, None] + 1).all()
        applied = replay.update_priorities(batch.index, 1.0 + batch.index % 3)
        assert 0 <= applied <= 32

    def runs() -> None:
        batch = replay.sample_sequences(8, 5, recent=(60, 0.5))
        tokens = batch.tokens[:, 3:, 0].astype(int)  # the start and what follows
        real = batch.mask.sum(axis=1)
        for i, count in enumerate(real):
            assert (np.diff(tokens[i, : count + 1]) == 1).all()
            env_and_step = tokens[i, :count] - batch.action[i, :count]
            assert (env_and_step == 100).all() or (env_and_step == 200).all()
            assert (batch.tokens[i] == batch.tokens[i, :, :1]).all()

    def save() -> None:
        replay.save(tmp_path / "snapshot")

    def load() -> None:
        if (tmp_path / "snapshot").exists():
            loaded = TokenReplay.load(tmp_path / "snapshot")
            batch = loaded.sample(16)
            assert (batch.action == batch.index // ENVS).all()

    def counts() -> None:
        stats = replay.stats()
        assert stats["drawable"] <= stats["stored"] <= stats["added"]
        assert stats["stored"] == min(stats["added"], 400)
        assert len(replay) <= 400
        assert replay.nbytes > 0
        assert "TokenReplay" in repr(replay)

    def loop(work: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                work()
                rounds[work.__name__] += 1
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    jobs = [rows, rows, runs, save, load, counts]
    threads = [threading.Thread(target=loop, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 2
        t = 20
        while time.monotonic() < end and t < 60_000 and not failures:
            add(replay, t)
            t += 1
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert all(count > 3 for count in rounds.values()), rounds
    assert t > 1000
    assert replay.stats()["added"] == t * ENVS


def test_the_gil_is_free_while_a_call_runs() -> None:
    """Another thread goes on during one long call."""
    replay = TokenReplay(100_000, 1)
    frames = np.zeros((1, 336), np.uint16)
    no = np.zeros(1, bool)
    for _ in range(20_000):
        replay.add(frames, [0], [0.0], no, no)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    replay.sample(10)
    before = ticks
    replay.sample(40_000)  # over 200 MB
    during = ticks - before
    done.set()
    thread.join()
    assert during >= 8


def test_one_of_two_savers_to_one_path_is_refused_or_both_are_whole(tmp_path: Path) -> None:
    replays = [filled(30, seed=1), filled(50, capacity=400, seed=2)]
    path = tmp_path / "snapshot"
    failures: list[str] = []
    done = threading.Event()

    def save(replay: TokenReplay) -> None:
        try:
            replay.save(path)
        except (ValueError, OSError) as error:
            if "snapshot.tmp: is in use by another" not in str(error):
                failures.append(str(error))

    def loop(replay: TokenReplay) -> None:
        while not done.is_set():
            save(replay)

    threads = [threading.Thread(target=loop, args=(replay,)) for replay in replays]
    for thread in threads:
        thread.start()
    loaded = set()
    end = time.monotonic() + 1
    try:
        while time.monotonic() < end or len(loaded) < 1:
            if path.exists():
                loaded.add(len(TokenReplay.load(path)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert loaded <= {60, 100}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["snapshot"]


def test_of_processes_that_make_one_store_one_gets_it(tmp_path: Path) -> None:
    for attempt in range(8):
        path = tmp_path / f"store{attempt}"
        start = time.time() + 0.02
        held, release = os.pipe()
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os.close(release)
                status = 0
                try:
                    time.sleep(max(0.0, start - time.time()))
                    replay = make(path=path)
                    add(replay, 0)
                    os.read(held, 1)  # who has the store keeps it until the others have given up
                    status = 10 if len(replay) == ENVS else 20
                except ValueError as error:
                    status = 11 if "is in use" in str(error) else 21
                except BaseException:
                    status = 22
                os._exit(status)
            children.append(child)
        os.close(held)
        ends = dict(exits(children, most=2))
        os.close(release)
        ends |= dict(exits([child for child in children if child not in ends], most=1))
        assert sorted(ends.values()) == [10, 11, 11]
        assert len(make(path=path)) == ENVS


def exits(children: list[int], *, most: int) -> list[tuple[int, int]]:
    """The first `most` of the children to end, and their statuses; fewer after 20 seconds."""
    found: dict[int, int] = {}
    end = time.monotonic() + 20
    while len(found) < most and time.monotonic() < end:
        for child in set(children) - found.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                found[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return list(found.items())
