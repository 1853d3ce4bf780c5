"""Bytes a stored step costs: growth of the resident set of a fresh process, priorities included."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from replay_stream import ENVS, Stream
from rivals import RIVALS, MissingRival, Rival, load


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _class_of(name: str) -> type[Rival]:
    if name == "wmfast":
        from rivals.wmfast_replay import WmfastReplay

        return WmfastReplay
    return load(name)


def _bytes_a_step(name: str, capacity: int) -> float:
    """In this process; called in a fresh one."""
    rival = _class_of(name)
    prioritized = True in rival.modes
    steps = capacity // ENVS
    stream = Stream(steps)

    def filled(capacity: int) -> Rival:
        buffer = rival(capacity, prioritized)
        for step in stream.play(0, capacity // ENVS, rival.stacks):
            buffer.add(step)
        draw = buffer.sample(32)
        if prioritized:
            buffer.update(draw.index, np.ones(32, np.float32))
        return buffer

    filled(ENVS * 256)  # libraries load and compile at their first use
    before = _resident()
    buffer = filled(capacity)
    grown = _resident() - before
    del buffer
    return grown / (steps * ENVS)


def measure(capacity: int) -> dict[str, Any]:
    """By name: bytes a step and if priorities are in it, or why it could not be measured."""
    found: dict[str, Any] = {}
    for name in ("wmfast", *RIVALS):
        try:
            prioritized = True in _class_of(name).modes
        except MissingRival as missing:
            found[name] = {"missing": str(missing)}
            continue
        code = f"import replay_memory; print(replay_memory._bytes_a_step({name!r}, {capacity}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )
        found[name] = {"bytes": float(done.stdout.split()[-1]), "prioritized": prioritized}
        print(f"{name:16} {found[name]['bytes']:8.0f} bytes a step", flush=True)
    return found
