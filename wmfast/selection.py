"""Which of a run's world models is kept: the one that dreams best on the frozen canary steps.

A world model is put aside at every evaluation. When the run ends, its agent plays the games of the
frozen bank, and all candidates are judged on the same steps, none of which they trained on. In mode
``full`` one that knows other codes than the tokenizer has now is left out, and the result says so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wmfast.build import Parts
from wmfast.gold import gold_evaluation
from wmfast.gold_bank import GoldBank, codes_checksum
from wmfast.model_file import read_meta, read_model, save_model
from wmfast.models.prediction import WorldModel
from wmfast.open_loop import changed_accuracy, open_loop_quality
from wmfast.rundir import RunDir
from wmfast.types import Segments

CRITERION_HORIZON = 5
_CANDIDATE = "world_model-{}.safetensors"


def put_aside(parts: Parts, run: RunDir) -> None:
    """Write the world model as it is now to ``models/world_model-<env_step>.safetensors``."""
    path = run.models / _CANDIDATE.format(parts.counters.env_step)
    save_world_model(parts, path.name, parts.world_model, run, {})


def save_world_model(
    parts: Parts, name: str, world_model: WorldModel, run: RunDir, notes: Mapping[str, Any]
) -> None:
    """One file that ``--wm`` takes; its notes say whose tokens it knows."""
    meta = {
        "game": parts.config.game,
        "env_step": parts.counters.env_step,
        "seed": parts.config.seed,
        "codes": codes_checksum(parts.tokenizer.codes),
        **notes,
    }
    save_model(run.models / name, world_model, "world_model", parts.config.world_model, meta)


def keep_best(parts: Parts, run: RunDir, bank: GoldBank) -> dict[str, Any]:
    """Judge all candidates, write the best as ``models/world_model.safetensors``.

    Returns:
        The canary evaluation of the best, with ``env_step`` and ``candidates``: by env step, the
        accuracy on changed tokens after `CRITERION_HORIZON` steps. Of equals the newest is kept.
        ``not_comparable``: env steps of those that know other codes. ``choice``: both, in words.
    """
    model = copy.deepcopy(parts.world_model)
    figures: dict[int, float] = {}
    best: dict[str, Tensor] = {}
    codes = codes_checksum(parts.tokenizer.codes)
    notes = {path: read_meta(path) for path in run.models.glob(_CANDIDATE.format("*"))}
    stale = []  # those that don't know today's tokens: in mode full the codes move
    for path in sorted(notes, key=lambda path: int(notes[path]["env_step"])):
        step = int(notes[path]["env_step"])
        if notes[path]["codes"] != codes:
            stale.append(step)
            continue
        weights = read_model(path, "world_model")[1]
        model.load_state_dict(weights)
        segments = bank.segments("canary", horizon=CRITERION_HORIZON)
        batches = (Segments(*(field.to(parts.device) for field in batch)) for batch in segments)
        quality = open_loop_quality(model, batches, (CRITERION_HORIZON,))
        accuracy = changed_accuracy(quality, CRITERION_HORIZON)
        if accuracy >= max(figures.values(), default=0.0):
            best = weights
        figures[step] = accuracy
    kept = max(figures, key=lambda step: (figures[step], step))
    model.load_state_dict(best)
    save_world_model(parts, "world_model.safetensors", model, run, {"env_step": kept})
    meanings = parts.envs.action_meanings
    result = gold_evaluation(model, parts.tokenizer, bank, "canary", meanings)
    return {
        **result,
        "env_step": kept,
        "candidates": {str(k): v for k, v in figures.items()},
        "not_comparable": stale,
        "choice": _in_words(len(figures), len(stale)),
    }


def kept_model(parts: Parts, run: RunDir) -> WorldModel:
    """A copy of the run's world model with the weights that ``keep_best`` wrote."""
    model = copy.deepcopy(parts.world_model)
    model.load_state_dict(read_model(run.models / "world_model.safetensors", "world_model")[1])
    return model


def _in_words(compared: int, stale: int) -> str:
    if not stale:
        return f"the best of {compared}"
    best = "the last, not the best" if compared == 1 else f"the best of the last {compared}"
    return f"{best}: the tokenizer's codes have moved since the {stale} before"
