"""Evaluation within a run, and its end: final scores, pictures, model files, result, summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from wmfast.build import Parts
from wmfast.closing import Summary
from wmfast.config import DREAM_TEMPERATURE
from wmfast.disk import one_line_errors, write_atomic
from wmfast.evaluate import Evaluation, play
from wmfast.games import RANDOM_HUMAN
from wmfast.gold_bank import GoldBank, save_bank
from wmfast.media import save_curves, save_dream_gif, save_reconstructions
from wmfast.metrics import METRICS_FILE, MetricsLog, read_metrics
from wmfast.model_file import save_model
from wmfast.models.tokenizer import tokenizer_quality
from wmfast.progress import Reporter
from wmfast.quality import world_model_quality
from wmfast.recording import Frames, Recording
from wmfast.resume import RESULT_FILE
from wmfast.rundir import RunDir
from wmfast.selection import keep_best, kept_model, put_aside

EXPLORING = 0.01  # a greedy policy can be stuck in a deterministic game: reported beside it
MID_RUN_STEPS = 5_000  # a greedy policy that is stuck would play 27,000 steps of nothing
_HELD_OUT_STEPS = 800  # of each evaluation game, for the world model's held-out figures
_HELD_OUT_BATCHES, _HELD_OUT_BATCH = 24, 128
_BANK_EXPLORES = 0.05  # greedy games of one policy are one to three distinct paths
_SHOWN_FRAMES = 8
DREAM_START, DREAM_STEPS = 150, 50


def evaluate(
    parts: Parts,
    run: RunDir,
    log: MetricsLog,
    reporter: Reporter,
    *,
    max_steps: int | None = MID_RUN_STEPS,
) -> tuple[Evaluation, Recording]:
    """Greedy games, all at once, and the world model's quality on what they showed.

    In mode ``full`` also the tokenizer's, as it is now, on the warm-up's frames that it never saw.
    The world model is put aside: the run's end keeps the best. Within a run a game is cut off after
    `max_steps`; None plays it to its end.
    """
    config, counters = parts.config, parts.counters
    parts.settle()
    recording = Recording(
        config.loop.eval_episodes,
        _HELD_OUT_STEPS,
        vocab_size=config.tokenizer.codebook_size,
        seed=config.seed,
    )
    with parts.clock("evaluation"):
        evaluation = _play(parts, 0.0, recording, max_steps)
        segments = recording.segments(_HELD_OUT_BATCHES, _HELD_OUT_BATCH, parts.device)
        quality = world_model_quality(parts.world_model, segments)
    counters.world_model_quality = quality
    put_aside(parts, run)
    counters.evaluations.append({"env_step": counters.env_step, **evaluation.as_json()})
    values = {f"world_model/heldout/{key}": value for key, value in quality.items()}
    if parts.continual is not None:
        with parts.clock("evaluation"):
            held_out = torch.from_numpy(parts.continual.bank.frames_of_start)
            counters.tokenizer_quality = tokenizer_quality(parts.tokenizer, held_out)
        values |= {f"tokenizer/heldout/{key}": v for key, v in counters.tokenizer_quality.items()}
    reporter.update(log.log(*parts.position(), {**values, **_score("greedy", evaluation)}))
    return evaluation, recording


def finish(parts: Parts, run: RunDir, log: MetricsLog, reporter: Reporter) -> Summary:
    """Final evaluations, pictures, model files, ``result.json`` and the closing summary."""
    config = parts.config
    reporter.phase("evaluating", total=3, unit="policies")
    greedy, recording = evaluate(parts, run, log, reporter, max_steps=None)
    reporter.advance(1)
    with parts.clock("evaluation"):
        exploring = _play(parts, EXPLORING, None, None)
    reporter.advance(1)
    with parts.clock("evaluation"):
        gold = keep_best(parts, run, freeze_bank(parts, run))
    reporter.advance(1)
    assert greedy.frames is not None
    film = torch.from_numpy(greedy.frames).to(parts.device)
    played = tokenizer_quality(parts.tokenizer, film)
    values = {f"tokenizer/played/{key}": value for key, value in played.items()}
    log.log(*parts.position(), {**values, **_score(f"epsilon_{EXPLORING}", exploring)})

    pictures = _draw(parts, run, greedy.frames, recording)
    _save_models(parts, run)
    random_score, human_score = RANDOM_HUMAN.get(config.game, (None, None))
    summary = Summary(
        game=config.game,
        preset=config.preset,
        seed=config.seed,
        env_steps=parts.counters.env_step,
        wall_s=parts.wall_s(),
        run_dir=run.path,
        protocol=f"sticky {config.env.sticky:g}, up to {config.env.noop_max} no-ops",
        scores={"greedy": greedy.as_json(), f"epsilon {EXPLORING}": exploring.as_json()},
        random_score=random_score,
        human_score=human_score,
        tokenizer={
            **parts.counters.tokenizer_quality,
            "codebook_size": config.tokenizer.codebook_size,
        },
        tokenizer_played=played,
        world_model=parts.counters.world_model_quality,
        seconds=parts.clock.seconds(),
        pictures=pictures,
    )
    _save_result(summary, played, gold, run)
    return summary


def freeze_bank(parts: Parts, run: RunDir) -> GoldBank:
    """Games of the agent, exploring a little, that nothing trains on; written to the run folder."""
    config = parts.config
    recording = Recording(
        config.loop.eval_episodes,
        _HELD_OUT_STEPS,
        vocab_size=config.tokenizer.codebook_size,
        seed=config.seed,
    )
    _play(parts, _BANK_EXPLORES, recording, _HELD_OUT_STEPS, seed=config.seed + 1)
    bank = recording.bank(
        config.game, parts.tokenizer.codes, parts.envs.num_actions, seed=config.seed
    )
    save_bank(run.path, bank)
    return bank


def _play(
    parts: Parts,
    epsilon: float,
    recording: Recording | None,
    max_steps: int | None,
    seed: int | None = None,
) -> Evaluation:
    return play(
        parts.act,
        parts.config.game,
        parts.config.env,
        encode=parts.encode,
        seed=parts.config.seed if seed is None else seed,
        episodes=parts.config.loop.eval_episodes,
        epsilon=epsilon,
        device=parts.device,
        max_steps=max_steps,
        on_step=recording.add if recording else None,
        record_steps=recording.max_steps if recording else None,
        record_frames=recording.max_steps if recording else 0,
    )


def _score(policy: str, evaluation: Evaluation) -> dict[str, float]:
    values = {f"eval/{policy}/return": evaluation.mean, f"eval/{policy}/std": evaluation.std}
    if evaluation.human_normalised is not None:
        values[f"eval/{policy}/human_normalised"] = evaluation.human_normalised
    return values


def _draw(parts: Parts, run: RunDir, film: Frames, recording: Recording) -> dict[str, Path]:
    pictures = {
        "reconstructions": run.media / "reconstructions.png",
        "dream": run.media / "dream.gif",
        "curves": run.media / "curves.png",
    }
    spread = torch.linspace(0, len(film) - 1, min(_SHOWN_FRAMES, len(film))).long()
    shown = torch.from_numpy(film)[spread].to(parts.device)
    with torch.no_grad():
        again = parts.tokenizer.decode(parts.encode(shown))
    save_reconstructions(pictures["reconstructions"], shown.cpu().numpy(), again.cpu().numpy())
    real, dreamed = recording.dream(
        kept_model(parts, run),
        parts.tokenizer,
        film,
        start=DREAM_START,
        steps=DREAM_STEPS,
        refresh=0,
        temperature=DREAM_TEMPERATURE,
        top_k=None,
        seed=parts.config.seed,
        device=parts.device,
    )
    save_dream_gif(pictures["dream"], real, dreamed)
    save_curves(pictures["curves"], read_metrics(run.path / METRICS_FILE))
    return pictures


def _save_models(parts: Parts, run: RunDir) -> None:
    """Tokenizer and agent, one file each; the world model's was kept by `keep_best`."""
    config = parts.config
    meta = {"game": config.game, "env_step": parts.counters.env_step, "seed": config.seed}
    save_model(
        run.models / "tokenizer.safetensors", parts.tokenizer, "tokenizer", config.tokenizer, meta
    )
    save_model(run.models / "agent.safetensors", parts.agent, "agent", config.agent, meta)


def _save_result(
    summary: Summary, played: dict[str, float], gold: dict[str, Any], run: RunDir
) -> None:
    result = {
        "game": summary.game,
        "preset": summary.preset,
        "seed": summary.seed,
        "env_steps": summary.env_steps,
        "wall_s": summary.wall_s,
        "metrics_bytes": (run.path / METRICS_FILE).stat().st_size,
        "scores": summary.scores,
        "tokenizer_held_out": summary.tokenizer,
        "tokenizer_played": played,
        "world_model_held_out": summary.world_model,
        "world_model_gold": gold,
        "seconds": summary.seconds,
    }
    path = run.path / RESULT_FILE
    with one_line_errors("write", path):
        write_atomic(path, json.dumps(result, indent=1).encode())
