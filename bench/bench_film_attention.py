"""FiLM attention speed, with frames and without, beside the ways of writing it in torch.

    pytest bench/bench_film_attention.py                       # on a GPU where there is one
    pytest bench/bench_film_attention.py --benchmark-disable   # answers only, as CI runs it
    WMFAST_BENCH_COMPILE=1 pytest bench/bench_film_attention.py     # a CPU's compiled rivals too

Every rival must agree with ``film_attention_reference``, in its gradients too, before it is timed.
Shape: four frames of 336 tokens, 4 heads of 64, batch 32 on a GPU and 8 on a CPU (1 where nothing
is timed).

torch.compile and FlexAttention run on a GPU. On a CPU they wait for WMFAST_BENCH_COMPILE: they need
a C++ compiler and their time, and FlexAttention has no backward there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from wmfast.kernels import film_attention, film_attention_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILE = DEVICE == "cuda" or os.environ.get("WMFAST_BENCH_COMPILE") == "1"
BATCH, HEADS, FRAMES, TOKENS, WIDTH = 32 if DEVICE == "cuda" else 8, 4, 4, 336, 64
LENGTH = FRAMES * TOKENS

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def film(q: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return (1 + gamma.unsqueeze(2)) * q + beta.unsqueeze(2)


def eager(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(film(q, gamma, beta), k, v)


def dense_mask(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    frame = torch.arange(LENGTH, device=q.device) // TOKENS
    seen = frame[:, None] >= frame[None, :]
    return F.scaled_dot_product_attention(film(q, gamma, beta), k, v, attn_mask=seen)


def four_slices(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    q = film(q, gamma, beta)
    ends = range(TOKENS, LENGTH + 1, TOKENS)
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q[:, :, end - TOKENS : end], k[:, :, :end], v[:, :, :end]
            )
            for end in ends
        ],
        2,
    )


def flex() -> Attend:
    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // TOKENS >= key // TOKENS

    block_mask = create_block_mask(seen, None, None, LENGTH, LENGTH, device=DEVICE)

    def attend(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        out = flex_attention(film(q, gamma, beta), k, v, block_mask=block_mask)
        assert isinstance(out, Tensor)
        return out

    return torch.compile(attend)


def rivals(mask: str) -> dict[str, Callable[[], Attend]]:
    """Name -> maker, so that nothing is compiled before its turn."""
    frame_causal = TOKENS if mask == "frames" else None

    def kernel(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return film_attention(q, k, v, gamma, beta, frame_causal=frame_causal)

    def reference(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return film_attention_reference(q, k, v, gamma, beta, frame_causal=frame_causal)

    plain = eager if mask == "full" else dense_mask
    makers: dict[str, Callable[[], Attend]] = {
        "film_attention": lambda: kernel,
        "reference": lambda: reference,
        plain.__name__: lambda: plain,
    }
    if mask == "frames":
        makers["four_slices"] = lambda: four_slices
    if COMPILE:
        makers["torch_compile"] = lambda: torch.compile(plain)
        if mask == "frames":
            makers["flex_attention"] = flex
    return makers


CASES = [(mask, rival) for mask in ("frames", "full") for rival in rivals(mask)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(("mask", "rival"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward_backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_film_attention(
    benchmark: Any, mask: str, rival: str, backward: bool, dtype: torch.dtype
) -> None:
    if rival == "flex_attention" and backward and DEVICE == "cpu":
        pytest.xfail("FlexAttention has no backward on a CPU")
    generator = torch.Generator().manual_seed(0)
    batch = 1 if benchmark.disabled else BATCH
    fused = torch.randn(batch, LENGTH, 3, HEADS, WIDTH, generator=generator).to(DEVICE, dtype)
    vectors = torch.randn(2, batch, HEADS, WIDTH, generator=generator).to(DEVICE, dtype)
    inputs = [*fused.permute(2, 0, 3, 1, 4), *vectors]
    leaves = [tensor.detach().requires_grad_(backward) for tensor in inputs]
    attend = rivals(mask)[rival]()
    gradient = torch.randn(batch, LENGTH, HEADS, WIDTH, generator=generator)
    gradient = gradient.to(DEVICE, dtype).transpose(1, 2)

    def call() -> list[Tensor]:
        out = attend(*leaves)
        results = [out, *torch.autograd.grad(out, leaves, gradient)] if backward else [out]
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return results

    one = [tensor[:1].detach().float().requires_grad_(backward) for tensor in inputs]
    truth = [rivals(mask)["reference"]()(*one)]
    if backward:
        truth += torch.autograd.grad(truth[0], one, gradient[:1].float())
    for got, want in zip(call(), truth, strict=True):
        error = (got[:1].float() - want).norm() / want.norm()
        assert error < (1e-4 if dtype == torch.float32 else 2e-2)

    way = "forward + backward" if backward else "forward"
    benchmark.group = f"FiLM attention, {mask}, 4 x 336 tokens, {way}, {dtype} on {DEVICE}"
    benchmark.extra_info.update(torch=torch.__version__, batch=batch, heads=HEADS, width=WIDTH)
    benchmark(call)
