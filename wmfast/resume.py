"""What a checkpoint of a run holds, and going on from it.

Weights, optimisers, random states, counters and the replay buffer are all in it, so on a CPU the
training steps after a resume are bit for bit those of the uninterrupted run. Only the emulators are
not: ale-py's vector env cannot restore a game, so each game begins anew, from starts not seen yet.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wmfast import TokenReplay
from wmfast.build import RECENT_GAMES, Counters, Parts, build
from wmfast.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from wmfast.config import Config
from wmfast.continual import FRAMES_FILE
from wmfast.disk import one_line_errors
from wmfast.errors import UserError
from wmfast.metrics import METRICS_FILE
from wmfast.rng_state import restore_rng, rng_state
from wmfast.rundir import RunDir

RESULT_FILE = "result.json"
_REPLAY_FILE = "replay.bin"


def save(parts: Parts, run: RunDir) -> None:
    """Write a checkpoint of the run as it stands."""
    parts.settle()
    with parts.clock("checkpoint"):
        counters = asdict(parts.counters)
        counters["recent_returns"] = list(parts.counters.recent_returns)
        counters["wall_s"] = parts.wall_s()
        metrics = run.path / METRICS_FILE
        counters["metrics_bytes"] = metrics.stat().st_size if metrics.exists() else 0
        modules: dict[str, nn.Module] = {
            "tokenizer": parts.tokenizer,
            "world_model": parts.world_model,
            "agent": parts.agent,
            "dreams": parts.dreams,
            "curiosity": parts.curiosity,
        }
        optimizers = {
            "agent": parts.agent_step.optimizer,
            "world_model": parts.world_model_step.optimizer,
        }
        writers: dict[str, Callable[[Path], object]] = {
            _REPLAY_FILE: lambda path: parts.replay.save(str(path))
        }
        if parts.continual is not None:
            modules["moving_codes"] = parts.continual.codes
            optimizers["tokenizer"] = parts.continual.step.optimizer
            writers[FRAMES_FILE] = parts.continual.save
        save_checkpoint(
            run.path,
            parts.counters.env_step,
            modules=modules,
            optimizers=optimizers,
            state={
                "counters": counters,
                "clock": parts.clock.seconds(),
                "rng": rng_state(_generators(parts)),
            },
            writers=writers,
            keep=parts.config.loop.keep_checkpoints,
        )


def restore(run: RunDir, config: Config) -> Parts | None:
    """The parts of the run as its latest checkpoint has them; None where there is none yet.

    Raises UserError for a damaged checkpoint; nothing was changed then.
    """
    if latest_checkpoint(run.path) is None:
        return None
    checkpoint = load_checkpoint(run.path)
    replay = TokenReplay.load(str(checkpoint.file(_REPLAY_FILE)))
    replay.cut()  # the games begin anew: what was under way ends here
    parts = build(config, replay, checkpoint.env_step)
    checkpoint.restore_module("tokenizer", parts.tokenizer)
    checkpoint.restore_module("world_model", parts.world_model)
    checkpoint.restore_module("agent", parts.agent)
    checkpoint.restore_module("dreams", parts.dreams)
    checkpoint.restore_module("curiosity", parts.curiosity)
    checkpoint.restore_optimizer("agent", parts.agent_step.optimizer)
    checkpoint.restore_optimizer("world_model", parts.world_model_step.optimizer)
    if parts.continual is not None:
        checkpoint.restore_module("moving_codes", parts.continual.codes)
        checkpoint.restore_optimizer("tokenizer", parts.continual.step.optimizer)
        parts.continual.load(checkpoint.file(FRAMES_FILE))
    parts.counters = _counters(checkpoint.state["counters"], str(checkpoint.path))
    parts.clock.restore(checkpoint.state["clock"])
    parts.collector.begin(parts.envs.reset())
    saved = checkpoint.state["rng"]  # of a CPU run, say, that goes on with a GPU
    generators = {name: value for name, value in _generators(parts).items() if name in saved}
    restore_rng(generators, saved)
    return parts


@dataclass(frozen=True)
class RunEnd:
    """Where a run has ended."""

    env_step: int
    metrics_bytes: int
    """Of metrics.jsonl with the rows of the last evaluations (0: an earlier version's run)."""


def run_end(run_dir: Path) -> RunEnd | None:
    """The last end of a run, by its result; None before its first."""
    result = run_dir / RESULT_FILE
    if not result.exists():
        return None
    with one_line_errors("read", result):
        text = result.read_text()
    try:
        facts = json.loads(text)
        return RunEnd(int(facts["env_steps"]), int(facts.get("metrics_bytes", 0)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{result}: damaged, it holds no env_steps") from error


def metrics_to_keep(run: RunDir, parts: Parts) -> int:
    """Bytes of metrics.jsonl after which a run that goes on writes its rows.

    A checkpoint comes before the last evaluations. They are played again where no more steps follow
    it; where some do, their rows are of the run's past.
    """
    counters, end = parts.counters, run_end(run.path)
    if end is not None and end.env_step == counters.env_step < parts.config.steps:
        return max(counters.metrics_bytes, end.metrics_bytes)
    return counters.metrics_bytes


def _generators(parts: Parts) -> dict[str, Any]:
    generators: dict[str, Any] = {"torch": torch.default_generator, "numpy": parts.rng}
    if parts.device.type == "cuda":
        index = parts.device.index or 0
        generators["cuda"] = torch.cuda.default_generators[index]
    return generators


def _counters(saved: dict[str, Any], source: str) -> Counters:
    names = {field.name for field in fields(Counters)}
    if saved.keys() != names:
        raise UserError(
            f"{source}: the counters differ from this version's: {names ^ saved.keys()}"
        )
    returns = deque(saved["recent_returns"], maxlen=RECENT_GAMES)
    return Counters(**{**saved, "recent_returns": returns})
