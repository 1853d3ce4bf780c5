"""FiLM attention speed: frame-causal by prefixes of the keys beside a dense mask.

    pytest bench/bench_film_attention.py                       # on a GPU where there is one
    pytest bench/bench_film_attention.py --benchmark-disable   # answers only, as CI runs it

Every rival must agree with ``film_attention_reference`` before it is timed. Shape: four frames of
336 tokens, 4 heads of 64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wmfast.kernels import film_attention, film_attention_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, HEADS, FRAMES, TOKENS, WIDTH = 1, 4, 4, 336, 64


def kernel(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return film_attention(q, k, v, gamma, beta, frame_causal=TOKENS)


def dense_mask(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    frame = torch.arange(q.shape[2], device=q.device) // TOKENS
    filmed = (1 + gamma.unsqueeze(2)) * q + beta.unsqueeze(2)
    seen = frame[:, None] >= frame[None, :]
    return F.scaled_dot_product_attention(filmed, k, v, attn_mask=seen)


def reference(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return film_attention_reference(q, k, v, gamma, beta, frame_causal=TOKENS)


RIVALS: dict[str, Callable[..., Tensor]] = {
    "film_attention": kernel,
    "dense_mask": dense_mask,
    "reference": reference,
}


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward_backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_film_attention(benchmark: Any, rival: str, backward: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = 3 * [(BATCH, HEADS, FRAMES * TOKENS, WIDTH)] + 2 * [(BATCH, HEADS, WIDTH)]
    inputs = [
        torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_(backward)
        for shape in shapes
    ]
    attend = RIVALS[rival]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    with torch.no_grad():
        truth = reference(*(tensor.float() for tensor in inputs))
        torch.testing.assert_close(attend(*inputs).float(), truth, rtol=tolerance, atol=tolerance)

    def call() -> None:
        out = attend(*inputs)
        if backward:
            torch.autograd.grad(out.sum(), inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    way = "forward + backward" if backward else "forward"
    benchmark.group = f"FiLM attention, 4 x 336 tokens, {way}, {dtype} on {DEVICE}"
    benchmark.extra_info["torch"] = torch.__version__
    benchmark(call)
