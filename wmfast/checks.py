"""Refusing a configuration that cannot work, before anything is made, by the name of its flag."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from wmfast.agent import DoubleDQN, returns
from wmfast.config import AgentConfig, Config
from wmfast.envs import AtariEnvs
from wmfast.errors import UserError
from wmfast.models.tokenizer import build_tokenizer
from wmfast.models.world_model import build_world_model
from wmfast.types import HISTORY
from wmfast.warmup import load_model_files

_AT_LEAST = {
    "seed": 0,
    "env.noop_max": 0,
    "env.max_frames": 16,
    "tokenizer.codebook_size": 2,
    "tokenizer.residual_blocks": 0,
    "continual.reseed_codes": 0,
    "world_model.warmup_updates": 0,
    "agent.bins": 2,
    "agent.n_step_start": 0,
    "agent.reset_every": 0,
    "agent.shift": 0,
    "dyna.top_k": 0,
}  # every other whole number: 1
_AT_MOST = {
    "seed": 2**63 - 1,
    "tokenizer.codebook_size": 65_536,
    "agent.bins": 10_000,
    "agent.n_step": 1_000,
    "agent.n_step_start": 1_000,
    "agent.shift": 20,
    "world_model.rollout_steps": 100,
}
_FRACTIONS = {
    "env.sticky",
    "tokenizer.ema_decay",
    "tokenizer.dead_code_threshold",
    "world_model.decay_share",
    "world_model.dropout",
    "world_model.recent_fraction",
    "world_model.rollout_share",
    "world_model.rollout_start",
    "world_model.teacher_forcing",
    "continual.ema_decay",
    "continual.rehearsal_fraction",
    "continual.drift_bound",
    "dyna.share",
    "dyna.start",
    "dyna.trust_threshold",
    "dyna.trust_decay",
    "agent.gamma",
    "agent.gamma_start",
    "agent.reset_keep",
    "agent.reset_until",
    "agent.token_dropout",
    "agent.tau",
    "agent.alpha",
    "agent.beta",
    "agent.epsilon_end",
    "agent.epsilon_share",
}
_MAY_BE_ZERO = {
    "agent.curiosity",
    "agent.value_range",
    "agent.weight_decay",
    "world_model.weight_decay",
    "world_model.motion_weight",
    "world_model.eventness_weight",
    "world_model.persistence_weight",
    "dyna.temperature",
    "dyna.trust_scale",
    "tokenizer.foreground_weight",
    "tokenizer.commitment",
}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of nested dataclasses by dotted name, as on the command line."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        fields |= flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return fields


def flag(name: str) -> str:
    """``agent.n_step`` as it is typed: ``--agent.n-step``."""
    return "--" + name.replace("_", "-")


def check(config: Config, *, model_files: bool = True) -> None:
    """Refuse numbers outside their range, sizes that fit nothing, and model files that don't fit.

    Args:
        model_files: read them; a run that goes on from a checkpoint has their weights in it.

    Raises:
        UserError: names the flag, the value and what is allowed.
    """
    for name, value in flat(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            _check_number(name, number)
    warmup, capacity = config.loop.warmup_steps, config.loop.replay_capacity
    if config.steps <= warmup:
        raise UserError(
            f"--steps {config.steps}: must be more than the warm-up of {warmup} random steps "
            "(--loop.warmup-steps)"
        )
    few = max(
        config.env.num_envs * (4 + config.agent.longest_return),
        config.agent.batch_size,
        config.world_model.batch_size,
        config.world_model.rollout_batch_size if config.world_model.rollout_steps > 1 else 0,
    )
    if warmup < few:
        raise UserError(f"--loop.warmup-steps {warmup}: must be at least {few}, to draw from")
    cap = config.world_model.importance_cap
    if cap < 1:
        raise UserError(f"--world-model.importance-cap {cap}: must be at least 1")
    if capacity < warmup:
        raise UserError(f"--loop.replay-capacity {capacity}: must hold the warm-up ({warmup})")
    agent = config.agent
    if agent.curiosity and agent.longest_return > HISTORY:
        raise UserError(
            f"--agent.curiosity {agent.curiosity}: needs returns of at most {HISTORY} steps, "
            f"--agent.n-step or --agent.n-step-start is {agent.longest_return}"
        )
    if agent.curiosity and not 0 < agent.gamma < 1:
        raise UserError(
            f"--agent.curiosity {agent.curiosity}: needs --agent.gamma between 0 and 1, not "
            f"{agent.gamma}: whole returns are told by their discount"
        )
    if agent.gamma_start and not agent.gamma_start <= agent.gamma < 1:
        raise UserError(
            f"--agent.gamma-start {agent.gamma_start}: must be at most --agent.gamma "
            f"({agent.gamma}), and that below 1; or 0: always --agent.gamma"
        )
    between = config.continual.tokenizer_every + config.env.num_envs
    if config.loop.mode == "full" and config.continual.window_frames < between:
        raise UserError(
            f"--continual.window-frames {config.continual.window_frames}: must be at least "
            f"{between}, what is played between two trainings of the tokenizer"
        )
    dyna = config.dyna
    if dyna.top_k and not dyna.temperature:
        raise UserError(f"--dyna.top-k {dyna.top_k}: needs a --dyna.temperature above 0")
    if dyna.share and not config.world_model.reward_done_heads:
        raise UserError(f"--dyna.share {dyna.share}: needs --world-model.reward-done-heads")
    if (
        dyna.share
        and not 1 <= round(dyna.share * config.agent.batch_size) < config.agent.batch_size
    ):
        raise UserError(
            f"--dyna.share {dyna.share}: of a batch of {config.agent.batch_size} at least one row "
            "must be imagined and one real"
        )
    _check_value_range(config.agent)
    _check_networks(config, model_files=model_files)


def _check_value_range(agent: AgentConfig) -> None:
    """The bins must hold at least the rewards (signs) of one return, or no target is learnable."""
    if agent.value_head == "scalar":
        return
    if not math.isfinite(agent.value_limit):
        raise UserError("--agent.value-range 0: needs --agent.gamma below 1; or give a range")
    step = max(1, agent.anneal_updates // 100)
    starts = {returns(update, agent) for update in range(0, agent.anneal_updates + 1, step)}
    most = max(sum(gamma**k for k in range(n_step)) for n_step, gamma in starts)
    if agent.value_limit < most:
        raise UserError(
            f"--agent.value-range {agent.value_range}: the rewards of one return add up to "
            f"{most:.2f}; must be at least that, or 0"
        )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if name in _FRACTIONS:
        if not 0 <= value <= 1:
            raise UserError(f"{flag(name)} {value}: must be within 0..1")
    elif isinstance(value, float):
        lowest = "at least 0" if name in _MAY_BE_ZERO else "positive"
        if not math.isfinite(value) or value < 0 or (value == 0 and lowest == "positive"):
            raise UserError(f"{flag(name)} {value}: must be {lowest} and finite")
    else:
        least, most = _AT_LEAST.get(name, 1), _AT_MOST.get(name, 10**12)
        if value < least:
            raise UserError(f"{flag(name)} {value}: must be at least {least}")
        if value > most:
            raise UserError(f"{flag(name)} {value}: must be at most {most}")


def _check_networks(config: Config, *, model_files: bool) -> None:
    """Build each network once: what it refuses, and what a model file does not fit, shows here."""
    with AtariEnvs(config.game, config.env, num_envs=1, seed=0) as envs:
        num_actions = envs.num_actions
    vocab_size = config.tokenizer.codebook_size
    part = "tokenizer"
    try:
        tokenizer = build_tokenizer(config.tokenizer)
        part = "world_model"
        world_model = build_world_model(
            config.world_model, vocab_size=vocab_size, num_actions=num_actions
        )
        part = "agent"
        DoubleDQN(config.agent, vocab_size=vocab_size, num_actions=num_actions)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{flag(part)}: {error}") from error
    if model_files:
        load_model_files(config, tokenizer, world_model)
