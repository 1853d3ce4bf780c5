"""Kills processes that write a buffer, and checks what is left against the stream they wrote.

Run as a program, so that what is forked has numpy and wmfast but not the test process's torch:

    python replay_killing.py store|save KILLS SEED FOLDER

Prints one line of counts; a difference is an AssertionError.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from replay_oracle import Oracle

from wmfast import TokenReplay

ENVS, KEPT, TOKENS, PERIOD = 3, 20, 5, 4096
_RNG = np.random.default_rng(0)
FRAMES = _RNG.integers(0, 65536, (PERIOD, ENVS, TOKENS), dtype=np.uint16)
FINALS = _RNG.integers(0, 65536, (PERIOD, ENVS, TOKENS), dtype=np.uint16)
REWARDS = _RNG.normal(size=(PERIOD, ENVS)).astype(np.float32)
ENDS = _RNG.random((PERIOD, 3, ENVS)) < 0.08  # terminated, truncated, life lost


def make(same_step: bool, path: Path | None) -> TokenReplay:
    return TokenReplay(
        ENVS * KEPT,
        ENVS,
        frame_shape=(TOKENS,),
        vocab_size=65536,
        history=3,
        n_step=2,
        gamma=0.9,
        autoreset="same_step" if same_step else "next_step",
        path=path,
    )


def cut_before(t: int) -> bool:
    return t % 41 == 40


def add(replay: TokenReplay, t: int, same_step: bool) -> None:
    """Step ``t`` of the stream, with the cut before it if there is one."""
    at = t % PERIOD
    if cut_before(t):
        replay.cut()
    replay.add(
        FRAMES[at],
        np.full(ENVS, t),
        REWARDS[at],
        ENDS[at, 0],
        ENDS[at, 1],
        life_lost=ENDS[at, 2],
        final_frames=FINALS[at] if same_step else None,
    )


def tell(oracle: Oracle, t: int) -> None:
    at = t % PERIOD
    oracle.was_cut = cut_before(t)
    actions = np.full(ENVS, t)
    oracle.add(FRAMES[at], actions, REWARDS[at], ENDS[at, 0], ENDS[at, 1], FINALS[at], ENDS[at, 2])


def draw_and_update(replay: TokenReplay, t: int) -> None:
    if replay.stats()["drawable"]:
        batch = replay.sample(4)
        replay.update_priorities(batch.index, 0.5 + (batch.index + t) % 7)


def check_every_row(replay: TokenReplay, oracle: Oracle) -> None:
    """Each row that can be drawn, all of them, to the last token."""
    rows = oracle.drawable()
    assert replay.stats()["drawable"] == len(rows)
    if not rows:
        return
    ids = np.array(sorted(rows))
    assert replay.update_priorities(ids, np.ones(len(ids))) == len(ids)
    batch = replay.sample(2 * len(ids))  # stratified over equal priorities: each comes up
    assert set(batch.index.tolist()) == set(rows)
    for i, row in enumerate(batch.index.tolist()):
        state, action, reward, discount, next_state = rows[row]
        assert (batch.state[i] == state).all()
        assert (batch.next_state[i] == next_state).all()
        assert batch.action[i] == action
        assert abs(batch.reward[i] - reward) < 1e-5
        assert abs(batch.discount[i] - discount) < 1e-6


def killed(work: Callable[[mmap.mmap], None], number: int, seconds: float) -> int:
    """Kills ``work`` that long after its start; the number that it noted last."""
    progress = mmap.mmap(-1, 8)
    note(progress, number)
    child = os.fork()
    if child == 0:
        try:
            work(progress)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    # Most get to their first step before the clock starts, however busy the machine is.
    deadline = time.monotonic() + 10
    while seconds > 0.001 and time.monotonic() < deadline:
        if int.from_bytes(progress[:], "little") != number:
            break
        time.sleep(0.0002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer ended by itself"
    return int.from_bytes(progress[:], "little")


def note(progress: mmap.mmap, number: int) -> None:
    progress[:] = number.to_bytes(8, "little")


def kill_stores(kills: int, rng: np.random.Generator, folder: Path) -> str:
    path = folder / "store"
    same_step, steps, written = False, 0, 0
    oracle = Oracle(KEPT, ENVS, 3, 2, 0.9, same_step)

    def write(progress: mmap.mmap) -> None:
        replay = make(same_step, path)
        for t in range(steps, 1 << 40):
            add(replay, t, same_step)
            note(progress, t + 1)
            draw_and_update(replay, t)

    for kill in range(kills):
        if kill % 20 == 0:  # a new store, of the other kind
            path.unlink(missing_ok=True)
            same_step, steps = not same_step, 0
            oracle = Oracle(KEPT, ENVS, 3, 2, 0.9, same_step)
        told = killed(write, steps, float(rng.exponential(0.004)))
        replay = make(same_step, path)
        now = replay.stats()["added"] // ENVS
        assert now in (told, told + 1), f"{now} steps are left of {told}"
        for t in range(steps, now):
            tell(oracle, t)
        written, steps = written + now - steps, now
        check_every_row(replay, oracle)
        del replay  # the store is free for the next writer
    return f"{kills} kills, {written} steps"


def kill_saves(kills: int, rng: np.random.Generator, folder: Path) -> str:
    path, mine = folder / "snapshot", folder / "mine"
    same_step, saves, old, new = False, 0, 0, 0
    twin = make(same_step, None)  # goes through the same calls, and is never loaded
    steps = 0

    def go_on(replay: TokenReplay, t: int) -> None:
        add(replay, t, same_step)
        draw_and_update(replay, t)

    def write(progress: mmap.mmap) -> None:
        replay = TokenReplay.load(path)
        for t in range(steps, 1 << 40):
            go_on(replay, t)
            replay.save(path)
            note(progress, t + 1)

    for kill in range(kills):
        if kill % 20 == 0:
            same_step, steps = not same_step, 0
            twin = make(same_step, None)
            twin.save(path)
        told = killed(write, steps, float(rng.exponential(0.009)))
        now = TokenReplay.load(path).stats()["added"] // ENVS
        assert now in (told, told + 1), f"{now} steps were saved, {told} reported"
        old, new = old + (now == told), new + (now != told)
        for t in range(steps, now):
            go_on(twin, t)
        saves, steps = saves + now - steps, now
        twin.save(mine)
        assert path.read_bytes() == mine.read_bytes(), f"not the snapshot of step {now}"
    TokenReplay.load(path).save(path)  # what a kill left beside does not matter
    assert sorted(file.name for file in folder.iterdir()) == ["mine", "snapshot"]
    return f"{kills} kills, {saves} saves, the old one {old} times, the new one {new} times"


if __name__ == "__main__":
    what, kills, seed, folder = sys.argv[1:]
    run = {"store": kill_stores, "save": kill_saves}[what]
    assert "torch" not in sys.modules
    print(run(int(kills), np.random.default_rng(int(seed)), Path(folder)))
