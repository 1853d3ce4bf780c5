"""Scalars of a run: metrics.jsonl and TensorBoard events, and means kept on the device.

Keys read ``<component>/<split>/<metric>[_unit]``: ``world_model/train/token_loss``,
``collect/return``, ``speed/env_steps_per_s``.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from wmfast.disk import one_line_errors, write_atomic
from wmfast.errors import UserError

METRICS_FILE = "metrics.jsonl"

Row = dict[str, Any]
"""One row of metrics.jsonl: env_step, train_step (int), wall_s and scalars (float, None if NaN)."""


class MetricsLog:
    """Writes rows of scalars to ``metrics.jsonl`` and to a TensorBoard event file.

    Every row is written by one call and not buffered, so that a killed process loses at most the
    row then being written.

    Args:
        run_dir: the run folder, which exists.
        resume_at: env step of the checkpoint that the run goes on from (0: from the start). Later
            rows, and a torn last line, are dropped, so that no row appears twice.
        keep_bytes: size of metrics.jsonl when that checkpoint was saved (0: there was none). What
            was written later is dropped whatever its env step, for rows may come again at the very
            env step of the checkpoint: a run's end, the tokenizer's fit, a stage of ``staged``. A
            file that is shorter is kept as it is.

    Raises:
        UserError: metrics.jsonl is there already and `resume_at` is None, a line of it is damaged,
            or it can't be written.
    """

    def __init__(
        self, run_dir: Path, *, resume_at: int | None = None, keep_bytes: int | None = None
    ) -> None:
        self.path = run_dir / METRICS_FILE
        if keep_bytes is not None and self.path.exists():
            with one_line_errors("write", self.path):
                if self.path.stat().st_size > keep_bytes:
                    os.truncate(self.path, keep_bytes)
        if resume_at is not None and self.path.exists():
            rows = [row for row in read_metrics(self.path) if row["env_step"] <= resume_at]
            with one_line_errors("write", self.path):
                write_atomic(self.path, b"".join(map(_line, rows)))
        elif self.path.exists() and self.path.stat().st_size:
            raise UserError(f"{self.path} holds the metrics of another run: resume it instead")
        with one_line_errors("write", self.path):
            self._file = self.path.open("ab", buffering=0)
            self._events = _EventFile(run_dir, purge_step=resume_at)

    def log(
        self,
        env_step: int,
        train_step: int,
        wall_s: float,
        values: Mapping[str, float | Tensor],
    ) -> Row:
        """Appends one row; tensors come to the host in one sweep for each device.

        Args:
            values: key to a number or a tensor of one element; NaN and infinities become null.

        Returns:
            The row as `read_metrics` gives it back.

        Raises:
            UserError: the disk is full.
        """
        numbers = to_floats(values)
        row: Row = {
            "env_step": int(env_step),
            "train_step": int(train_step),
            "wall_s": round(float(wall_s), 3),
            **{key: v if math.isfinite(v) else None for key, v in numbers.items()},
        }
        line = memoryview(_line(row))
        with one_line_errors("write", self.path):
            while line:
                line = line[self._file.write(line) :]
            self._events.add(env_step, numbers)
        return row

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, oldest first; a torn last line is left out.

    Raises:
        UserError: the file can't be read, or a line other than the last is damaged.
    """
    with one_line_errors("read", path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("env_step"), int):
                raise ValueError("no env_step")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the process was killed at this row
                break
            raise UserError(f"{path}: line {number} is damaged ({error})") from error
        rows.append(row)
    return rows


def to_floats(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Numbers and one-element tensors as floats; one device-to-host copy for each device."""
    on_device: defaultdict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    for key, value in values.items():
        if isinstance(value, Tensor):
            on_device[value.device][key] = value.detach().reshape(()).float()
    numbers: dict[str, float] = {}
    for tensors in on_device.values():
        numbers.update(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return {k: numbers[k] if isinstance(v, Tensor) else float(v) for k, v in values.items()}


class Averager:
    """Means of device scalars between two rows: `add` never waits for the device, `flush` does."""

    def __init__(self) -> None:
        # Metrics that come together are summed together, by one fused kernel.
        self._sums: dict[tuple[str, ...], list[Tensor]] = {}
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)

    @torch.no_grad()
    def add(self, prefix: str, metrics: Mapping[str, Tensor]) -> None:
        """Adds one update's scalars under ``<prefix>/<name>``; the tensors may be overwritten later
        (as a replayed CUDA graph does)."""
        if not metrics:
            return
        names = tuple(f"{prefix}/{name}" for name in metrics)
        values = [value.detach().float() for value in metrics.values()]
        if names in self._sums:
            torch._foreach_add_(self._sums[names], values)
        else:
            self._sums[names] = [value.clone() for value in values]
        self._counts[names] += 1

    def flush(self) -> dict[str, float]:
        """The mean of each key since the last flush, and a fresh start."""
        totals: defaultdict[str, float] = defaultdict(float)
        counts: defaultdict[str, int] = defaultdict(int)
        flat = {(names, n): s for names, sums in self._sums.items() for n, s in enumerate(sums)}
        keyed = {f"{number}": value for number, value in enumerate(flat.values())}
        for (names, n), total in zip(flat, to_floats(keyed).values(), strict=True):
            totals[names[n]] += total
            counts[names[n]] += self._counts[names]
        self._sums.clear()
        self._counts.clear()
        return {key: total / counts[key] for key, total in totals.items()}


class _EventFile:
    """A TensorBoard event file, written in the caller's thread.

    `torch.utils.tensorboard` would import TensorFlow where that is installed and meets a full disk
    in a thread of its own, where nobody can answer it.
    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("ab", buffering=0))
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            # TensorBoard hides what older files of this folder hold from this step on.
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=purge_step + 1, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._records.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"
