"""The main loop of the ``cpu`` preset: env steps with the agent's updates, without and with the
world model's, at the preset's rates.

There is no rival on the same work, so nothing is compared; what is asserted first is that a round
does what it says: every step lands in the replay, and the updates come at the preset's rates.
Divide ENV_STEPS by a time for env steps per second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from wmfast.build import Parts, build, use_cores
from wmfast.config import Config
from wmfast.metrics import MetricsLog
from wmfast.presets import PRESETS
from wmfast.progress import Reporter
from wmfast.train import collect, due, train_agent, train_world_model
from wmfast.warmup import prepare

ENV_STEPS = 768


def config() -> Config:
    """The preset, its warm-up cut: the tokenizer's quality does not matter here, its cost does."""
    preset = PRESETS["cpu"]
    return replace(
        preset,
        game="ms_pacman",
        device="cpu",
        tokenizer=replace(preset.tokenizer, train_steps=10),
        # no exploration, so that every action costs a forward pass
        agent=replace(preset.agent, epsilon_share=0.0, epsilon_end=0.0),
        loop=replace(preset.loop, warmup_steps=2000),
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    threads = torch.get_num_threads()
    made = build(config())
    use_cores(made.device, made.tokenizer, made.world_model, made.agent)
    folder = tmp_path_factory.mktemp("loop")
    with made.envs, MetricsLog(Path(folder)) as log, Reporter.create(1, every_s=1e9) as reporter:
        prepare(made, log, reporter, lambda: False)
        yield made
    torch.set_num_threads(threads)


@pytest.mark.parametrize("world_model", [False, True], ids=["agent", "agent_and_world_model"])
def test_loop(world_model: bool, parts: Parts, benchmark: BenchmarkFixture) -> None:
    counters, settings = parts.counters, parts.config

    def run() -> None:
        for _ in range(ENV_STEPS // parts.envs.num_envs):
            collect(parts)
            for _ in range(due(parts, settings.agent.every)):
                train_agent(parts)
            for _ in range(due(parts, settings.world_model.every) if world_model else 0):
                train_world_model(parts)
        parts.settle()

    before = counters.env_step, len(parts.replay)
    updates = counters.agent_updates, counters.world_model_updates
    run()
    assert counters.env_step - before[0] == len(parts.replay) - before[1] == ENV_STEPS
    assert counters.agent_updates - updates[0] == ENV_STEPS // settings.agent.every
    expected = ENV_STEPS // settings.world_model.every if world_model else 0
    assert counters.world_model_updates - updates[1] == expected

    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["env_steps_per_round"] = ENV_STEPS
