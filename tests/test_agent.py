"""Double DQN: targets and loss by hand, the soft update, the schedules, and learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wmfast.agent import DoubleDQN, epsilon, importance_exponent
from wmfast.config import AgentConfig
from wmfast.models.q_network import build_q_network
from wmfast.presets import PRESETS
from wmfast.step import TrainStep
from wmfast.types import Transitions

CONV = AgentConfig(kind="conv", d_model=8, tau=0.1)
TUBELET = AgentConfig(kind="transformer", d_model=16, heads=2, layers=1, tubelet=(4, 2, 2))


class TableQ(nn.Module):
    """Q values looked up by the first token of the newest frame."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, history_btk: Tensor) -> Tensor:
        return self.table[history_btk[:, -1, 0]]


def state(*tokens: int) -> Tensor:
    return torch.tensor(tokens)[:, None, None].expand(-1, 4, 336).contiguous()


def transitions(batch_size: int, vocab_size: int, num_actions: int) -> Transitions:
    torch.manual_seed(0)
    return Transitions(
        state_btk=torch.randint(vocab_size, (batch_size, 4, 336)),
        action_b=torch.randint(num_actions, (batch_size,)),
        reward_b=torch.randn(batch_size),
        next_state_btk=torch.randint(vocab_size, (batch_size, 4, 336)),
        discount_b=torch.full((batch_size,), 0.5),
        weight_b=torch.ones(batch_size),
    )


@pytest.fixture
def table_agent() -> DoubleDQN:
    agent = DoubleDQN(CONV, vocab_size=8, num_actions=2)
    agent.online = TableQ([[1.0, 2.0], [5.0, 4.0], [0.0, 3.0]])
    agent.target = TableQ([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    return agent


def test_targets_take_the_action_of_the_online_and_the_value_of_the_target_network(
    table_agent: DoubleDQN,
) -> None:
    batch = Transitions(
        state_btk=state(0, 0, 0),
        action_b=torch.tensor([0, 1, 1]),
        reward_b=torch.tensor([1.0, -1.0, 0.5]),
        next_state_btk=state(1, 2, 1),
        discount_b=torch.tensor([0.9, 0.9, 0.0]),  # the last one ended: nothing follows
        weight_b=torch.tensor([1.0, 0.5, 0.25]),
    )
    # online prefers action 0 in state 1 (5 > 4) and action 1 in state 2
    expected = [1.0 + 0.9 * 30.0, -1.0 + 0.9 * 60.0, 0.5]
    assert table_agent.targets(batch).tolist() == pytest.approx(expected)

    errors = [expected[0] - 1.0, expected[1] - 2.0, abs(expected[2] - 2.0)]
    loss, metrics = table_agent.loss(batch)
    huber = [error - 0.5 for error in errors]  # all errors are over 1
    by_hand = (1.0 * huber[0] + 0.5 * huber[1] + 0.25 * huber[2]) / 3
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert metrics["priority"].tolist() == pytest.approx(errors)

    loss.backward()
    assert table_agent.online.table.grad is not None
    assert table_agent.online.table.grad[1:].abs().sum() == 0  # no gradient through the target
    assert table_agent.target.table.grad is None


def test_soft_update_moves_the_target_by_tau() -> None:
    agent = DoubleDQN(CONV, vocab_size=8, num_actions=3)
    before = [p.clone() for p in agent.target.parameters()]
    with torch.no_grad():
        for parameter in agent.online.parameters():
            parameter.add_(1.0)
    agent.update_target()
    for old, new in zip(before, agent.target.parameters(), strict=True):
        assert torch.allclose(new, old + 0.1)
        assert not new.requires_grad


@pytest.mark.parametrize("config", [CONV, TUBELET], ids=["conv", "tubelet"])
def test_every_frame_and_cell_reaches_the_values_and_every_parameter_learns(
    config: AgentConfig,
) -> None:
    torch.manual_seed(1)
    network = build_q_network(config, vocab_size=8, num_actions=3)
    history = torch.randint(8, (1, 4, 336))
    q = network(history)
    assert q.shape == (1, 3)
    for frame in range(4):
        for cell in (0, 15, 320, 335):  # the corners of the grid
            changed = history.clone()
            changed[0, frame, cell] = (changed[0, frame, cell] + 1) % 8
            assert not torch.equal(network(changed), q), f"frame {frame}, cell {cell}"
    network(torch.randint(8, (16, 4, 336))).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dueling_head_is_value_plus_centred_advantage() -> None:
    network = build_q_network(CONV, vocab_size=8, num_actions=4)
    with torch.no_grad():
        network.head.advantage.weight.zero_()
        network.head.advantage.bias.copy_(torch.tensor([3.0, 1.0, -1.0, 1.0]))
        network.head.value.weight.zero_()
        network.head.value.bias.fill_(10.0)
    q = network(torch.zeros(1, 4, 336, dtype=torch.int64))
    assert q[0].tolist() == pytest.approx([12.0, 10.0, 8.0, 10.0])


@pytest.mark.parametrize("config", [CONV, TUBELET], ids=["conv", "tubelet"])
def test_one_batch_can_be_overfitted(config: AgentConfig) -> None:
    torch.manual_seed(0)
    agent = DoubleDQN(replace(config, tau=0.0), vocab_size=8, num_actions=3)
    batch = transitions(16, 8, 3)
    step = TrainStep(agent, agent.loss, learning_rate=3e-3, grad_clip=10.0)
    first = step(batch)["loss"].item()
    for _ in range(150):
        last = step(batch)["loss"].item()
    assert last < 0.05 * first


def test_epsilon_is_scaled_to_a_shorter_run() -> None:
    config = AgentConfig(epsilon_end=0.01, epsilon_steps=1_000_000, epsilon_share=0.5)
    schedule = {"warmup": 10_000, "total": 110_000}
    assert epsilon(0, config, **schedule) == 1.0
    assert epsilon(10_000, config, **schedule) == 1.0
    assert epsilon(35_000, config, **schedule) == pytest.approx((1.0 + 0.01) / 2)
    assert epsilon(60_000, config, **schedule) == pytest.approx(0.01)
    assert epsilon(110_000, config, **schedule) == pytest.approx(0.01)
    # the seed's own schedule where the run is long enough
    assert epsilon(510_000, config, warmup=10_000, total=4_000_000) == pytest.approx(0.505)


def test_importance_exponent_rises_to_one() -> None:
    config = AgentConfig(beta=0.4)
    assert importance_exponent(10, config, warmup=10, total=110) == pytest.approx(0.4)
    assert importance_exponent(60, config, warmup=10, total=110) == pytest.approx(0.7)
    assert importance_exponent(110, config, warmup=10, total=110) == pytest.approx(1.0)


def test_the_seed_agent_has_the_seeds_shape() -> None:
    config = PRESETS["v3"].agent
    network = build_q_network(config, vocab_size=512, num_actions=9)
    assert (config.d_model, config.heads, config.layers) == (256, 4, 4)
    assert network.embedding(torch.zeros(1, 4, 336, dtype=torch.int64)).shape == (1, 1344, 256)
    assert (config.tau, config.grad_clip, config.alpha, config.beta) == (0.001, 10.0, 0.6, 0.4)
