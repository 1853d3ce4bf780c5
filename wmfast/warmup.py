"""Before the loop: random play, and a tokenizer that is fitted to it or read from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from wmfast.build import Parts, bf16_wins
from wmfast.collect import RawStep, collect_random
from wmfast.config import Config, TokenizerConfig, WorldModelConfig
from wmfast.config_json import config_from_json
from wmfast.errors import UserError
from wmfast.fit import fit_tokenizer
from wmfast.gold_bank import codes_checksum
from wmfast.metrics import MetricsLog
from wmfast.model_file import read_meta, read_model
from wmfast.models.prediction import WorldModel
from wmfast.models.tokenizer import Tokenizer, tokenizer_quality
from wmfast.progress import Reporter
from wmfast.types import Metrics
from wmfast.weights import load_weights

_HELD_OUT_FRAMES = 512
_TRAINING_FIELDS = (
    "batch_size",
    "decay_share",
    "done_weight",
    "dropout",
    "every",
    "eventness_weight",
    "grad_clip",
    "importance_cap",
    "learning_rate",
    "motion_weight",
    "persistence_weight",
    "recent_fraction",
    "recent_steps",
    "rollout_batch_size",
    "rollout_share",
    "rollout_start",
    "rollout_steps",
    "step_discount",
    "teacher_forcing",
    "warmup_updates",
    "weight_decay",
)  # of WorldModelConfig: how a network learns, not what it is
_STEPS_A_ROW = 50  # tokenizer steps between two rows of metrics


def adopt_model_files(config: Config, preset: Config) -> Config:
    """The configuration with the sizes of the models that ``--vqvae`` and ``--wm`` bring.

    Raises:
        UserError: a file is absent, damaged or of another kind; a flag contradicts a file; a world
            model comes without the tokenizer whose tokens it knows.
    """
    if config.vqvae is not None:
        facts, _ = read_model(config.vqvae, "tokenizer")
        tokenizer = config_from_json(TokenizerConfig, facts, str(config.vqvae))
        _refuse_contradiction("--tokenizer", config.tokenizer, preset.tokenizer, tokenizer)
        config = replace(config, tokenizer=tokenizer)
    if config.wm is not None:
        facts, _ = read_model(config.wm, "world_model")
        if config.vqvae is None:
            raise UserError(
                "--wm needs --vqvae too: a world model knows the tokens of one tokenizer"
            )
        saved = config_from_json(WorldModelConfig, facts, str(config.wm))
        # What the network is comes from the file, how it goes on learning from the flags.
        training = {name: getattr(config.world_model, name) for name in _TRAINING_FIELDS}
        world_model = replace(saved, **training)
        before = replace(preset.world_model, **training)
        _refuse_contradiction("--world-model", config.world_model, before, world_model)
        config = replace(config, world_model=world_model)
    return config


def load_model_files(config: Config, tokenizer: Tokenizer, world_model: WorldModel) -> None:
    """Load the weights that ``--vqvae`` and ``--wm`` name. UserError where they do not fit."""
    if config.vqvae is not None:
        _, weights = read_model(config.vqvae, "tokenizer")
        load_weights(tokenizer, weights, str(config.vqvae))
    if config.wm is not None:
        _, weights = read_model(config.wm, "world_model")
        load_weights(world_model, weights, str(config.wm))
        codes = read_meta(config.wm).get("codes")
        if codes is not None and codes != codes_checksum(tokenizer.codes):
            raise UserError(
                f"--wm {config.wm}: knows the tokens of another tokenizer than --vqvae "
                f"{config.vqvae}"
            )


def _refuse_contradiction(prefix: str, given: object, preset: object, file: object) -> None:
    for name, value in vars(given).items():
        if value != vars(preset)[name] and value != vars(file)[name]:
            raise UserError(
                f"{prefix}.{name.replace('_', '-')} {value}: the model file has "
                f"{vars(file)[name]}, and its sizes cannot change"
            )


def prepare(parts: Parts, log: MetricsLog, reporter: Reporter, stopped: Callable[[], bool]) -> None:
    """Collect random play, fit the tokenizer unless ``--vqvae`` brought one, fill the replay.

    Raises KeyboardInterrupt when `stopped` asks for it: there is nothing to go on from yet.
    """
    config, counters = parts.config, parts.counters
    reporter.phase("collecting", total=config.loop.warmup_steps, unit="env steps")

    def on_step(env_step: int) -> None:
        reporter.advance_to(env_step)
        _interrupt_if(stopped)

    with parts.clock("env"):
        warmup = collect_random(parts.envs, config.loop.warmup_steps, parts.rng, on_step)
    load_model_files(config, parts.tokenizer, parts.world_model)
    frames_seen, frames_held_out = split_frames(warmup)
    if config.vqvae is None:
        with parts.clock("tokenizer"):
            _fit(parts, frames_seen, log, reporter, stopped)
    with parts.clock("tokenizer"):
        counters.tokenizer_quality = tokenizer_quality(
            parts.tokenizer, torch.from_numpy(frames_held_out).to(parts.device)
        )
    with parts.clock("encode"):
        parts.collector.begin_after(warmup)
    if parts.continual is not None:
        with parts.clock("tokenizer"):
            parts.continual.begin(frames_held_out)
    counters.env_step = len(warmup) * parts.envs.num_envs
    for raw in warmup:
        counters.recent_returns.extend(game.score for game in raw.result.finished)
    quality = {f"tokenizer/heldout/{key}": v for key, v in counters.tokenizer_quality.items()}
    log.log(*parts.position(), quality)


def split_frames(warmup: list[RawStep]) -> tuple[np.ndarray, np.ndarray]:
    """Warm-up frames uint8 (N, 84, 64, 3) to fit on, and spread frames of the last game held out.

    A single game has no other to hold out: its last tenth is held out then.
    """
    frames = np.stack([raw.frames for raw in warmup])  # (T, E, 84, 64, 3)
    num_envs = frames.shape[1]
    if num_envs > 1:
        seen, held_out = frames[:, :-1], frames[:, -1]
    else:
        cut = len(frames) - max(1, len(frames) // 10)
        seen, held_out = frames[:cut], frames[cut:, 0]
    stride = max(1, len(held_out) // _HELD_OUT_FRAMES)
    return seen.reshape(-1, *frames.shape[2:]), held_out[::stride].copy()


def _fit(
    parts: Parts,
    frames: np.ndarray,
    log: MetricsLog,
    reporter: Reporter,
    stopped: Callable[[], bool],
) -> None:
    config = parts.config.tokenizer
    reporter.phase("fitting the tokenizer", total=config.train_steps)

    def on_step(step: int, metrics: Metrics) -> None:
        _interrupt_if(stopped)
        parts.averager.add("tokenizer/train", metrics)
        reporter.advance_to(step)
        if step % _STEPS_A_ROW == 0 or step == config.train_steps:
            log.log(0, step, parts.wall_s(), parts.averager.flush())

    fit_tokenizer(
        parts.tokenizer,
        frames,
        config,
        seed=parts.config.seed,
        device=parts.device,
        autocast=bf16_wins(parts.tokenizer, parts.device),
        on_step=on_step,
    )


def _interrupt_if(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise KeyboardInterrupt
