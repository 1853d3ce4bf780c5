"""Resets of head, encoder and optimiser, and the returns that are annealed after them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wmfast.agent import DoubleDQN, reset_due, returns
from wmfast.config import AgentConfig
from wmfast.step import TrainStep
from wmfast.types import Transitions

CONV = AgentConfig(kind="conv", d_model=8, tau=0.1, reset_keep=0.5)


def trained(seed: int = 0) -> tuple[DoubleDQN, TrainStep, Transitions]:
    torch.manual_seed(0)
    agent = DoubleDQN(CONV, vocab_size=8, num_actions=3, seed=seed)
    step = TrainStep(
        agent, agent.loss, learning_rate=1e-2, grad_clip=10.0, after=agent.update_target
    )
    batch = Transitions(
        state_btk=torch.randint(8, (8, 4, 336)),
        action_b=torch.randint(3, (8,)),
        reward_b=torch.randn(8),
        next_state_btk=torch.randint(8, (8, 4, 336)),
        discount_b=torch.full((8,), 0.9),
        weight_b=torch.ones(8),
    )
    for _ in range(5):
        step(batch)
    return agent, step, batch


def test_the_head_is_drawn_anew_and_the_rest_moves_half_way_to_a_fresh_draw() -> None:
    agent, _, _ = trained()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    places = {name: value.data_ptr() for name, value in agent.named_parameters()}
    agent.reset(1)
    after = agent.state_dict()
    assert {name: value.data_ptr() for name, value in agent.named_parameters()} == places
    for name in agent.online.state_dict():
        online, target = after[f"online.{name}"], after[f"target.{name}"]
        if name.startswith("head."):
            assert torch.equal(online, target)
            assert not torch.equal(online, before[f"online.{name}"])
            if name.endswith("weight"):  # uncorrelated with what it was
                both = torch.stack([online.flatten(), before[f"online.{name}"].flatten()])
                assert torch.corrcoef(both)[0, 1].abs() < 0.3
        else:
            # One fresh draw for both: what each has beyond half of itself is the same.
            fresh = online - 0.5 * before[f"online.{name}"]
            assert torch.allclose(target - 0.5 * before[f"target.{name}"], fresh, atol=1e-6)
            assert fresh.std() > 0.2 * before[f"online.{name}"].std()
            assert not torch.equal(online, target)


def test_seed_and_number_decide_a_reset_and_nothing_else_does() -> None:
    def weights(seed: int, number: int, noise: int) -> list[torch.Tensor]:
        agent, _, _ = trained(seed)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        agent.reset(number)
        assert torch.equal(torch.get_rng_state(), state)
        return [parameter.detach() for parameter in agent.parameters()]

    def alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert alike(weights(1, 1, noise=5), weights(1, 1, noise=6))
    assert not alike(weights(1, 1, noise=5), weights(1, 2, noise=5))
    assert not alike(weights(1, 1, noise=5), weights(2, 1, noise=5))


def test_the_optimiser_forgets_in_place() -> None:
    agent, step, batch = trained()
    state = step.optimizer.state
    parameters = list(agent.online.parameters())
    moments = [state[p]["exp_avg"].data_ptr() for p in parameters]
    assert all(state[p]["exp_avg_sq"].abs().sum() > 0 for p in parameters)
    agent.reset(1)
    step.forget()
    assert [state[p]["exp_avg"].data_ptr() for p in parameters] == moments
    assert all(not entry.any() for p in parameters for entry in state[p].values())
    twin, fresh, _ = trained()
    twin.load_state_dict(agent.state_dict())
    fresh = TrainStep(twin, twin.loss, learning_rate=1e-2, grad_clip=10.0, after=twin.update_target)
    step(batch)
    fresh(batch)  # an optimiser that never knew anything
    for one, other in zip(agent.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_captured_step_goes_on_with_new_shifts_and_after_a_reset(device: str) -> None:
    agents, steps = [], []
    for captured in (True, False):
        torch.manual_seed(0)
        config = replace(CONV, shift=1, token_dropout=0.1, value_head="hl_gauss", tau=0.0)
        agent = DoubleDQN(config, vocab_size=8, num_actions=3, seed=1).to(device)
        step = TrainStep(agent, agent.loss, learning_rate=1e-3, grad_clip=10.0)
        if not captured:
            step._run = step._update
        agents.append(agent)
        steps.append(step)
    batch = Transitions(*(tensor.to(device) for tensor in trained()[2]))
    for update in range(9):  # three plain calls, the capture, replays before and after the reset
        if update == 6:
            for agent, step in zip(agents, steps, strict=True):
                agent.reset(1)
                step.forget()
        losses = [step(batch)["loss"] for step in steps]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)
        assert agents[0].augment is not None
        assert int(agents[0].augment.calls) == 2 * (update + 1)


def test_resets_come_each_so_many_updates_until_their_time_is_over() -> None:
    config = AgentConfig(reset_every=100, reset_until=0.5)
    assert [u for u in range(500) if reset_due(u, 10, config, total=1000)] == [100, 200, 300, 400]
    assert reset_due(100, 499, config, total=1000)
    assert not reset_due(100, 500, config, total=1000)
    assert not any(reset_due(u, 10, AgentConfig(), total=1000) for u in range(500))


def test_returns_grow_shorter_and_look_further_exponentially() -> None:
    config = AgentConfig(
        n_step=3, n_step_start=10, gamma=0.997, gamma_start=0.97, anneal_updates=10_000
    )
    assert config.longest_return == 10
    assert returns(0, config) == (10, 0.97)
    assert returns(10_000, config) == returns(10**9, config) == (3, 0.997)
    n_step, gamma = returns(5_000, config)
    assert n_step == round((10 * 3) ** 0.5)  # the geometric middle
    assert 1 - gamma == pytest.approx((0.03 * 0.003) ** 0.5)
    path = [returns(update, config) for update in range(0, 10_001, 100)]
    assert path == sorted(path, key=lambda pair: (-pair[0], pair[1]))
    # off: what it always was, to the last bit
    plain = AgentConfig(n_step=3, gamma=0.99)
    assert {returns(update, plain) for update in (0, 1, 5_000, 10**6)} == {(3, 0.99)}
    assert returns(0, replace(plain, n_step_start=7)) == (7, 0.99)


def test_one_gamma_may_be_one() -> None:
    config = AgentConfig(gamma=1.0, gamma_start=0.9, anneal_updates=10)
    assert returns(0, config)[1] == pytest.approx(0.9)
    assert returns(10, config)[1] == 1.0


def test_only_matrices_decay() -> None:
    agent = DoubleDQN(CONV, vocab_size=8, num_actions=3)
    step = TrainStep(
        agent,
        lambda batch: (0.0 * sum(p.sum() for p in agent.online.parameters()), {}),
        learning_rate=0.1,
        weight_decay=0.5,
        decay_vectors=False,
        grad_clip=1.0,
    )
    before = [p.detach().clone() for p in agent.online.parameters()]
    step(torch.zeros(1))
    for old, new in zip(before, agent.online.parameters(), strict=True):
        assert torch.allclose(new, old * (0.95 if old.dim() > 1 else 1.0), atol=1e-7)


def test_the_target_network_plays_where_asked() -> None:
    agent = DoubleDQN(replace(CONV, act_with_target=True), vocab_size=8, num_actions=3)
    history = torch.zeros(1, 4, 336, dtype=torch.int64)
    with torch.no_grad():
        for network, best in ((agent.online, 1), (agent.target, 2)):
            network.head.advantage.bias.copy_(
                torch.nn.functional.one_hot(torch.tensor(best), 3) * 9
            )
    assert agent.act(history).item() == 2
