"""Which of a run's world models is kept: the one that dreams best on the frozen canary steps.

A world model is put aside at every evaluation. When the run ends, its agent plays the games of the
frozen bank, and all candidates are judged on the same steps, none of which they trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from wmfast.build import Parts
from wmfast.gold import gold_evaluation
from wmfast.gold_bank import GoldBank, codes_checksum
from wmfast.model_file import read_meta, read_model, save_model
from wmfast.models.prediction import WorldModel
from wmfast.open_loop import changed_accuracy
from wmfast.rundir import RunDir

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
    """
    meanings = parts.envs.action_meanings
    model = copy.deepcopy(parts.world_model)
    best: tuple[float, int, dict[str, Any]] | None = None
    figures: dict[str, float] = {}
    pattern = _CANDIDATE.format("*")
    for path in sorted(run.models.glob(pattern), key=lambda path: int(read_meta(path)["env_step"])):
        model.load_state_dict(read_model(path, "world_model")[1])
        step = int(read_meta(path)["env_step"])
        result = gold_evaluation(model, parts.tokenizer, bank, "canary", meanings)
        figures[str(step)] = accuracy = changed_accuracy(result["horizons"], CRITERION_HORIZON)
        if best is None or accuracy >= best[0]:
            best = accuracy, step, result
            save_world_model(parts, "world_model.safetensors", model, run, {"env_step": step})
    assert best is not None, f"no {pattern} in {run.models}"
    return {**best[2], "env_step": best[1], "candidates": figures}
