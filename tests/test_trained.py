"""A trained run put to use: which world model it is, on how many threads, on which frozen steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wmfast.build import use_cores
from wmfast.checkpoint import load_checkpoint
from wmfast.errors import UserError
from wmfast.model_file import read_meta, read_model, save_model
from wmfast.rundir import load_config
from wmfast.trained import dream_of_run, evaluate_world_model, load_trained


def test_a_finished_run_is_judged_by_the_world_model_that_it_kept(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    path = run / "models" / "world_model.safetensors"
    _, weights = read_model(path, "world_model")
    model = load_trained(run).world_model
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    # Say that an earlier one was the best dreamer.
    torch.nn.init.constant_(model.norm.bias, 0.5)
    # If it knows other codes, the run went on, trained its tokenizer and was stopped there.
    meta = read_meta(path)
    for codes, is_kept in (("others", False), (meta["codes"], True)):
        notes = {**meta, "codes": codes}
        save_model(path, model, "world_model", load_config(run).world_model, notes)
        assert load_trained(run).world_model.norm.bias.eq(0.5).all() == is_kept
    # A run that went on since then has not chosen yet: what it has now counts.
    result = run / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"env_steps": 400}))
    latest = load_trained(run).world_model.state_dict()
    saved = load_checkpoint(run).file("world_model.safetensors")
    assert all(value.equal(latest[name]) for name, value in load_file(saved).items())
    result.write_text("{")
    with pytest.raises(UserError, match=r"result\.json: damaged"):
        load_trained(run)


def test_eval_and_dream_have_as_many_threads_as_the_run(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = finished[0]
    dream = {"start": 2, "refresh": 0, "temperature": 0.0, "top_k": 0, "seed": 0}
    commands = [
        lambda: evaluate_world_model(run, tier="canary", gold=None),
        lambda: dream_of_run(run, out=tmp_path / "dream.gif", steps=2, **dream),
    ]
    try:
        for command in commands:
            torch.set_num_threads(2)
            command()
            assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        use_cores(torch.device("cpu"), torch.nn.Linear(1, 1), torch.nn.Linear(1500, 1500))
        assert torch.get_num_threads() == 2  # a large network is worth them
    finally:
        torch.set_num_threads(1)


def test_a_run_in_progress_has_no_frozen_steps_yet(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "gold_indices.json").unlink()
    with pytest.raises(UserError, match=r"run has no frozen steps yet, they are made"):
        evaluate_world_model(run, tier="canary", gold=None)
