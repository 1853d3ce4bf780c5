"""Whole runs in mode full: stopped, gone on with, extended, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from continual_play import started
from safetensors.torch import load_file

from wmfast.build import Parts, build
from wmfast.checks import check
from wmfast.cli import main_train
from wmfast.errors import UserError
from wmfast.gold_bank import codes_checksum, open_bank
from wmfast.metrics import MetricsLog, read_metrics
from wmfast.model_file import read_meta, read_model
from wmfast.models.tokenizer import build_tokenizer, tokenizer_quality
from wmfast.presets import PRESETS
from wmfast.progress import Reporter
from wmfast.resume import restore, save
from wmfast.rundir import RunDir, create_run
from wmfast.train import collect, dream, loop, train_agent, train_tokenizer, train_world_model
from wmfast.warmup import prepare

_SMOKE = PRESETS["smoke"]
SMOKE = replace(_SMOKE, game="breakout", device="cpu", loop=replace(_SMOKE.loop, mode="full"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    config = replace(SMOKE, run_dir=tmp_path / "run")
    with create_run(config, device="cpu", protocol={}, need_bytes=0) as opened:
        yield opened


def state_of(parts: Parts) -> dict[str, torch.Tensor]:
    assert parts.continual is not None
    modules = {
        "tokenizer": parts.tokenizer,
        "codes": parts.continual.codes,
        "agent": parts.agent,
        "world_model": parts.world_model,
    }
    state = {
        f"{name}.{key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, store in parts.continual._stores().items():
        for key, array in store.arrays().items():
            state[f"{name}.{key}"] = torch.from_numpy(array.astype(np.int64))
    return state


def learn(parts: Parts) -> dict[str, torch.Tensor]:
    assert parts.continual is not None
    for _ in range(2):
        train_tokenizer(parts, parts.continual)
        train_agent(parts)
        train_world_model(parts)
    parts.settle()
    return state_of(parts)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(run: RunDir) -> None:
    parts = build(SMOKE)
    with MetricsLog(run.path, resume_at=-1) as log, Reporter.create(1) as reporter:
        prepare(parts, log, reporter, lambda: False)
    assert parts.continual is not None
    for _ in range(15):
        collect(parts)
    train_tokenizer(parts, parts.continual)
    for _ in range(6):
        collect(parts)
        train_agent(parts)
    dream(parts)
    save(parts, run)
    at_save = state_of(parts)
    bank = parts.continual.bank
    assert len(bank.frames) > len(bank.frames_of_start)  # it has grown, and is part of the state
    straight = learn(parts)
    assert len(parts.dreams) == 0  # dreamed of tokens that have another meaning now
    history = parts.collector._history.btk
    with torch.no_grad():
        newest = parts.tokenizer.encode(torch.from_numpy(parts.collector._seen[-1][0]))
    assert history[:, -1].equal(newest)
    parts.envs.close()

    resumed = restore(run, SMOKE)
    assert resumed is not None
    begun = state_of(resumed)
    assert begun.keys() == at_save.keys()
    assert all(value.equal(at_save[name]) for name, value in begun.items())
    after = learn(resumed)
    for name, value in after.items():
        assert value.equal(straight[name]), name
    assert any(not value.equal(at_save[name]) for name, value in after.items())
    for _ in range(3):  # and goes on: ids of frames and rows still agree
        collect(resumed)
    assert resumed.continual is not None
    assert resumed.continual.window.next_id == resumed.replay.stats()["added"]
    resumed.envs.close()


def test_frames_of_an_earlier_version_are_refused_by_one_line(tmp_path: Path) -> None:
    continual, _, _ = started()
    continual.save(tmp_path / "frames")
    arrays = safetensors.numpy.load_file(tmp_path / "frames")
    del arrays["bank.ids"]
    safetensors.numpy.save_file(arrays, tmp_path / "frames")
    with pytest.raises(UserError, match="frames: of an earlier version, its bank has no 'ids'"):
        continual.load(tmp_path / "frames")


def test_a_whole_run_in_mode_full(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--game", "breakout", "--preset", "smoke", "--loop.mode", "full"]
    arguments += ["--env.max-frames", "480", "--loop.eval-every", "1000"]
    main_train([*arguments, "--steps", "420", "--run-dir", str(folder)])
    rows = read_metrics(folder / "metrics.jsonl")
    trained = [row for row in rows if "tokenizer/drift/retention" in row]
    assert [row["env_step"] for row in trained] == [300, 400]
    for row in trained:
        assert 0 < row["tokenizer/drift/retention_moving"] <= 1
        assert row["tokenizer/drift/bank_frames"] > 0
        assert row["tokenizer/train/codes_in_use"] > 2
    # A dream that falls due with a training comes after it, or it would be forgotten at once.
    pool = load_file(folder / "checkpoints" / "420" / "dreams.safetensors")
    assert pool["count"] > 0
    # The codes moved; what was kept at the end knows them as they are.
    _, weights = read_model(folder / "models" / "tokenizer.safetensors", "tokenizer")
    codes = codes_checksum(weights["codes"])
    assert read_meta(folder / "models" / "world_model.safetensors")["codes"] == codes
    assert open_bank(folder / "gold_indices.json").tokenizer == codes
    result = json.loads((folder / "result.json").read_text())
    assert result["world_model_gold"]["env_step"] == 420
    assert result["world_model_gold"]["not_comparable"] == []
    # The tokenizer's figures are of the one that the run ends with, on frames that it never saw.
    tokenizer = build_tokenizer(SMOKE.tokenizer)
    tokenizer.load_state_dict(weights)
    kept = safetensors.numpy.load_file(folder / "checkpoints" / "420" / "frames.safetensors")
    held_out = kept["bank.frames"][: len(kept["bank.first"])]
    quality = tokenizer_quality(tokenizer, torch.from_numpy(held_out))
    assert quality.items() <= result["tokenizer_held_out"].items()
    at = {row["env_step"]: row for row in rows if "tokenizer/heldout/psnr" in row}
    assert sorted(at) == [200, 420]
    assert at[420]["tokenizer/heldout/psnr"] == quality["psnr"] != at[200]["tokenizer/heldout/psnr"]


def test_a_training_left_out_at_the_end_is_made_up_for_when_the_run_goes_on(run: RunDir) -> None:
    def trainings(steps: int) -> int:
        quiet = replace(SMOKE.loop, eval_every=10_000)
        config = replace(SMOKE, steps=steps, loop=quiet)
        parts = restore(run, config) or build(config)
        assert parts.continual is not None
        with parts.envs, MetricsLog(run.path, resume_at=-1) as log, Reporter.create(1) as reporter:
            if not parts.counters.env_step:
                prepare(parts, log, reporter, lambda: False)
            before = parts.continual._trainings
            loop(parts, run, log, reporter, lambda: False)
        assert parts.counters.env_step == steps
        assert len(parts.dreams) > 0 or steps == 300
        return parts.continual._trainings - before

    assert trainings(300) == 0  # nothing could follow it
    assert trainings(300) == 0
    assert trainings(340) == 1  # that of 300
    assert trainings(380) == 0


def test_a_window_shorter_than_what_is_played_between_trainings_is_refused() -> None:
    few = replace(SMOKE, continual=replace(SMOKE.continual, window_frames=103))
    with pytest.raises(UserError, match=r"--continual.window-frames 103: must be at least 104"):
        check(few)
    check(replace(few, loop=replace(few.loop, mode="frozen")))
    odd = replace(SMOKE, continual=replace(SMOKE.continual, drift_bound=1.5))
    with pytest.raises(UserError, match=r"--continual.drift-bound 1.5: must be within 0..1"):
        check(odd)
