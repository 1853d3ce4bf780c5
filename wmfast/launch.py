"""From a command line to a run: preset, game, device and files resolved, checked, then trained."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from wmfast.build import pick_device
from wmfast.checkpoint import latest_checkpoint
from wmfast.checks import check, flag, flat
from wmfast.closing import closing_table
from wmfast.config import Config, Device
from wmfast.errors import UserError
from wmfast.frame_window import FRAME_BYTES
from wmfast.games import game_name
from wmfast.presets import PRESETS
from wmfast.rundir import create_run, find_run, load_config, resume_run
from wmfast.train import train
from wmfast.warmup import adopt_model_files

# What a resumed run may change: where and how long it runs, not what it is.
_MAY_CHANGE = {
    "run_dir",
    "resume",
    "device",
    "steps",
    "loop.eval_every",
    "loop.eval_episodes",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "loop.log_every",
}
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
    if {"-h", "--help"} & set(arguments):
        read(PRESETS[preset])  # its defaults are those that would hold
    game = game_name(first.game)
    has_weights = False
    if first.resume:
        path = first.run_dir or find_run(game, preset, first.seed)
        saved = load_config(path)
        has_weights = latest_checkpoint(path) is not None
        if first.preset not in ("auto", saved.preset):
            raise UserError(f"--preset {first.preset}: the run to resume has {saved.preset}")
        config = read(replace(saved, run_dir=first.run_dir, resume=True))
        config = replace(config, game=game_name(config.game), preset=saved.preset)
        _check_same_run(config, saved)
    else:
        config = replace(read(replace(PRESETS[preset], game=game)), game=game, preset=preset)
        config = adopt_model_files(config, PRESETS[preset])
    config = replace(config, device=cast(Device, pick_device(config.device).type))
    check(config, model_files=not has_weights)
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
    _require_memory(config)
    open_run = resume_run if config.resume else create_run
    space = disk_bytes(config)
    with open_run(config, device=config.device, protocol=protocol, need_bytes=space) as run:
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


def disk_bytes(config: Config) -> int:
    """What a run writes at most: two checkpoints (or as many as are kept) with their replay and, in
    mode full, their frames, and one being written."""
    replay_rows = min(config.steps, config.loop.replay_capacity)
    checkpoint = replay_rows * _TOKEN_BYTES + _frame_bytes(config)
    return 100_000_000 + (config.loop.keep_checkpoints + 1) * checkpoint


def _frame_bytes(config: Config) -> int:
    """Of the frames that mode full keeps as pixels: the window's, and those for each code."""
    if config.loop.mode != "full":
        return 0
    rehearsal = config.continual.frames_per_code * config.tokenizer.codebook_size
    frames = sum(min(config.steps, most) for most in (config.continual.window_frames, rehearsal))
    return frames * FRAME_BYTES


def _require_memory(config: Config) -> None:
    """UserError unless the machine could hold the frames of mode full."""
    need, there = _frame_bytes(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > there:
        raise UserError(
            f"--continual.window-frames {config.continual.window_frames} and "
            f"--continual.frames-per-code {config.continual.frames_per_code}: in a run of "
            f"{config.steps} steps their frames would take up to {need / 1e9:.0f} GB of memory, "
            f"this machine has {there / 1e9:.0f}"
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
    old = flat(saved)
    for name, value in flat(config).items():
        if name not in _MAY_CHANGE and value != old[name]:
            raise UserError(
                f"{flag(name)} {value}: a resumed run keeps {old[name]}; what may change is "
                "--steps, --device and how often it evaluates, logs and saves"
            )
