"""What each ingredient of the world model's training brings, at equal CPU time.

    python bench/world_model_ablation.py runs/ms_pacman/... runs/breakout/... --seconds 100

Each run lends its replay buffer, its tokenizer and its frozen held-out steps (tier ``fast``). Every
variant of its world model is trained from scratch on them for so many seconds of CPU, one thread,
the seed and the schedules being the run's. Prints a markdown table for every game: the mean over
its runs, and each run's figure behind it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from wmfast import TokenReplay
from wmfast.checkpoint import load_checkpoint
from wmfast.config import WorldModelConfig
from wmfast.gold_bank import INDEX_FILE, open_bank
from wmfast.models.world_model import WorldModel, build_world_model, weigh_tokens
from wmfast.open_loop import open_loop_quality
from wmfast.replay import ReplaySampler
from wmfast.step import TrainStep
from wmfast.train import is_rollout, learning_rate
from wmfast.trained import Trained, load_trained

VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "one step ahead, even weights": {
        "rollout_steps": 1,
        "motion_weight": 0.0,
        "eventness_weight": 0.0,
        "persistence_weight": 0.0,
    },
    "no rollouts": {"rollout_steps": 1},
    "no importance": {"motion_weight": 0.0, "eventness_weight": 0.0, "persistence_weight": 0.0},
    "no motion": {"motion_weight": 0.0},
    "no eventness": {"eventness_weight": 0.0},
    "no persistence": {"persistence_weight": 0.0},
    "no discount": {"step_discount": 1.0},
    "no teacher forcing": {"teacher_forcing": 0.0},
    "rollouts from the start": {"rollout_start": 0.0},
}
_SHOWN = (("changed", "1"), ("changed", "5"), ("changed", "10"), ("moving", "5"), ("all", "5"))


@dataclass(frozen=True)
class Row:
    """One variant on one run."""

    game: str
    seed: int
    variant: str
    updates: int
    horizons: dict[str, Any]  # as `open_loop_quality` gives them


def main() -> None:
    """Train and judge every variant on every run; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs")
    parser.add_argument("--seconds", type=float, default=100.0, help="CPU time of a training")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in options.runs:
        trained = load_trained(run)
        replay = TokenReplay.load(str(load_checkpoint(run).file("replay.bin")))
        for variant in options.variants:
            config = replace(trained.config.world_model, **VARIANTS[variant])
            model, updates = train_variant(trained, replay, config, options.seconds)
            bank = open_bank(run / INDEX_FILE)
            horizons = dict(open_loop_quality(model, bank.segments("fast")))
            seed = trained.config.seed
            rows.append(Row(trained.config.game, seed, variant, updates, horizons))
            print(f"{run}: {variant}: {_figures(rows[-1:])}", flush=True)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def train_variant(
    trained: Trained, replay: TokenReplay, config: WorldModelConfig, seconds: float
) -> tuple[WorldModel, int]:
    """A fresh world model after `seconds` of CPU time, and how many updates these were."""
    torch.manual_seed(trained.config.seed)
    tokenizer = trained.tokenizer
    model = build_world_model(
        config, vocab_size=tokenizer.vocab_size, num_actions=trained.agent.num_actions
    )
    weigh_tokens(model, config, lambda: tokenizer.codes)
    step = TrainStep(
        model,
        model.loss,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
    )
    sampler = ReplaySampler(replay)
    begin, update, share = time.process_time(), 0, 0.0
    while share < 1:
        planned = round(update / share) if share else 10**6  # at the speed so far
        step.set_learning_rate(learning_rate(update, planned, config))
        if is_rollout(update, planned, config):
            step(sampler.segments(config.rollout_batch_size, config.rollout_steps))
        else:
            step(sampler.segments(config.batch_size, 1))
        update += 1
        share = (time.process_time() - begin) / seconds
    return model.eval(), update


def table(rows: list[Row]) -> str:
    """Markdown: for every game its variants, changed tokens right in percent, and so on."""
    head = " | ".join(f"{name} @{horizon}" for name, horizon in _SHOWN)
    lines = []
    for game in sorted({row.game for row in rows}):
        lines += [f"\n### {game}\n", f"| training | updates | {head} |"]
        lines.append("|---|" + "---|" * (len(_SHOWN) + 1))
        by_variant = defaultdict(list)
        for row in rows:
            if row.game == game:
                by_variant[row.variant].append(row)
        for variant, of in by_variant.items():
            lines.append(f"| {variant} | {fmean(row.updates for row in of):.0f} | {_figures(of)} |")
        copies = [
            f"{100 * fmean(row.horizons[h][name]['copy_accuracy'] for row in of):.1f}"
            for name, h in _SHOWN
        ]
        lines.append(f"| copying the last frame | | {' | '.join(copies)} |")
    return "\n".join(lines)


def _figures(of: list[Row]) -> str:
    cells = []
    for name, horizon in _SHOWN:
        values = [100 * row.horizons[horizon][name]["accuracy"] for row in of]
        each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
        cells.append(f"{fmean(values):.1f}{each}")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
