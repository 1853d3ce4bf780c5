"""Value heads over bins: projections, targets, losses and priorities by hand, and learning."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wmfast.agent import DoubleDQN
from wmfast.config import AgentConfig
from wmfast.models.q_network import build_q_network, build_support
from wmfast.models.value_support import Support
from wmfast.step import TrainStep
from wmfast.types import Transitions

CONV = AgentConfig(kind="conv", d_model=8, bins=5, value_range=2.0)
TUBELET = AgentConfig(kind="transformer", d_model=16, heads=2, layers=1, tubelet=(4, 2, 2))
HEADS = ["c51", "hl_gauss"]


def state(*tokens: int) -> Tensor:
    return torch.tensor(tokens)[:, None, None].expand(-1, 4, 336).contiguous()


class TableLogits(nn.Module):
    """Logits (S, A, Z) looked up by the first token of the newest frame."""

    def __init__(self, support: Support, table: Tensor) -> None:
        super().__init__()
        self.head = nn.Module()
        self.head.support = support
        self.table = nn.Parameter(table.clone())

    def logits(self, history_btk: Tensor) -> Tensor:
        return self.table[history_btk[:, -1, 0]]

    def forward(self, history_btk: Tensor) -> Tensor:
        return self.head.support.expected(self.logits(history_btk))


def test_c51_atoms_reach_the_limits_and_the_middles_of_bins_do_not() -> None:
    assert Support(5, 2.0, at_edges=True).atom_z.tolist() == [-2, -1, 0, 1, 2]
    assert Support(4, 2.0, at_edges=False).atom_z.tolist() == [-1.5, -0.5, 0.5, 1.5]
    with pytest.raises(ValueError, match="bins = 1"):
        Support(1, 2.0, at_edges=True)
    with pytest.raises(ValueError, match="limit = 0"):
        Support(5, 0.0, at_edges=True)


def test_the_projection_splits_mass_between_neighbours_and_keeps_the_mean() -> None:
    support = Support(5, 2.0, at_edges=True)
    values = torch.tensor([[0.25, 1.0, -7.0], [1.75, 2.0, 9.0]])
    mass = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
    projected = support.project(values, mass)
    assert projected[0].tolist() == pytest.approx([0.25, 0, 0.375, 0.375, 0])  # -7 goes to -2
    assert projected[1].tolist() == pytest.approx([0, 0, 0, 0.125, 0.875])
    torch.manual_seed(0)
    inside = torch.rand(64, 7) * 4 - 2
    weights = torch.rand(64, 7).softmax(-1)
    projected = support.project(inside, weights)
    assert torch.allclose(projected.sum(-1), torch.ones(64), atol=1e-6)
    assert torch.allclose(projected @ support.atom_z, (inside * weights).sum(-1), atol=1e-5)
    # Where atoms meet atoms nothing is spread, up to the outermost.
    atoms = support.atom_z.expand(5, 5)
    assert torch.allclose(support.project(atoms, torch.eye(5)), torch.eye(5), atol=1e-6)


def test_the_gaussian_has_the_mass_that_the_normal_distribution_has_in_each_bin() -> None:
    support = Support(4, 2.0, at_edges=False)  # bins -2 .. -1 .. 0 .. 1 .. 2, sigma 0.75
    value = 0.3

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf((edge - value) / (0.75 * math.sqrt(2))))

    whole = below(2) - below(-2)
    by_hand = [(below(edge + 1) - below(edge)) / whole for edge in (-2, -1, 0, 1)]
    assert support.gaussian(torch.tensor([value]))[0].tolist() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("value", [-30.0, -4.0, 0.0, 0.123, 4.9, 30.0])
def test_the_mean_of_a_gaussian_is_its_value_where_the_limits_leave_room(value: float) -> None:
    support = Support(51, 10.0, at_edges=False)
    mass = support.gaussian(torch.tensor([value]))[0]
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    assert mass.min() >= 0
    expected = support.expected(mass.log()).item()
    if abs(value) < 9:
        assert expected == pytest.approx(value, abs=2e-3)
    else:  # half of it is cut off at the limit
        assert 9.5 < math.copysign(1, value) * expected < 10


@pytest.mark.parametrize("head", HEADS)
def test_values_are_exact_under_autocast(head: str) -> None:
    support = build_support(replace(CONV, value_head=head, bins=51, value_range=10.0))
    logits = torch.randn(64, 51)
    exact, mass = support.expected(logits), logits.softmax(-1)
    moved = 0.3 + 0.9 * support.atom_z.expand(64, -1)
    projected, around = support.project(moved, mass), support.gaussian(exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(support.expected(logits), exact)
        assert torch.equal(support.project(moved, mass), projected)
        assert torch.equal(support.gaussian(exact), around)


@pytest.mark.parametrize("head", HEADS)
def test_the_dueling_head_combines_logits_bin_by_bin(head: str) -> None:
    network = build_q_network(replace(CONV, value_head=head), vocab_size=8, num_actions=3)
    value = torch.randn(5)
    advantage = torch.randn(3, 5)
    with torch.no_grad():
        for layer in (network.head.value, network.head.advantage):
            layer.weight.zero_()
        network.head.value.bias.copy_(value)
        network.head.advantage.bias.copy_(advantage.flatten())
    history = torch.zeros(2, 4, 336, dtype=torch.int64)
    wanted = value + advantage - advantage.mean(dim=0)
    assert torch.allclose(network.logits(history), wanted.expand(2, 3, 5), atol=1e-6)
    support = build_support(replace(CONV, value_head=head))
    q = (wanted.softmax(-1) * support.atom_z).sum(-1)
    assert torch.allclose(network(history), q.expand(2, 3), atol=1e-6)


def tables(head: str) -> tuple[DoubleDQN, Tensor, Tensor]:
    torch.manual_seed(3)
    agent = DoubleDQN(replace(CONV, value_head=head), vocab_size=8, num_actions=2)
    support = agent.online.head.support
    online, target = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    online[1, 0, 4] = target[1, 1, 4] = 6.0  # in state 1 the two disagree about the best action
    agent.online, agent.target = TableLogits(support, online), TableLogits(support, target)
    return agent, online, target


BATCH = Transitions(
    state_btk=state(0, 2, 0),
    action_b=torch.tensor([0, 1, 1]),
    reward_b=torch.tensor([0.3, -1.0, 1.7]),
    next_state_btk=state(1, 2, 1),
    discount_b=torch.tensor([0.9, 0.5, 0.0]),  # the last one ended
    weight_b=torch.tensor([1.0, 0.5, 0.25]),
)


@pytest.mark.parametrize("head", HEADS)
def test_loss_and_priorities_by_hand(head: str) -> None:
    agent, online, target = tables(head)
    support = agent.online.head.support
    atoms = support.atom_z.tolist()
    loss, metrics = agent.loss(BATCH)
    by_hand, priorities = 0.0, []
    for i in range(3):
        now, then = int(BATCH.state_btk[i, 0, 0]), int(BATCH.next_state_btk[i, 0, 0])
        reward, discount = BATCH.reward_b[i].item(), BATCH.discount_b[i].item()
        best = int((online[then].softmax(-1) @ support.atom_z).argmax())  # the online network's
        probability = target[then, best].softmax(-1)
        mean = reward + discount * float(probability @ support.atom_z)
        wanted = [0.0] * 5
        if head == "c51":
            for atom, mass in zip(atoms, probability.tolist(), strict=True):
                at = (min(2.0, max(-2.0, reward + discount * atom)) + 2.0) / 1.0
                low = min(3, math.floor(at))
                wanted[low] += mass * (low + 1 - at)
                wanted[low + 1] += mass * (at - low)
        else:
            wanted = support.gaussian(torch.tensor([mean]))[0].tolist()
        logits = online[now, int(BATCH.action_b[i])]
        entropy = -sum(w * p for w, p in zip(wanted, logits.log_softmax(-1).tolist(), strict=True))
        by_hand += BATCH.weight_b[i].item() * entropy / 3
        priorities.append(abs(float(logits.softmax(-1) @ support.atom_z) - mean))
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert metrics["priority"].tolist() == pytest.approx(priorities, abs=1e-5)
    assert metrics["clipped_targets"].item() == 0.0

    loss.backward()
    grad = agent.online.table.grad
    assert grad[0, 0].abs().sum() > 0
    assert grad[1].abs().sum() == 0  # no gradient through the target
    assert agent.target.table.grad is None


@pytest.mark.parametrize("head", HEADS)
def test_targets_beyond_the_range_are_counted(head: str) -> None:
    agent, _, _ = tables(head)
    batch = BATCH._replace(reward_b=torch.tensor([9.0, 0.0, -3.0]))
    loss, metrics = agent.loss(batch)
    assert loss.isfinite()
    assert metrics["clipped_targets"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("config", [CONV, TUBELET], ids=["conv", "tubelet"])
def test_one_batch_can_be_overfitted(config: AgentConfig, head: str) -> None:
    torch.manual_seed(0)
    config = replace(config, value_head=head, bins=21, value_range=5.0, tau=0.0)
    agent = DoubleDQN(config, vocab_size=8, num_actions=3)
    batch = Transitions(
        state_btk=torch.randint(8, (16, 4, 336)),
        action_b=torch.randint(3, (16,)),
        reward_b=torch.randn(16),
        next_state_btk=torch.randint(8, (16, 4, 336)),
        discount_b=torch.zeros(16),
        weight_b=torch.ones(16),
    )
    step = TrainStep(agent, agent.loss, learning_rate=3e-3, grad_clip=10.0)
    first = step(batch)["td_error"].item()
    for _ in range(150):
        last = step(batch)["td_error"].item()
    assert last < 0.1 * first


@pytest.mark.parametrize("head", ["c51", "hl_gauss"])
def test_a_target_beyond_the_bins_loses_its_priority_once_it_is_fitted(head: str) -> None:
    torch.manual_seed(0)
    config = replace(CONV, value_head=head, bins=21, value_range=2.0, tau=0.0)
    agent = DoubleDQN(config, vocab_size=8, num_actions=3)
    batch = Transitions(
        state_btk=torch.randint(8, (1, 4, 336)),
        action_b=torch.ones(1, dtype=torch.int64),
        reward_b=torch.tensor([9.0]),
        next_state_btk=torch.randint(8, (1, 4, 336)),
        discount_b=torch.zeros(1),
        weight_b=torch.ones(1),
    )
    step = TrainStep(agent, agent.loss, learning_rate=3e-3, grad_clip=10.0)
    first = step(batch)["priority"].item()
    for _ in range(60):
        last = step(batch)["priority"].item()
    assert 1 < first < 3  # to the largest bin, not to 9
    assert last < 0.2  # hl_gauss cuts off half of its Gaussian at the limit


def test_a_scalar_head_has_the_weights_that_it_had_without_the_others() -> None:
    names = set(build_q_network(CONV, vocab_size=8, num_actions=3).state_dict())
    agent = DoubleDQN(CONV, vocab_size=8, num_actions=3)
    assert {
        name.removeprefix("online.") for name in agent.state_dict() if "online" in name
    } == names
    assert agent.online.head.value.weight.shape == (1, 128)
    assert not any("atom" in name or "calls" in name for name in agent.state_dict())


def test_the_range_is_given_or_what_no_return_exceeds() -> None:
    assert AgentConfig(value_range=7.0).value_limit == 7.0
    assert AgentConfig(value_range=0.0, gamma=0.99).value_limit == pytest.approx(100.0)
    assert AgentConfig(value_range=0.0, gamma=1.0).value_limit == math.inf
