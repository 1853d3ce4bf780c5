"""Which settings tell runs apart: those that had an effect."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from wmfast.checks import flat
from wmfast.config import Config
from wmfast.presets import PRESETS
from wmfast.report_settings import _IDLE, _NO_MORE_THAN_STEPS, _OFF, differences, in_effect

CPU = PRESETS["cpu"]
STEPS = 100_000


def changed(config: Config, **values: Any) -> Config:
    """`agent__n_step=5` sets ``agent.n_step``."""
    for name, value in values.items():
        part, _, field = name.partition("__")
        config = replace(config, **{part: replace(getattr(config, part), **{field: value})})
    return config


def apart(*configs: Config, steps: int = STEPS) -> list[dict[str, Any]]:
    return differences([(flat(config), steps) for config in configs])


def test_every_name_is_a_setting() -> None:
    settings = flat(Config())
    assert settings.keys() >= {*_OFF, *_NO_MORE_THAN_STEPS}
    for switches, _, idle in _IDLE:
        assert settings.keys() >= set(switches)
        for begin in idle:
            assert any(name.startswith(begin) for name in settings), begin


@pytest.mark.parametrize(
    ("switch", "idle"),
    [
        ({"dyna__share": 0.1}, {"dyna__every": 77}),
        ({"loop__mode": "full"}, {"continual__drift_bound": 0.5}),
        ({"agent__value_head": "c51"}, {"agent__bins": 7}),
        ({"agent__kind": "transformer"}, {"agent__heads": 16}),
        ({"agent__gamma_start": 0.9}, {"agent__anneal_updates": 3}),
        ({"agent__n_step_start": 9}, {"agent__anneal_updates": 3}),
        ({"tokenizer__kind": "vqvae"}, {"tokenizer__commitment": 3.0}),
    ],
)
def test_a_setting_counts_where_its_switch_is_on(
    switch: dict[str, Any], idle: dict[str, Any]
) -> None:
    (name,) = (key.replace("__", ".") for key in idle)
    (gate,) = (key.replace("__", ".") for key in switch)
    assert apart(CPU, changed(CPU, **idle)) == [{}, {}]
    on = changed(CPU, **switch)
    both = apart(on, changed(on, **idle))
    assert [list(each) for each in both] == [[name], [name]]
    three = apart(CPU, on, changed(on, **idle))
    assert name not in three[0]  # it did nothing there
    assert gate in three[0]
    assert name in three[1]
    effect = in_effect(flat(changed(CPU, **idle)), STEPS)
    assert effect == in_effect(flat(CPU), STEPS)


def test_rollouts_are_off_by_either_switch() -> None:
    on = changed(CPU, world_model__rollout_steps=4, world_model__rollout_share=0.5)
    off = [
        changed(on, **values)
        for values in (
            {"world_model__rollout_steps": 1},
            {"world_model__rollout_share": 0.0},
            {"world_model__rollout_share": 0.0, "world_model__rollout_batch_size": 3},
            {"world_model__rollout_share": 0.0, "world_model__rollout_steps": 1},
        )
    ]
    effects = [in_effect(flat(config), STEPS) for config in off]
    assert all(effect == effects[0] for effect in effects)
    assert apart(*off) == [{}] * 4
    for config in off:
        assert in_effect(flat(config), STEPS) != in_effect(flat(on), STEPS)
        one, other = apart(on, config)
        assert one != other


def test_a_store_larger_than_the_run_is_whole() -> None:
    wide, wider = (changed(CPU, loop__replay_capacity=size) for size in (200_000, 300_000))
    assert apart(wide, wider) == [{}, {}]
    assert apart(wide, wider, steps=250_000) == [
        {"loop.replay_capacity": 200_000},
        {"loop.replay_capacity": 300_000},
    ]
    assert differences([(flat(wide), 100_000), (flat(wide), 50_000)]) == [{}, {}]


def test_what_is_off_is_as_if_the_version_had_it_not() -> None:
    old = {key: value for key, value in flat(CPU).items() if not key.startswith("dyna.")}
    on = flat(changed(CPU, dyna__share=0.1))
    assert in_effect(old, STEPS) == in_effect(flat(CPU), STEPS)
    first, second = differences([(old, STEPS), (on, STEPS)])
    assert first == {"dyna.share": "absent"}
    assert second == {"dyna.share": 0.1}
    del old["agent.gamma"]  # what has an effect in any version is not guessed
    assert in_effect(old, STEPS) != in_effect(flat(CPU), STEPS)


def test_an_ignored_switch_still_says_what_is_idle() -> None:
    one, other = (flat(changed(CPU, dyna__share=0.1, dyna__every=n)) for n in (10, 20))
    assert in_effect(one, STEPS, {"dyna.share"}) != in_effect(other, STEPS, {"dyna.share"})
    two = differences([(one, STEPS), (other, STEPS)], {"dyna.share"})
    assert two == [{"dyna.every": 10}, {"dyna.every": 20}]


def test_groups_that_differ_have_different_names() -> None:
    configs = [*PRESETS.values(), changed(CPU, dyna__share=0.1), changed(CPU, loop__mode="full")]
    effects = [in_effect(flat(config), STEPS) for config in configs]
    names = apart(*configs)
    for one, other in combinations(range(len(configs)), 2):
        assert effects[one] != effects[other]
        assert names[one] != names[other]
