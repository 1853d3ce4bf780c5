"""The presets are what they say: the seeds' shapes to the letter, and all of them train a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wmfast.agent import DoubleDQN, epsilon, reset_due, returns
from wmfast.config import AgentConfig
from wmfast.models.tokenizer import build_tokenizer
from wmfast.models.world_model import build_world_model
from wmfast.presets import PRESETS
from wmfast.step import TrainStep
from wmfast.types import Segments, Transitions


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_v2_is_the_second_seed() -> None:
    config = PRESETS["v2"]
    model = build_world_model(config.world_model, vocab_size=32, num_actions=4)
    assert config.tokenizer.codebook_size == 32
    assert model.length == 1681
    assert parameters(model) == pytest.approx(8.3e6, rel=0.01)  # the seed says about 8.3M
    assert model.reward_done is None
    assert len(model.encoder.blocks) == 10
    assert all(block.attention.heads == 8 for block in model.encoder.blocks)
    optimiser = config.world_model
    assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.grad_clip) == (5e-4, 0.01, 1)
    assert optimiser.batch_size == 8


def test_v3_is_the_first_seed() -> None:
    config = PRESETS["v3"]
    model = build_world_model(config.world_model, vocab_size=512, num_actions=9)
    assert config.tokenizer.codebook_size == 512
    assert model.length == 1681
    assert model.reward_done is not None
    assert len(model.encoder.blocks) == 4
    assert all(block.attention.heads == 4 for block in model.encoder.blocks)
    agent = DoubleDQN(config.agent, vocab_size=512, num_actions=9)
    assert agent.online.embedding(torch.zeros(1, 4, 336, dtype=torch.int64)).shape[1] == 1344


def test_atari100k_is_the_recipe_of_bbf() -> None:
    config = PRESETS["atari100k"]
    agent = config.agent
    assert returns(0, agent) == (10, 0.97)
    assert returns(10_000, agent) == (3, 0.997)
    assert agent.batch_size * agent.updates / agent.every == 64  # its replay ratio
    updates = agent.updates * (config.steps - config.loop.warmup_steps) // agent.every
    resets = [u for u in range(updates) if reset_due(u, 4_000 + u // 2, agent, total=config.steps)]
    assert resets == [20_000, 40_000, 60_000, 80_000]
    schedule = {"warmup": config.loop.warmup_steps, "total": config.steps}
    assert epsilon(config.loop.warmup_steps + 2_000, agent, **schedule) == 0.0
    network = DoubleDQN(agent, vocab_size=512, num_actions=9)
    assert network.online.head.value.out_features == agent.bins == 51
    assert network.augment is not None


def test_other_presets_have_none_of_it() -> None:
    off = AgentConfig()
    fields = ["value_head", "n_step_start", "gamma_start", "reset_every", "shift", "token_dropout"]
    fields += ["weight_decay", "adam_epsilon", "act_with_target", "updates"]
    for name in ("v3", "v2"):
        for field in fields:
            assert getattr(PRESETS[name].agent, field) == getattr(off, field)


def test_the_vqvae_has_the_size_that_the_seed_names() -> None:
    tokenizer = build_tokenizer(PRESETS["v3"].tokenizer)
    assert parameters(tokenizer) == pytest.approx(6.0e6, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3", "v2", "atari100k", "cpu"])
def test_one_real_training_step_of_each_network(name: str) -> None:
    """At batch size 1: shapes and sequence lengths are the preset's own."""
    torch.manual_seed(0)
    config, actions = PRESETS[name], 4
    vocab_size = config.tokenizer.codebook_size
    model = build_world_model(config.world_model, vocab_size=vocab_size, num_actions=actions)
    segments = Segments(
        tokens_bsk=torch.randint(vocab_size, (1, 5, 336)),
        action_bs=torch.tensor([[1]]),
        reward_bs=torch.tensor([[10.0]]),
        terminated_bs=torch.tensor([[False]]),
        mask_bs=torch.tensor([[True]]),
        life_lost_bs=torch.tensor([[True]]),
    )
    agent = DoubleDQN(config.agent, vocab_size=vocab_size, num_actions=actions)
    history = torch.randint(vocab_size, (2, 1, 4, 336))
    transitions = Transitions(
        history[0], torch.tensor([1]), torch.ones(1), history[1], torch.ones(1), torch.ones(1)
    )
    for module, batch, rate in (
        (model, segments, config.world_model.learning_rate),
        (agent, transitions, config.agent.learning_rate),
    ):
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        step = TrainStep(module, module.loss, learning_rate=rate, grad_clip=1.0)
        for _ in range(1 if name in ("v3", "v2") else 3):  # layers that start at zero move first
            assert step(batch)["loss"].isfinite()
        still = {n for n, p in module.named_parameters() if p.detach().equal(before[n])}
        assert not {n for n in still if not n.startswith("target.")}
