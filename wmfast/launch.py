"""From a command line to a run: preset, game, device and files resolved, checked, then trained."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import cast, get_args

from wmfast.build import pick_device
from wmfast.checkpoint import latest_checkpoint
from wmfast.closing import closing_table
from wmfast.config import PRESETS, Config, Device
from wmfast.errors import UserError
from wmfast.games import game_name
from wmfast.rundir import create_run, find_run, load_config, resume_run
from wmfast.train import train
from wmfast.warmup import adopt_model_files

# What a resumed run may change: where and how long it runs, not what it is.
_MAY_CHANGE = {"run_dir", "resume", "device", "steps", "loop", "preset"}
_TOKEN_BYTES = 700  # of replay a step, checkpointed


def resolve(arguments: Sequence[str], read: Callable[[Config], Config]) -> Config:
    """The configuration of a run: the preset, or the resumed run's own file, then the flags.

    Args:
        arguments: the command line; the preset must be known before the rest can be read.
        read: parses the command line over a default.

    Raises:
        UserError, ValueError: one line that names the value and what is allowed.
    """
    first = _first_look(arguments)
    preset = first.preset
    if preset not in ("auto", *PRESETS) or first.device not in get_args(Device):
        read(Config())  # says what is allowed
    if preset == "auto":
        preset = "v3" if pick_device(first.device).type == "cuda" else "cpu"
    game = game_name(first.game)
    if first.resume:
        saved = load_config(first.run_dir or find_run(game, preset, first.seed))
        config = read(replace(saved, run_dir=first.run_dir, resume=True))
        config = replace(config, game=game_name(config.game), preset=saved.preset)
        _check_same_run(config, saved)
    else:
        config = replace(read(replace(PRESETS[preset], game=game)), game=game, preset=preset)
        config = adopt_model_files(config)
    config = replace(config, device=cast(Device, pick_device(config.device).type))
    check(config)
    return config


def launch(config: Config) -> None:
    """Train in the run's folder and print the closing table."""
    protocol = {
        "sticky": config.env.sticky,
        "noop_max": config.env.noop_max,
        "max_frames": config.env.max_frames,
        "frame_skip": 4,
        "reward_clipping": False,
        "episodic_life": False,
    }
    # Two checkpoints with their replay, and one being written.
    replay_rows = min(config.steps, config.loop.replay_capacity)
    need_bytes = 100_000_000 + (config.loop.keep_checkpoints + 1) * replay_rows * _TOKEN_BYTES
    open_run = resume_run if config.resume else create_run
    with open_run(config, device=config.device, protocol=protocol, need_bytes=need_bytes) as run:
        print(f"run folder: {run.path}", flush=True)
        if config.resume and latest_checkpoint(run.path) is not None:
            print("the emulators cannot be restored: each game begins anew", flush=True)
        try:
            summary = train(run, config)
        except KeyboardInterrupt:
            if latest_checkpoint(run.path) is None:
                print("stopped during the warm-up: there is nothing to go on from yet")
            raise
        if summary is not None:
            closing_table(summary)
        else:
            print(f"stopped; go on with: wmfast-train --resume --run-dir {run.path}")


def check(config: Config) -> None:
    """Refuse numbers outside their range. Raises UserError."""
    positive = {
        "steps": config.steps,
        "env.num_envs": config.env.num_envs,
        "tokenizer.train_steps": config.tokenizer.train_steps,
        "tokenizer.batch_size": config.tokenizer.batch_size,
        "tokenizer.codebook_size": config.tokenizer.codebook_size,
        "world_model.batch_size": config.world_model.batch_size,
        "world_model.every": config.world_model.every,
        "agent.batch_size": config.agent.batch_size,
        "agent.every": config.agent.every,
        "agent.n_step": config.agent.n_step,
        "loop.warmup_steps": config.loop.warmup_steps,
        "loop.eval_every": config.loop.eval_every,
        "loop.eval_episodes": config.loop.eval_episodes,
        "loop.checkpoint_every": config.loop.checkpoint_every,
        "loop.keep_checkpoints": config.loop.keep_checkpoints,
        "loop.log_every": config.loop.log_every,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if config.seed < 0:
        raise UserError(f"--seed {config.seed}: must be at least 0")
    fractions = {
        "env.sticky": config.env.sticky,
        "agent.gamma": config.agent.gamma,
        "agent.tau": config.agent.tau,
        "agent.alpha": config.agent.alpha,
        "agent.beta": config.agent.beta,
        "agent.epsilon_end": config.agent.epsilon_end,
        "agent.epsilon_share": config.agent.epsilon_share,
        "world_model.recent_fraction": config.world_model.recent_fraction,
        "world_model.dropout": config.world_model.dropout,
    }
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise UserError(f"--{name.replace('_', '-')} {fraction}: must be within 0..1")
    warmup = config.loop.warmup_steps
    if config.steps <= warmup:
        raise UserError(
            f"--steps {config.steps}: must be more than the warm-up of {warmup} random steps "
            "(--loop.warmup-steps)"
        )
    history = config.env.num_envs * (4 + config.agent.n_step)
    if warmup < max(history, config.agent.batch_size, config.world_model.batch_size):
        raise UserError(f"--loop.warmup-steps {warmup}: too few to draw the first batches from")
    if config.loop.replay_capacity < warmup:
        raise UserError(
            f"--loop.replay-capacity {config.loop.replay_capacity}: "
            f"must hold the warm-up ({warmup})"
        )


def _first_look(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags that choose the defaults of all others; their values are checked later."""
    defaults = Config()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--game", default=defaults.game)
    parser.add_argument("--preset", default=defaults.preset)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default=defaults.device)
    parser.add_argument("--run-dir", "--run_dir", type=Path, default=None)
    parser.add_argument("--resume", action="store_true")
    try:
        return parser.parse_known_args(list(arguments))[0]
    except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
        raise UserError(str(error)) from None


def _check_same_run(config: Config, saved: Config) -> None:
    for field in fields(Config):
        new, old = getattr(config, field.name), getattr(saved, field.name)
        if field.name not in _MAY_CHANGE and new != old:
            raise UserError(
                f"--resume keeps what the run is: {field.name} was {old}, not {new}; it may change "
                "--steps, --device and --loop"
            )
