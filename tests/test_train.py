"""The main job on a real game, tiny: the whole run, resume, interruption, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from wmfast.build import Parts, build
from wmfast.cli import parse
from wmfast.config import Config, TokenizerConfig, WorldModelConfig
from wmfast.config_json import config_from_json
from wmfast.errors import UserError
from wmfast.launch import resolve
from wmfast.metrics import MetricsLog, read_metrics
from wmfast.model_file import read_meta, read_model, save_model
from wmfast.models.tokenizer import build_tokenizer
from wmfast.presets import PRESETS
from wmfast.progress import Reporter
from wmfast.resume import restore, save
from wmfast.rundir import RunDir, create_run, load_config, resume_run
from wmfast.train import (
    collect,
    dream,
    due,
    is_rollout,
    learning_rate,
    train,
    train_agent,
    train_world_model,
)
from wmfast.warmup import prepare, split_frames

SMOKE = replace(PRESETS["smoke"], game="breakout", device="cpu")


def command(*arguments: object) -> list[str]:
    code = "from wmfast.cli import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def wmfast(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    config = replace(SMOKE, run_dir=tmp_path / "run")
    with create_run(config, device="cpu", protocol={}, need_bytes=0) as opened:
        yield opened


def prepared(run: RunDir, config: Config = SMOKE) -> Parts:
    parts = build(config)
    with MetricsLog(run.path, resume_at=-1) as log, Reporter.create(1) as reporter:
        prepare(parts, log, reporter, lambda: False)
    return parts


def test_a_run_ends_with_scores_pictures_models_and_metrics(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    for words in ("greedy", "random play", "copy last frame", "PSNR", "Where the time went"):
        assert words in printed
    result = json.loads((folder / "result.json").read_text())
    assert result["env_steps"] == SMOKE.steps
    assert len(result["scores"]["greedy"]["scores"]) == SMOKE.loop.eval_episodes
    assert result["scores"]["greedy"]["protocol"]["sticky"] == 0.0
    assert f"{result['scores']['greedy']['mean']:.1f}" in printed
    for name in ("reconstructions.png", "dream.gif", "curves.png"):
        assert (folder / "media" / name).stat().st_size > 1000
    for name in ("tokenizer", "world_model", "agent"):
        assert (folder / "models" / f"{name}.safetensors").exists()

    rows = read_metrics(folder / "metrics.jsonl")
    assert all({"env_step", "train_step", "wall_s"} <= row.keys() for row in rows)
    keys = {key for row in rows for key in row}
    assert {
        "agent/train/loss",
        "collect/epsilon",
        "eval/greedy/return",
        "speed/env_steps_per_s",
        "tokenizer/heldout/psnr_moving",
        "world_model/heldout/changed_accuracy",
        "world_model/heldout/copy_accuracy",
        "world_model/train/token_loss",
        "world_model/train/rollout_changed_accuracy",
        "dyna/train/trust",
    } <= keys
    assert all(re.fullmatch(r"[a-z_]+(/[a-z0-9_.]+)+|env_step|train_step|wall_s", k) for k in keys)
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.is_dir())
    assert steps == [400, 600]  # the newest two, the last of them at the end


def test_eval_and_dream_use_a_finished_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    out = tmp_path / "result.json"
    done = wmfast("eval", "--run-dir", folder, "--episodes", 3, "--json", out)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(out.read_text())["scores"]) == 3
    figures = tmp_path / "world_model.json"
    done = wmfast("eval", "--world-model", folder, "--tier", "canary", "--json", figures)
    assert done.returncode == 0, done.stderr
    assert "after 10 steps" in done.stdout
    kept = json.loads((folder / "result.json").read_text())["world_model_gold"]
    assert json.loads(figures.read_text())["steps"] == kept["steps"]
    gif = tmp_path / "dream.gif"
    done = wmfast("dream", "--run-dir", folder, "--out", gif, "--steps", 8, "--start", 5)
    assert done.returncode == 0, done.stderr
    assert gif.read_bytes()[:3] == b"GIF"


def test_the_last_evaluations_stay_in_the_metrics_of_a_run_that_goes_on(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    rows = read_metrics(run / "metrics.jsonl")

    def go_on(steps: int) -> list[dict[str, Any]]:
        config = replace(load_config(run), steps=steps, run_dir=run)
        with resume_run(config, device="cpu", protocol={}, need_bytes=0) as opened:
            assert train(opened, config) is None
        return read_metrics(run / "metrics.jsonl")

    monkeypatch.setattr("wmfast.train.stop_on_signal", lambda: nullcontext(lambda: True))
    assert go_on(700) == rows
    assert go_on(700) == rows
    # Without a further step they are played again, and their rows come anew.
    trained = go_on(600)
    assert trained == rows[: len(trained)]
    assert [row["env_step"] for row in trained if "eval/greedy/return" in row] == [400]


def test_models_of_a_run_start_another(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    models = folder / "models"
    arguments = ["train", "--game", "breakout", "--preset", "smoke", "--steps", 300]
    arguments += ["--run-dir", tmp_path / "run", "--vqvae", models / "tokenizer.safetensors"]
    done = wmfast(*arguments, "--wm", models / "world_model.safetensors")
    assert done.returncode == 0, done.stderr
    assert "fitting the tokenizer" not in done.stdout.split("breakout, preset")[0]
    assert read_meta(models / "agent.safetensors")["game"] == "breakout"

    tokenizer, codes = models / "tokenizer.safetensors", tmp_path / "other.safetensors"
    facts, kept = read_model(tokenizer, "tokenizer")
    moved = build_tokenizer(config_from_json(TokenizerConfig, facts, "tokenizer"))
    moved.load_state_dict({**kept, "codes": kept["codes"] + 1.0})
    save_model(codes, moved, "tokenizer", SMOKE.tokenizer, {})
    foreign = wmfast(*arguments[:-1], codes, "--wm", models / "world_model.safetensors")
    assert foreign.returncode == 2
    assert "knows the tokens of another tokenizer" in foreign.stderr

    swapped = wmfast(*arguments[:-1], models / "agent.safetensors")
    assert swapped.returncode == 2
    assert swapped.stderr.count("\n") == 1
    assert "holds an agent: a wmfast tokenizer file" in swapped.stderr


def test_a_run_goes_on_without_the_model_files_that_it_began_with(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    models, folder = tmp_path / "models", tmp_path / "run"
    shutil.copytree(finished[0] / "models", models)
    files = {"vqvae": models / "tokenizer.safetensors", "wm": models / "world_model.safetensors"}
    config = replace(SMOKE, run_dir=folder, **files)
    arguments = ["--game", "breakout", "--run-dir", str(folder), "--resume"]

    def going_on() -> Config:
        return resolve(arguments, lambda default: parse(Config, arguments, "wmfast", default))

    with create_run(config, device="cpu", protocol={}, need_bytes=0) as opened:
        parts = prepared(opened, config)
        parts.envs.close()
        shutil.rmtree(models)
        with pytest.raises(UserError, match=r"models/tokenizer\.safetensors"):
            going_on()  # as if killed in the warm-up
        save(parts, opened)
        resumed = restore(opened, going_on())
    assert resumed is not None
    resumed.envs.close()
    assert resumed.config.vqvae == files["vqvae"]
    assert resumed.tokenizer.codes.equal(parts.tokenizer.codes)
    before, after = parts.world_model.state_dict(), resumed.world_model.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


def weights(parts: Parts) -> dict[str, torch.Tensor]:
    modules = {
        "agent": parts.agent,
        "world_model": parts.world_model,
        "dreams": parts.dreams,
    }
    return {
        f"{name}.{key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def train_on(parts: Parts, updates: int) -> dict[str, torch.Tensor]:
    for _ in range(updates):
        train_agent(parts)
        train_world_model(parts)
    parts.settle()
    return weights(parts)


EVERYTHING = replace(
    SMOKE,
    agent=replace(
        SMOKE.agent,
        value_head="hl_gauss",
        shift=1,
        token_dropout=0.1,
        n_step_start=4,
        gamma_start=0.9,
        anneal_updates=6,
        weight_decay=0.1,
        act_with_target=True,
        reset_every=4,
        reset_until=1.0,
    ),
)


@pytest.mark.parametrize("config", [SMOKE, EVERYTHING], ids=["smoke", "everything"])
def test_training_after_a_resume_equals_the_uninterrupted_run_bit_for_bit(
    run: RunDir, config: Config
) -> None:
    parts = prepared(run, config)
    for _ in range(10):
        collect(parts)
        train_agent(parts)
        train_world_model(parts)
    dream(parts)
    assert len(parts.dreams) > 0
    save(parts, run)
    at_save = weights(parts)
    straight = train_on(parts, 5)
    assert parts.counters.agent_reset_at == (12 if config.agent.reset_every else 0)
    parts.envs.close()

    torch.manual_seed(12345)  # nothing may depend on what this process drew before
    resumed = restore(run, config)
    assert resumed is not None
    assert resumed.counters.env_step == parts.counters.env_step
    assert len(resumed.replay) == len(parts.replay)
    assert all(value.equal(at_save[name]) for name, value in weights(resumed).items())
    after = train_on(resumed, 5)
    assert after.keys() == straight.keys()
    assert any(not value.equal(at_save[name]) for name, value in after.items())
    for name, value in after.items():
        assert value.equal(straight[name]), name

    before = len(resumed.replay)
    for _ in range(3):  # and it goes on collecting, in new games
        collect(resumed)
    assert len(resumed.replay) == before + 3 * SMOKE.env.num_envs
    resumed.envs.close()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    def final(seed: int) -> dict[str, torch.Tensor]:
        config = replace(SMOKE, seed=seed, run_dir=tmp_path / f"{time.monotonic_ns()}")
        with create_run(config, device="cpu", protocol={}, need_bytes=0) as opened:
            parts = prepared(opened, config)
        for _ in range(6):
            collect(parts)
            train_agent(parts)
        parts.envs.close()
        return weights(parts)

    one, again, other = final(1), final(1), final(2)
    assert all(value.equal(again[name]) for name, value in one.items())
    assert any(not value.equal(other[name]) for name, value in one.items())


def test_held_out_frames_are_of_a_game_that_the_fit_never_sees(run: RunDir) -> None:
    from wmfast.collect import collect_random

    parts = build(SMOKE)
    warmup = collect_random(parts.envs, 40, parts.rng)
    parts.envs.close()
    seen, held_out = split_frames(warmup)
    assert len(seen) == 10 * 3
    assert len(held_out) == 10
    for step, raw in enumerate(warmup):
        assert (seen[3 * step : 3 * step + 3] == raw.frames[:3]).all()
        assert (held_out[step] == raw.frames[3]).all()


def test_the_world_models_rate_rises_and_falls() -> None:
    config = WorldModelConfig(learning_rate=1.0, warmup_updates=10, decay_share=0.25)
    rates = [learning_rate(update, 1000, config) for update in (0, 4, 9, 500, 750, 875, 999, 2000)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.05, 0.05])
    constant = replace(config, warmup_updates=0, decay_share=0.0)
    assert {learning_rate(update, 1000, constant) for update in (0, 500, 2000)} == {1.0}


@pytest.mark.parametrize(("every", "total"), [(1, 800), (3, 266), (8, 100), (20, 40)])
def test_updates_fall_due_more_often_than_vector_steps_too(every: int, total: int) -> None:
    counters = SimpleNamespace(env_step=0)
    parts = cast(Parts, SimpleNamespace(counters=counters, envs=SimpleNamespace(num_envs=8)))
    counts = []
    for _ in range(100):
        counters.env_step += 8
        counts.append(due(parts, every))
    assert sum(counts) == total
    assert max(counts) - min(counts) <= 1


def test_rollouts_come_evenly_and_not_before_their_start() -> None:
    config = WorldModelConfig(rollout_steps=5, rollout_share=0.25, rollout_start=0.5)
    rolls = [update for update in range(100) if is_rollout(update, 100, config)]
    assert rolls == list(range(51, 100, 4))
    every = replace(config, rollout_share=1.0, rollout_start=0.0)
    assert all(is_rollout(update, 100, every) for update in range(100))
    assert not any(is_rollout(u, 100, replace(every, rollout_steps=1)) for u in range(100))


def test_staged_trains_the_world_model_before_the_agent(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = wmfast("train", "--game", "pong", "--preset", "smoke", "--run-dir", folder, "--steps",
                  320, "--loop.mode", "staged", "--agent.updates", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_metrics(folder / "metrics.jsonl")
    assert done.stdout.index("training the world model") < done.stdout.index("training:")
    state = json.loads((folder / "checkpoints" / "320" / "state.json").read_text())["state"]
    assert state["counters"]["world_model_updates"] == (320 - 200) // SMOKE.world_model.every
    assert state["counters"]["agent_updates"] == 2 * ((320 - 200) // SMOKE.agent.every)
    assert not any("world_model/train/loss" in row and row["env_step"] > 200 for row in rows)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_from_its_checkpoint(
    how: signal.Signals, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "--game", "breakout", "--preset", "smoke", "--run-dir", folder]
    process = subprocess.Popen(
        command(*arguments, "--steps", 100_000), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (folder / "checkpoints" / "400").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 0, err
        assert b"--resume" in out
        assert b"Traceback" not in err
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
    reached = max(steps)
    assert reached >= 400

    done = wmfast(*arguments, "--resume", "--steps", reached + 100)
    assert done.returncode == 0, done.stderr
    assert "each game begins anew" in done.stdout
    rows = read_metrics(folder / "metrics.jsonl")
    trained = [row["env_step"] for row in rows if "agent/train/loss" in row]
    assert trained == sorted(set(trained))  # no row twice
    assert json.loads((folder / "result.json").read_text())["env_steps"] == reached + 100


def test_stopping_before_the_first_checkpoint_says_so_and_harms_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "--game", "breakout", "--preset", "smoke", "--run-dir", folder]
    slow = ["--tokenizer.train-steps", 100_000]
    process = subprocess.Popen(
        command(*arguments, *slow), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "fitting" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "nothing to go on from" in out
    assert "Traceback" not in err
