"""Which world model a run keeps."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wmfast import selection
from wmfast.model_file import read_meta, read_model
from wmfast.models.world_model import build_world_model
from wmfast.presets import PRESETS

STEPS = [100, 400, 1000]


class Bank:
    """Gives no segments: the figures of this test are the models' own marks."""

    def segments(self, tier: str, *, horizon: int) -> list[None]:
        assert (tier, horizon) == ("canary", selection.CRITERION_HORIZON)
        return []


@pytest.mark.parametrize(
    ("marks", "moves", "kept"),
    [
        ([0.1, 0.5, 0.3], [], 400),
        ([0.4, 0.2, 0.4], [], 1000),
        ([0.5, 0.3, 0.1], [400], 400),
        ([0.5, 0.3, 0.1], [400, 1000], 1000),
    ],
    ids=["best", "newest of equals", "best since the codes moved", "last since the codes moved"],
)
def test_which_model_is_kept(tmp_path: Path, monkeypatch, marks, moves, kept):
    config = PRESETS["smoke"]
    model = build_world_model(config.world_model, vocab_size=64, num_actions=4)
    (tmp_path / "models").mkdir()
    run = SimpleNamespace(models=tmp_path / "models")
    parts = SimpleNamespace(
        config=config,
        world_model=model,
        tokenizer=SimpleNamespace(codes=torch.ones(64, 48)),
        envs=SimpleNamespace(action_meanings=("NOOP",) * 4),
        device=torch.device("cpu"),
        counters=SimpleNamespace(env_step=0),
    )
    for step, mark in zip(STEPS, marks, strict=True):
        parts.counters.env_step = step
        if step in moves:  # in mode full the tokenizer goes on learning
            parts.tokenizer.codes = parts.tokenizer.codes + 1.0
        torch.nn.init.constant_(model.norm.bias, mark)
        selection.put_aside(parts, run)
    torch.nn.init.constant_(model.norm.bias, -1.0)  # what the run holds now plays no part

    def mark_of(judged, _batches, _horizons):
        return {"5": {"changed": {"accuracy": judged.norm.bias[0].item()}}}

    monkeypatch.setattr(selection, "open_loop_quality", mark_of)
    monkeypatch.setattr(selection, "gold_evaluation", lambda judged, *_: {"of": judged})
    result = selection.keep_best(parts, run, Bank())
    expected = marks[STEPS.index(kept)]
    assert result["env_step"] == kept
    stale = STEPS.index(moves[-1]) if moves else 0
    assert result["not_comparable"] == STEPS[:stale]
    judged = {str(step): mark for step, mark in zip(STEPS, marks, strict=True)}
    assert result["candidates"] == pytest.approx(dict(list(judged.items())[stale:]))
    words = ["the best of 3", "the best of the last 2: the", "the last, not the best: the"][stale]
    assert result["choice"].startswith(words)
    assert ("have moved since the" in result["choice"]) == bool(moves)
    assert result["of"].norm.bias[0].item() == pytest.approx(expected)
    path = tmp_path / "models" / "world_model.safetensors"
    assert read_model(path, "world_model")[1]["norm.bias"][0].item() == pytest.approx(expected)
    assert read_meta(path)["env_step"] == kept
    assert selection.kept_model(parts, run).norm.bias[0].item() == pytest.approx(expected)
    assert model.norm.bias[0].item() == -1.0
