"""Every op in a CUDA graph: captured without a host sync, replayed for values that are new then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from wmfast.kernels import (
    code_sums,
    code_sums_reference,
    film_attention,
    film_attention_reference,
    nearest_code,
    nearest_code_reference,
)

pytestmark = pytest.mark.gpu
Call = Callable[..., Sequence[Tensor]]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda")


def replayed(call: Call, inputs: Sequence[Tensor], fresh: Sequence[Tensor]) -> list[Tensor]:
    """What a graph captured for ``inputs`` gives once ``fresh`` has been copied into them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles
        call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            outputs = call(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        for tensor, values in zip(inputs, fresh, strict=True):
            tensor.copy_(values)
    graph.replay()
    first = [output.clone() for output in outputs]
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(first, outputs, strict=True))
    return first


@pytest.mark.parametrize(("n", "d"), [(336, 256), (43008, 48), (300, 1500)])
def test_nearest_code(n: int, d: int) -> None:
    fresh = normal(n, d), normal(512, d)
    (index,) = replayed(lambda x, c: [nearest_code(x, c)], (normal(n, d), normal(512, d)), fresh)
    parts = [nearest_code_reference(part, fresh[1]) for part in fresh[0].split(1024)]
    assert torch.equal(index, torch.cat(parts))


def test_code_sums() -> None:
    x, index = normal(10752, 256), torch.randint(512, (10752,), device="cuda")
    fresh = x.flip(0), (index + 1) % 512
    count, total = replayed(lambda x, i: code_sums(x, i, 512), (x, index), fresh)
    exact_count, exact_total = code_sums_reference(*fresh, 512)
    assert torch.equal(count, exact_count.float())
    torch.testing.assert_close(total, exact_total.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("frame", "width"), [(None, 64), (336, 64), (50, 40), (50, 160)])
def test_film_attention_and_its_gradients(frame: int | None, width: int) -> None:
    def draw() -> list[Tensor]:
        shapes = [(2, 4, 336, width), *2 * [(2, 4, 1008, width)], *2 * [(2, 4, width)]]
        return [normal(*shape).requires_grad_() for shape in shapes]

    def train(attend: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
        out = attend(*tensors, frame_causal=frame)
        return [out.detach(), *torch.autograd.grad(out, tensors, torch.ones_like(out))]

    fresh = draw()
    got = replayed(lambda *tensors: train(film_attention, *tensors), draw(), fresh)
    exact = [tensor.detach().double().requires_grad_() for tensor in fresh]
    for mine, want in zip(got, train(film_attention_reference, *exact), strict=True):
        torch.testing.assert_close(mine.double(), want, rtol=1e-4, atol=1e-4)
