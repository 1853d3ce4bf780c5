"""A trained run put to use: ``wmfast eval`` and ``wmfast dream``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wmfast.agent import DoubleDQN
from wmfast.build import use_cores
from wmfast.checkpoint import load_checkpoint
from wmfast.config import Config, EnvConfig
from wmfast.disk import one_line_errors
from wmfast.envs import AtariEnvs
from wmfast.errors import UserError
from wmfast.evaluate import Evaluation, play
from wmfast.gold import gold_evaluation
from wmfast.gold_bank import INDEX_FILE, Tier, codes_checksum, open_bank
from wmfast.media import save_dream_gif
from wmfast.model_file import read_meta, read_model
from wmfast.models.prediction import WorldModel
from wmfast.models.tokenizer import Tokenizer, build_tokenizer
from wmfast.models.world_model import build_world_model
from wmfast.recording import Recording
from wmfast.resume import run_end
from wmfast.rundir import load_config
from wmfast.weights import load_weights

_MOST_STEPS = 5_000  # of a dream, and before it


@dataclass(frozen=True)
class Trained:
    """The networks of a run's latest checkpoint, on the CPU, in eval mode.

    Of a run that ended there, the world model is the one that it kept: its best dreamer, if it
    knows this tokenizer's codes.
    """

    config: Config
    tokenizer: Tokenizer
    world_model: WorldModel
    agent: DoubleDQN


def load_trained(run_dir: Path) -> Trained:
    """Open a run. UserError where no run or no whole checkpoint is there."""
    config = load_config(run_dir)
    checkpoint = load_checkpoint(run_dir)
    with AtariEnvs(config.game, config.env, num_envs=1, seed=0) as envs:
        num_actions = envs.num_actions
    vocab_size = config.tokenizer.codebook_size
    tokenizer = build_tokenizer(config.tokenizer)
    world_model = build_world_model(
        config.world_model, vocab_size=vocab_size, num_actions=num_actions
    )
    agent = DoubleDQN(config.agent, vocab_size=vocab_size, num_actions=num_actions)
    checkpoint.restore_module("tokenizer", tokenizer)
    checkpoint.restore_module("world_model", world_model)
    checkpoint.restore_module("agent", agent)
    end = run_end(run_dir)
    kept = run_dir / "models" / "world_model.safetensors"
    # In mode full a run that goes on trains its tokenizer before it plays another step.
    if (
        end is not None
        and end.env_step == checkpoint.state["counters"]["env_step"]
        and read_meta(kept).get("codes") == codes_checksum(tokenizer.codes)
    ):
        load_weights(world_model, read_model(kept, "world_model")[1], str(kept))
    return Trained(config, tokenizer.eval(), world_model.eval(), agent.eval())


def _opened(run_dir: Path) -> Trained:
    """The run's networks; small ones have one thread, as in the run: to the digit the same figures.

    Large ones have all of torch's threads, of which the last digits depend.
    """
    trained = load_trained(run_dir)
    use_cores(torch.device("cpu"), trained.tokenizer, trained.world_model, trained.agent)
    return trained


def evaluate_run(
    run_dir: Path, *, episodes: int, epsilon: float, sticky: float | None, seed: int
) -> Evaluation:
    """Full games by the run's agent; `sticky` as in training unless given."""
    _check_seed(seed)
    trained = _opened(run_dir)
    env = trained.config.env if sticky is None else replace(trained.config.env, sticky=sticky)
    return _play(trained, env, seed=seed, episodes=episodes, epsilon=epsilon)


def evaluate_world_model(run_dir: Path, *, tier: Tier, gold: Path | None) -> dict[str, Any]:
    """The gold evaluation of a run's world model, on its own frozen steps or those of `gold`.

    Raises:
        UserError: no run, no frozen steps, or steps of another game or tokenizer.
    """
    trained = _opened(run_dir)
    indices = run_dir / INDEX_FILE if gold is None else gold
    if gold is None and not indices.exists():
        raise UserError(
            f"{run_dir} has no frozen steps yet, they are made when a run ends: "
            "let it end, or name those of another run with --gold"
        )
    bank = open_bank(indices)
    if bank.game != trained.config.game:
        raise UserError(f"{indices}: steps of {bank.game}, the run plays {trained.config.game}")
    if bank.tokenizer != codes_checksum(trained.tokenizer.codes):
        raise UserError(f"{indices}: tokens of another tokenizer than that of {run_dir}")
    with AtariEnvs(trained.config.game, trained.config.env, num_envs=1, seed=0) as envs:
        meanings = envs.action_meanings
    return gold_evaluation(trained.world_model, trained.tokenizer, bank, tier, meanings)


def dream_of_run(
    run_dir: Path,
    *,
    out: Path | None,
    steps: int,
    start: int,
    refresh: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> Path:
    """A GIF of a real game beside the dream of it (`DreamOptions` in cli.py); returns its path."""
    for name, value in (("refresh", refresh), ("temperature", temperature), ("top-k", top_k)):
        if not 0 <= value < math.inf:
            raise UserError(f"--{name} {value}: must be at least 0")
    if not 1 <= steps <= _MOST_STEPS or not 0 <= start <= _MOST_STEPS:
        raise UserError(
            f"--steps {steps} --start {start}: allowed are 1 to {_MOST_STEPS} steps, "
            f"from step 0 to {_MOST_STEPS}"
        )
    if top_k and temperature == 0:
        raise UserError(f"--top-k {top_k}: needs a --temperature above 0")
    _check_seed(seed)
    if out is not None and out.suffix.lower() != ".gif":
        raise UserError(f"--out {out}: must end in .gif")
    trained = _opened(run_dir)
    recording = Recording(1, start + steps + 1, vocab_size=trained.tokenizer.vocab_size, seed=seed)
    evaluation = _play(
        trained, trained.config.env, seed=seed, episodes=1, epsilon=0.0, recording=recording
    )
    assert evaluation.frames is not None
    real, dreamed = recording.dream(
        trained.world_model,
        trained.tokenizer,
        evaluation.frames,
        start=start,
        steps=steps,
        refresh=refresh,
        temperature=temperature,
        top_k=top_k or None,
        seed=seed,
        device=torch.device("cpu"),
    )
    path = out or run_dir / "media" / "dream.gif"
    with one_line_errors("make", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_dream_gif(path, real, dreamed, refresh=refresh)
    return path


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"--seed {seed}: must be at least 0")


def _play(
    trained: Trained,
    env: EnvConfig,
    *,
    seed: int,
    episodes: int,
    epsilon: float,
    recording: Recording | None = None,
) -> Evaluation:
    return play(
        trained.agent.act,
        trained.config.game,
        env,
        encode=trained.tokenizer.encode,
        seed=seed,
        episodes=episodes,
        epsilon=epsilon,
        max_steps=recording.max_steps if recording else None,
        on_step=recording.add if recording else None,
        record_frames=recording.max_steps if recording else 0,
    )
