"""Rows survive a kill, resuming drops what will come again, means need no host sync."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wmfast.errors import UserError
from wmfast.metrics import Averager, MetricsLog, read_metrics


def test_rows_and_tensorboard_hold_the_same_scalars(tmp_path: Path) -> None:
    values = {"collect/return": 812.5, "agent/train/loss": torch.tensor([0.25])}
    with MetricsLog(tmp_path) as log:
        log.log(100, 25, 1.5, values)
        log.log(200, 50, 3.0, {"collect/return": math.nan, "agent/train/loss": math.inf})
        rows = read_metrics(tmp_path / "metrics.jsonl")  # readable while the run goes on
    assert rows == [
        {
            "env_step": 100,
            "train_step": 25,
            "wall_s": 1.5,
            "collect/return": 812.5,
            "agent/train/loss": 0.25,
        },
        {
            "env_step": 200,
            "train_step": 50,
            "wall_s": 3.0,
            "collect/return": None,
            "agent/train/loss": None,
        },
    ]
    board = EventAccumulator(str(tmp_path)).Reload()
    first, second = board.Scalars("collect/return")
    assert (first.step, first.value, second.step) == (100, 812.5, 200)
    assert board.Scalars("agent/train/loss")[0].value == 0.25


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (100, 200, 300):
            log.log(step, step // 4, step / 10, {"collect/return": float(step)})
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"env_step": 400, "train')  # killed while writing
    assert [row["env_step"] for row in read_metrics(path)] == [100, 200, 300]

    with MetricsLog(tmp_path, resume_at=200) as log:
        log.log(300, 75, 31.0, {"collect/return": -1.0})
    assert [(r["env_step"], r["collect/return"]) for r in read_metrics(path)] == [
        (100, 100.0),
        (200, 200.0),
        (300, -1.0),
    ]
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("collect/return")
    assert [(s.step, s.value) for s in scalars] == [(100, 100.0), (200, 200.0), (300, -1.0)]


def test_resume_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log(100, 0, 1.0, {})
    with MetricsLog(tmp_path, resume_at=0):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_rows_later_than_the_checkpoint_go_even_at_its_own_env_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(tmp_path) as log:
        log.log(100, 25, 1.0, {"agent/train/loss": 1.0})
        log.log(200, 50, 2.0, {"agent/train/loss": 2.0})
        known = path.stat().st_size
        log.log(200, 60, 3.0, {"eval/greedy/return": 3.0})  # as a finished run's last evaluation
    kept = read_metrics(path)[:2]
    with MetricsLog(tmp_path, resume_at=200, keep_bytes=known) as log:
        assert read_metrics(path) == kept
        log.log(200, 60, 4.0, {"eval/greedy/return": 3.0})
    assert [row["wall_s"] for row in read_metrics(path)] == [1.0, 2.0, 4.0]

    with MetricsLog(tmp_path, resume_at=100, keep_bytes=10**9):  # shorter: only the env step tells
        assert read_metrics(path) == kept[:1]
    with MetricsLog(tmp_path, resume_at=0, keep_bytes=0):
        assert read_metrics(path) == []


def test_a_kill_during_the_tokenizers_fit_leaves_no_row_twice(tmp_path: Path) -> None:
    for _ in range(2):
        with MetricsLog(tmp_path, resume_at=0, keep_bytes=0) as log:
            log.log(0, 0, 1.0, {"tokenizer/train/loss": 0.5})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_rows_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log(100, 0, 1.0, {})
    with pytest.raises(UserError, match="holds the metrics of another run"):
        MetricsLog(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    row = json.dumps({"env_step": 1, "train_step": 0, "wall_s": 0})
    path.write_text(f"{row}\n{row[:9]}\n{row}\n")
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_metrics(path)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path)
    with log, pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: the disk is full"):
        log.log(1, 0, 0.0, {})


def test_averages_since_the_last_flush() -> None:
    averager = Averager()
    static = torch.tensor(0.0)  # a captured graph writes each update's loss to one address
    for loss in (1.0, 2.0, 6.0):
        static.fill_(loss)
        averager.add("agent/train", {"loss": static, "q": torch.tensor(loss, dtype=torch.bfloat16)})
    averager.add("agent/train", {"loss": torch.tensor(11.0)})  # an update without the other metric
    averager.add("world_model/train", {"loss": torch.tensor(-1.0)})
    assert averager.flush() == {
        "agent/train/loss": 5.0,
        "agent/train/q": 3.0,
        "world_model/train/loss": -1.0,
    }
    assert averager.flush() == {}
    averager.add("agent/train", {"loss": torch.tensor(7.0)})
    assert averager.flush() == {"agent/train/loss": 7.0}


@pytest.mark.gpu
def test_adding_never_waits_for_the_device() -> None:
    averager = Averager()
    loss = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            averager.add("agent/train", {"loss": loss})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert averager.flush() == {"agent/train/loss": 1.0}
