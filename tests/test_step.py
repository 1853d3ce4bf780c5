"""The training step: clipping, what is left alone, and equality with a plain loop."""

from __future__ import annotations

import threading
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from wmfast.step import Beside, Graphed, TrainStep


class Pair(NamedTuple):
    x_bd: Tensor
    y_b: Tensor


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def loss(self, batch: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.linear(batch.x_bd).squeeze(1) - batch.y_b
        return error.square().mean(), {"error": error.detach().abs().mean()}


def batch(scale: float = 1.0) -> Pair:
    torch.manual_seed(3)
    return Pair(torch.randn(8, 3), scale * torch.randn(8))


def test_equals_a_plain_loop_bit_for_bit() -> None:
    torch.manual_seed(0)
    ours, plain = Line(), Line()
    plain.load_state_dict(ours.state_dict())
    step = TrainStep(ours, ours.loss, learning_rate=1e-2, weight_decay=0.1, grad_clip=0.5)
    optimizer = torch.optim.AdamW(plain.linear.parameters(), 1e-2, weight_decay=0.1, fused=True)
    for _ in range(5):
        metrics = step(batch())
        loss, _ = plain.loss(batch())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.linear.parameters(), 0.5)
        optimizer.step()
        assert metrics["loss"].equal(loss.detach())
        assert metrics["grad_norm"].equal(norm)
    assert ours.linear.weight.equal(plain.linear.weight)
    assert ours.frozen.equal(torch.ones(2))


def test_the_gradient_is_clipped() -> None:
    module = Line()
    step = TrainStep(module, module.loss, learning_rate=0.0, grad_clip=0.25)
    metrics = step(batch(scale=100.0))
    gradients = torch.cat(
        [p.grad.flatten() for p in module.linear.parameters() if p.grad is not None]
    )
    assert metrics["grad_norm"] > 0.25  # as it was before
    assert gradients.norm().item() == pytest.approx(0.25, rel=1e-4)


def test_the_learning_rate_can_change_and_after_runs_after_the_optimiser() -> None:
    module = Line()
    seen = []
    step = TrainStep(
        module,
        module.loss,
        learning_rate=0.1,
        grad_clip=1.0,
        after=lambda: seen.append(module.linear.weight.detach().clone()),
    )
    start = module.linear.weight.detach().clone()
    step(batch())
    assert not seen[0].equal(start)
    assert seen[0].equal(module.linear.weight)
    step.set_learning_rate(0.0)
    step(batch())
    assert seen[1].equal(seen[0])


def test_beside_runs_one_call_beside_the_caller_and_hands_over_what_came_of_it() -> None:
    beside = Beside(torch.device("cpu"))
    assert beside.wait() is None
    gate = threading.Event()
    beside.start(lambda: gate.wait(10) and threading.get_ident())
    gate.set()  # only a second thread can have been waiting for this
    assert beside.wait() not in (None, False, threading.get_ident())
    assert beside.wait() is None

    def fail() -> None:
        raise RuntimeError("out of memory")

    beside.start(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        beside.wait()


def test_graphed_runs_plainly_on_a_cpu() -> None:
    calls = []
    graphed = Graphed(lambda x: calls.append(x) or x + 1, torch.device("cpu"))
    assert graphed(torch.tensor([1.0])).tolist() == [2.0]
    assert len(calls) == 1


@pytest.mark.gpu
def test_a_captured_step_equals_plain_steps() -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    ours, plain = Line().to(device), Line().to(device)
    plain.load_state_dict(ours.state_dict())
    step = TrainStep(ours, ours.loss, learning_rate=1e-2, grad_clip=0.5)
    optimizer = torch.optim.AdamW(plain.linear.parameters(), 1e-2, weight_decay=0.0, fused=True)
    data = Pair(*(tensor.to(device) for tensor in batch()))
    for _ in range(8):  # three plain calls, the capture, then replays
        metrics = step(data)
        loss, _ = plain.loss(data)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.linear.parameters(), 0.5)
        optimizer.step()
        torch.testing.assert_close(metrics["loss"], loss.detach())
    torch.testing.assert_close(ours.linear.weight, plain.linear.weight)
