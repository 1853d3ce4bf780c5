"""The ops of ``wmfast.kernels`` in the GPU report, beside their rivals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from code_searches import PLAIN, expanded
from report_answers import (
    TOKENS,
    WIDTH,
    attention,
    codes,
    film_attention_correctness,
    nearest_code_correctness,
    replayed,
)
from report_clock import Clock, Row, compare
from torch import Tensor
from wmfast.kernels import (
    code_sums,
    code_sums_reference,
    film_attention,
    nearest_code,
)


def code_sums_both(clock: Clock) -> list[Row]:
    """Right, the same bits every time, and how fast beside ``index_add_``."""
    n, k, d = (64, 16, 8) if clock.dry else (10752, 512, 256)
    x, codebook = codes(clock, n, k, d)
    index = nearest_code(x, codebook)
    count, total = code_sums(x, index, k)
    exact_count, exact_total = code_sums_reference(x, index, k)
    error = float((total - exact_total).abs().max() / exact_total.abs().max())
    fine = torch.equal(count, exact_count.float()) and error < 1e-5
    same = all(torch.equal(code_sums(x, index, k)[1], total) for _ in range(5))
    name = f"{n} x {k} x {d}"

    def atomics() -> Tensor:
        return torch.zeros_like(codebook).index_add_(0, index, x)

    rows = [
        clock.row(name, "wmfast", lambda: lambda: code_sums(x, index, k)),
        clock.row(name, "index_add_", lambda: atomics, rival=True),
    ]
    captured = replayed(
        clock,
        "code_sums",
        lambda: code_sums(x, index, k)[1],
        lambda: x.copy_(x.flip(0)),
        lambda total: torch.equal(total, code_sums(x, index, k)[1]),
    )
    words = f"relative error {error:.1e}, {'the same' if same else 'OTHER'} bits in six calls"
    verdict = {"result" if fine and same else "error": words}
    return [{"name": f"{name}: correctness", **verdict}, captured, *compare(rows)]


def nearest_code_speed(clock: Clock) -> list[Row]:
    """Beside torch and the libraries, of which flash-kmeans and the compiler need not be exact."""
    rows = []
    shapes = [(336, 512, 256), (2688, 512, 256), (43008, 512, 256), (43008, 512, 48)]
    for n, k, d in [(64, 32, 48)] if clock.dry else shapes:
        for dtype in (torch.float32, torch.bfloat16):
            x, codebook = (t.to(dtype) for t in codes(clock, n, k, d))
            name = f"{n} x {k} x {d} {dtype}"
            group = [clock.row(name, "wmfast", lambda x=x, c=codebook: lambda: nearest_code(x, c))]
            for prepare in PLAIN:
                make = lambda p=prepare, x=x, c=codebook: partial(p(c), x)  # noqa: E731
                group.append(clock.row(name, prepare.__name__, make, rival=True))
            for way, prepare, graph in (
                ("torch.compile", lambda x, c: partial(clock.compile(expanded(c)), x), True),
                ("flash-kmeans", _flash_kmeans, True),
                # It reads a flag on the host in every call, which no capture allows.
                ("vector-quantize-pytorch, no graph", _vector_quantize, False),
            ):
                make = lambda p=prepare, x=x, c=codebook: p(x, c)  # noqa: E731
                group.append(clock.row(name, way, make, rival=True, graph=graph))
            rows += compare(group)
    return rows


def _flash_kmeans(x: Tensor, codebook: Tensor) -> Callable[[], object]:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    square = x.float().square().sum(1)[None]
    return lambda: euclid_assign_triton(x[None], codebook[None], square)


def _vector_quantize(x: Tensor, codebook: Tensor) -> Callable[[], object]:
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(dim=x.shape[1], codebook_size=len(codebook)).to(x.device).eval()
    layer._codebook.embed.data.copy_(codebook[None])
    x_float = x.float()[None]
    return lambda: layer(x_float)


def _attention_rivals(
    clock: Clock, frame: int | None
) -> Iterator[tuple[str, Callable[..., Callable[..., Tensor]]]]:
    """(way, make): ``make(length)`` gives a function of q, k, v, gamma, beta."""

    def film(q: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return (1 + gamma.unsqueeze(2)) * q + beta.unsqueeze(2)

    def slices(length: int) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            q, step = film(q, gamma, beta), frame or length
            ends = range(step, length + step, step)
            parts = [(q[:, :, e - step : e], k[:, :, :e], v[:, :, :e]) for e in ends]
            return torch.cat([F.scaled_dot_product_attention(*p) for p in parts], 2)

        return attend

    def dense(context: Callable[[], AbstractContextManager[Any]]) -> Callable[..., Any]:
        def make(length: int) -> Callable[..., Tensor]:
            mask = None
            if frame is not None:
                of = torch.arange(length, device=clock.device) // frame
                mask = of[:, None] >= of[None, :]

            def attend(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
                with context():
                    return F.scaled_dot_product_attention(film(q, gamma, beta), k, v, mask)

            return attend

        return make

    def flex(length: int) -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        step = frame or length
        block = create_block_mask(
            lambda b, h, q, k: q // step >= k // step, None, None, length, length,
            device=clock.device.type,
        )  # fmt: skip
        attend = clock.compile(flex_attention)
        return lambda q, k, v, gamma, beta: attend(film(q, gamma, beta), k, v, block_mask=block)

    yield "SDPA a frame", slices
    yield "torch.compile, SDPA a frame", lambda length: clock.compile(slices(length))
    yield "FlexAttention, block mask", flex
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        yield f"SDPA {backend}", dense(lambda b=backend: sdpa_kernel(getattr(SDPBackend, b)))


def film_attention_speed(clock: Clock) -> list[Row]:
    """Forward, and forward with backward; full and frame-causal."""
    rows = []
    frames, tokens = (2, 8) if clock.dry else (4, TOKENS)
    length = frames * tokens
    for batch, frame, backward in itertools.product(
        (1,) if clock.dry else (1, 32), (None, tokens), (False, True)
    ):
        inputs = attention(clock, batch, length, length, WIDTH, torch.bfloat16)
        inputs = tuple(tensor.requires_grad_(backward) for tensor in inputs)
        way = "forward + backward" if backward else "forward"
        name = f"B {batch} L {length} {'full' if frame is None else 'frame-causal'} {way}"

        def timed(attend: Callable[..., Tensor], inputs=inputs, backward=backward) -> Any:
            if not backward:
                return lambda: attend(*inputs)
            out = torch.zeros_like(inputs[0])
            return lambda: torch.autograd.grad(attend(*inputs), inputs, out)

        own = lambda frame=frame: timed(  # noqa: E731
            lambda *tensors: film_attention(*tensors, frame_causal=frame)
        )
        group = [clock.row(name, "wmfast", own)]
        for rival, make in _attention_rivals(clock, frame):
            group.append(
                clock.row(name, rival, lambda make=make, t=timed: t(make(length)), rival=True)
            )
        rows += compare(group)
    return rows


SECTIONS = {
    "nearest_code: correctness": nearest_code_correctness,
    "film_attention: correctness": film_attention_correctness,
    "code_sums": code_sums_both,
    "nearest_code: speed": nearest_code_speed,
    "film_attention: speed": film_attention_speed,
}
