"""Which settings of a run had an effect, and in which of those groups of runs differ.

A setting that another one switches off (``dyna.every`` without Dyna) does nothing, whatever it is;
nor does a store's size beyond the run's length. A switch that is off is like one that the version
of the run did not have.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]
"""Of config.json, by dotted name."""

ABSENT = "absent"

# What may differ within a group: what a run is called and how it is watched, not what it learns.
NOT_SETTINGS = {
    "game", "preset", "seed", "steps", "device", "run_dir", "resume",
    "loop.eval_every", "loop.eval_episodes", "loop.checkpoint_every", "loop.keep_checkpoints",
    "loop.log_every",
}  # fmt: skip

SAID_BY = {"sticky": "env.sticky", "noop_max": "env.noop_max", "max_steps": "env.max_frames"}
"""What the protocol of a score repeats, and the setting that it follows from."""

_OFF: Settings = {
    "vqvae": None, "wm": None,
    "agent.act_with_target": False, "agent.curiosity": 0, "agent.gamma_start": 0,
    "agent.n_step_start": 0, "agent.reset_every": 0, "agent.shift": 0, "agent.token_dropout": 0,
    "agent.updates": 1, "agent.value_head": "scalar",
    "dyna.share": 0, "dyna.top_k": 0,
    "world_model.copy_gate": False, "world_model.decay_share": 0, "world_model.life_head": False,
    "world_model.rollout_steps": 1, "world_model.rollout_share": 0,
    "world_model.motion_weight": 0, "world_model.eventness_weight": 0,
    "world_model.persistence_weight": 0,
}  # fmt: skip

_ROLLOUTS = ("world_model.rollout_", "world_model.teacher_forcing", "world_model.step_discount")

# (switches, values, settings): where every switch has one of the values, the settings do nothing.
# A setting is named by how its name begins. A switch that does nothing by a rule above switches
# nothing off: without rollouts the one of their two switches that is off says so.
_IDLE: Sequence[tuple[Sequence[str], Sequence[Any], tuple[str, ...]]] = [
    (["loop.mode"], ["frozen", "staged"], ("continual.",)),
    (["dyna.share"], [0], ("dyna.",)),
    (["dyna.temperature"], [0], ("dyna.top_k",)),
    (["agent.kind"], ["conv"], ("agent.heads", "agent.layers", "agent.tubelet")),
    (["agent.kind"], ["transformer"], ("agent.embed_dim",)),
    (["agent.value_head"], ["scalar"], ("agent.bins", "agent.value_range")),
    (["agent.reset_every"], [0], ("agent.reset_until", "agent.reset_keep")),
    (["agent.gamma_start", "agent.n_step_start"], [0], ("agent.anneal_updates",)),
    (
        ["world_model.kind"],
        ["conv"],
        ("world_model.heads", "world_model.dropout", "world_model.tubelet"),
    ),
    (
        ["world_model.reward_done_heads"],
        [False],
        ("world_model.done_weight", "world_model.life_head"),
    ),
    (["world_model.rollout_steps"], [1], _ROLLOUTS),
    (["world_model.rollout_share"], [0], _ROLLOUTS),
    (
        [f"world_model.{name}_weight" for name in ("motion", "eventness", "persistence")],
        [0],
        ("world_model.importance_cap",),
    ),
    (
        ["tokenizer.kind"],
        ["patch"],
        tuple(
            f"tokenizer.{name}"
            for name in ("code_dim", "ema_decay", "commitment", "dead_code_threshold")
        ),
    ),
]
_NO_MORE_THAN_STEPS = ("loop.replay_capacity", "world_model.recent_steps",
                       "continual.window_frames")  # fmt: skip


def in_effect(settings: Settings, env_steps: int, ignored: Collection[str] = ()) -> dict[str, Any]:
    """What decided a run of so many env steps, without idle settings, switches that are off, and
    those ignored."""
    kept = {
        key: value
        for key, value in settings.items()
        if key not in ignored
        and not _is_idle(key, settings)
        and not (key in _OFF and value == _OFF[key])
    }
    for key in _NO_MORE_THAN_STEPS:
        if isinstance(kept.get(key), int):
            kept[key] = min(kept[key], env_steps)
    return kept


def either_name(names: Collection[str]) -> frozenset[str]:
    """These settings by the names that config.json has for them, and by those of the protocol."""
    given = frozenset(names)
    return given.union(*(pair for pair in SAID_BY.items() if given.intersection(pair)))


def differences(
    groups: Sequence[tuple[Settings, int]], ignored: Collection[str] = ()
) -> list[dict[str, Any]]:
    """For each of several groups' (settings, env steps), those settings that tell them apart.

    A setting that is idle in a group is neither compared nor named there; its switch is.
    """
    effects = [in_effect(settings, steps, ignored) for settings, steps in groups]
    special: list[dict[str, Any]] = [{} for _ in groups]
    for key in sorted({key for effect in effects for key in effect}):
        where = [at for at, (settings, _) in enumerate(groups) if not _is_idle(key, settings)]
        values = [groups[at][0].get(key, ABSENT) for at in where]
        # A store that holds runs of two lengths whole is the same setting.
        if _differ(values) and _differ([effects[at].get(key, ABSENT) for at in where]):
            for at, value in zip(where, values, strict=True):
                special[at][key] = value
    return special


def _differ(values: Sequence[Any]) -> bool:
    return len({json.dumps(value) for value in values}) > 1


def _is_idle(key: str, settings: Settings, rules: int = len(_IDLE)) -> bool:
    """Whether one of the first so many rules says so."""
    return any(
        key.startswith(idle)
        and key not in switches
        and all(settings.get(switch, _OFF.get(switch)) in values for switch in switches)
        and not any(_is_idle(switch, settings, rule) for switch in switches)
        for rule, (switches, values, idle) in enumerate(_IDLE[:rules])
    )
