"""A training step, in one place: autocast, backward, clip, optimise, and CUDA-graph capture.

On a GPU a call is replayed as one CUDA graph, so that launch overhead and Python vanish; on a CPU
the same functions run plainly. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from wmfast.types import Metrics

Loss = Callable[..., tuple[Tensor, Metrics]]
_EAGER_CALLS = 3  # cuBLAS workspaces, autotuned convolutions and lazy state settle before capture


class Graphed:
    """``fn(*tensors)`` as a CUDA graph after a few plain calls; plain calls on a CPU.

    ``fn`` must be free of host syncs and of control flow that depends on tensor values. One graph
    is kept for each tuple of input shapes. The tensors returned by a replay belong to the graph:
    the next call with the same shapes overwrites them.
    """

    def __init__(self, fn: Callable[..., Any], device: torch.device) -> None:
        self._fn = fn
        self._device = device
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], tuple[Any, tuple[Tensor, ...], Any]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        if self._device.type != "cuda":
            return self._fn(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if self._calls[shapes] <= _EAGER_CALLS:
                return self._eager(inputs)
            self._graphs[shapes] = self._capture(inputs)
        graph, static_inputs, outputs = self._graphs[shapes]
        for static, tensor in zip(static_inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        graph.replay()
        return outputs

    def _eager(self, inputs: tuple[Tensor, ...]) -> Any:
        # A side stream, as capture wants it: gradients and optimiser state are made off the
        # default stream.
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            outputs = self._fn(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...], Any]:
        static_inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._fn(*static_inputs)
        return graph, static_inputs, outputs


class Beside:
    """One call at a time on a second thread, beside what the caller goes on with.

    On a CPU small networks gain little from a second core inside an operation, and lose everything
    when another program holds that core (each parallel region waits for it); two networks side by
    side use both cores. On a GPU the call is made at once: there is one stream to share.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = ThreadPoolExecutor(1) if device.type == "cpu" else None
        self._pending: Future[Any] | None = None

    def start(self, fn: Callable[[], Any]) -> None:
        """Begin ``fn()``. The call before must have been waited for."""
        assert self._pending is None
        if self._pool is not None:
            self._pending = self._pool.submit(fn)
        else:
            self._pending = Future()
            self._pending.set_result(fn())

    def wait(self) -> Any:
        """What the call under way returned (or raised); None without one."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()


class TrainStep:
    """``step(*batch)``: one AdamW update of ``module`` on ``loss(batch)``; returns its metrics.

    Args:
        module: what is trained; parameters with ``requires_grad=False`` are left alone.
        loss: takes the batch (a NamedTuple of tensors, or one tensor) to ``(loss, metrics)``.
        learning_rate, weight_decay, epsilon: AdamW (Loshchilov & Hutter 2019).
        decay_vectors: let parameters of one axis (biases, gains) decay too.
        grad_clip: largest L2 norm of the whole gradient.
        autocast: run the loss under bfloat16 autocast.
        after: called after the optimiser within the step (a target network's soft update).
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        epsilon: float = 1e-8,
        decay_vectors: bool = True,
        grad_clip: float,
        autocast: bool = False,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        device = self._parameters[0].device
        self._loss = loss
        self._grad_clip = grad_clip
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=autocast)
        self._after = after
        self._batch_type: Callable[..., Any] = lambda tensor: tensor
        # A tensor learning rate can change between replays of a captured graph.
        cuda = device.type == "cuda"
        groups: list[dict[str, Any]] = [{"params": self._parameters}]
        if weight_decay and not decay_vectors:
            groups = [{"params": [p for p in self._parameters if p.dim() > 1]}]
            vectors = [p for p in self._parameters if p.dim() <= 1]
            groups.append({"params": vectors, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=torch.tensor(learning_rate, device=device) if cuda else learning_rate,
            eps=epsilon,
            weight_decay=weight_decay,
            fused=True,
            capturable=cuda,
        )
        self._run = Graphed(self._update, device)

    def __call__(self, batch: Any) -> Metrics:
        """Update once. ``batch`` is a tensor or a NamedTuple of tensors on the module's device."""
        if isinstance(batch, Tensor):
            metrics: Metrics = self._run(batch)
        else:
            self._batch_type = type(batch)
            metrics = self._run(*batch)
        return metrics

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the rate of the next update, also inside a captured graph."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    def forget(self) -> None:
        """Zero the optimiser's moments and counts in place, also for a captured graph."""
        for entries in self.optimizer.state.values():
            for value in entries.values():
                value.zero_()

    def _update(self, *tensors: Tensor) -> Metrics:
        with self._autocast:
            loss, metrics = self._loss(self._batch_type(*tensors))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._grad_clip, foreach=True)
        self.optimizer.step()
        if self._after is not None:
            self._after()
        return {**metrics, "loss": loss.detach(), "grad_norm": norm.detach()}
