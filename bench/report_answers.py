"""The ops of ``wmfast.kernels`` in the GPU report: are their answers right on the device?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from report_clock import LEFT_OUT, Clock, Row
from torch import Tensor
from wmfast.kernels import (
    film_attention,
    film_attention_reference,
    nearest_code,
    nearest_code_reference,
)
from wmfast.kernels.tune import captured

TOKENS, HEADS, WIDTH = 336, 4, 64


def _truth(x: Tensor, codebook: Tensor) -> Tensor:
    part = max(1, (1 << 26) // codebook.numel())  # 512 MB of float64 differences
    return torch.cat([nearest_code_reference(p, codebook) for p in x.split(part)])


def codes(clock: Clock, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, codebook = (torch.randn(rows, d, generator=generator) for rows in (n, k))
    return x.to(clock.device), codebook.to(clock.device)


def nearest_code_correctness(clock: Clock) -> list[Row]:
    """Every row equal to the float64 argmin: sizes, dtypes, ties, NaN, infinity; and replayed."""
    sizes = [(1, 5, 1), (70, 33, 48), (300, 600, 300), (336, 512, 256), (9000, 512, 256)]
    sizes += [(200, 100, 1024), (5000, 8192, 64), (300, 50, 1500)]
    rows = []

    def check(name: str, x: Tensor, codebook: Tensor) -> None:
        if clock.late():
            rows.append({"name": name, **LEFT_OUT})
            return
        wrong = int((nearest_code(x, codebook) != _truth(x, codebook)).sum())
        verdict = {"error": f"{wrong} rows of {len(x)} are wrong"} if wrong else {"result": "exact"}
        rows.append({"name": name, **verdict})

    for n, k, d in [(min(n, 80), min(k, 40), d) if clock.dry else (n, k, d) for n, k, d in sizes]:
        x, codebook = codes(clock, n, k, d)
        # Each dtype and width is a kernel to compile: the 16-bit ones where the models use them.
        half = (torch.bfloat16, torch.float16) if d in (48, 256) else ()
        for dtype in (torch.float32, *half):
            check(f"normal {n} x {k} x {d} {dtype}", x.to(dtype), codebook.to(dtype))
        check(f"integers {n} x {k} x {d}", x.round(), codebook.round())
        check(f"duplicated codes {n} x {k} x {d}", x, codebook[: k // 2 + 1].repeat(2, 1))
        check(f"near ties {n} x {k} x {d}", codebook[:1] + 1e-7 * x, codebook[:1] + 1e-7 * codebook)
        check(f"far away {n} x {k} x {d}", 1e4 + x, 1e4 + codebook)
        x[0, 0], codebook[0, 0], codebook[-1, -1] = math.nan, math.nan, math.inf
        check(f"NaN and infinity {n} x {k} x {d}", x, codebook)
    x, codebook = codes(clock, 2000, 512, 256)
    rows.append(
        replayed(
            clock,
            "nearest_code",
            lambda: nearest_code(x, codebook),
            lambda: x.copy_(x.flip(0)) + codebook.mul_(0.9).sum(),
            lambda index: torch.equal(index, _truth(x, codebook)),
        )
    )
    return rows


def replayed(
    clock: Clock,
    name: str,
    call: Callable[[], Tensor],
    change: Callable[[], object],
    right: Callable[[Tensor], bool],
) -> Row:
    """A captured graph gives the answer for the values that its inputs have when it is replayed."""
    row: Row = {"name": f"{name}, captured"}
    if clock.late():
        return row | LEFT_OUT
    call()
    if clock.device.type != "cuda":
        return row | {"result": "not checked on a CPU"}
    answers: list[Tensor] = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = captured(lambda: answers.append(call()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    change()
    graph.replay()
    return row | ({"result": "right"} if right(answers[0]) else {"error": "stale or wrong"})


def attention(
    clock: Clock, b: int, lq: int, lk: int, d: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(b, HEADS, lq, d), *2 * [(b, HEADS, lk, d)], *2 * [(b, HEADS, d)]]
    return tuple(torch.randn(s, generator=generator).to(clock.device, dtype) for s in shapes)


def film_attention_correctness(clock: Clock) -> list[Row]:
    """Against float64, at most twice the error of plain torch in that dtype; frames; replayed."""
    rows = []
    sizes = [(2, 97, 97, 64, 40), (1, 336, 1344, 64, 336), (2, 130, 200, 32, None)]
    sizes += [(1, 1344, 1344, 64, 336), (1, 200, 200, 128, 50), (1, 100, 100, 16, None)]
    if clock.dry:
        sizes = [(1, 13, 20, 16, 6), (1, 20, 20, 16, None)]
    for (b, lq, lk, d, frame), dtype in itertools.product(
        sizes, (torch.float32, torch.bfloat16, torch.float16)
    ):
        name = f"B {b} Lq {lq} Lk {lk} D {d} frame {frame} {dtype}"
        if clock.late():
            rows.append({"name": name, **LEFT_OUT})
            continue
        inputs = attention(clock, b, lq, lk, d, dtype)
        exact = _values_and_gradients(film_attention_reference, inputs, frame, torch.float64)
        plain = _values_and_gradients(film_attention_reference, inputs, frame, dtype)
        ours = _values_and_gradients(film_attention, inputs, frame, dtype)
        ratios = []
        for truth, p, o in zip(exact, plain, ours, strict=True):
            rounding = torch.finfo(dtype).eps * truth.abs().max()  # of the result itself
            allowed = 2 * (p - truth).abs().max() + rounding
            ratios.append((o - truth).abs().max() / allowed)
        worst = float(torch.stack(ratios).max())  # NaN stays NaN here, not in Python's max
        verdict = {"result": f"{worst:.2f} of the allowed error"}
        if not worst <= 1:
            verdict = {"error": f"{worst:.2f} times the allowed error"}
        rows.append({"name": name, **verdict})
    return [*rows, *_frames_apart(clock), *_attention_replayed(clock), _attention_compiled(clock)]


def _frames_apart(clock: Clock) -> list[Row]:
    """What is not finite in the last frame leaves the earlier ones their bits."""
    frame = 24 if clock.dry else TOKENS
    if clock.late():
        return [{"name": "frames apart", **LEFT_OUT}]
    inputs = attention(clock, 1, 4 * frame, 4 * frame, WIDTH, torch.bfloat16)
    before = film_attention(*inputs, frame_causal=frame)
    rows = []
    for value, what in itertools.product((math.nan, math.inf), "kv"):
        spoilt = [tensor.clone() for tensor in inputs]
        spoilt["qkv".index(what)][:, :, 3 * frame + 5] = value
        after = film_attention(*spoilt, frame_causal=frame)
        fine = torch.equal(after[:, :, : 3 * frame], before[:, :, : 3 * frame])
        verdict = {"result": "same bits"} if fine else {"error": "earlier frames changed"}
        rows.append({"name": f"{value} in {what} of the last of 4 frames of {frame}", **verdict})
    return rows


def _attention_replayed(clock: Clock) -> list[Row]:
    """The forward alone, and with its backward."""
    inputs = tuple(t.requires_grad_() for t in attention(clock, 2, 50, 200, WIDTH, torch.float32))

    def forward() -> Tensor:
        with torch.no_grad():
            return film_attention(*inputs, frame_causal=50)

    def both() -> Tensor:
        out = film_attention(*inputs, frame_causal=50)
        gradients = torch.autograd.grad(out, inputs, torch.full_like(out, 0.5))
        return torch.cat([out.detach().flatten(), *(g.flatten() for g in gradients)])

    def change() -> None:
        with torch.no_grad():
            for tensor in inputs:
                tensor.copy_(tensor.flip(0))

    return [
        replayed(clock, name, call, change, lambda answer, call=call: torch.equal(answer, call()))
        for name, call in (
            ("film_attention", forward),
            ("film_attention, forward + backward", both),
        )
    ]


def _attention_compiled(clock: Clock) -> Row:
    """``torch.compile`` takes it whole, and changes neither its answer nor its gradients."""
    row: Row = {"name": "film_attention, compiled"}
    if clock.late():
        return row | LEFT_OUT
    inputs = attention(clock, 2, 50, 200, WIDTH, torch.float32)
    attend = clock.compile(film_attention, fullgraph=True)
    compiled = _values_and_gradients(attend, inputs, 50, torch.float32)
    eager = _values_and_gradients(film_attention, inputs, 50, torch.float32)
    pairs = zip(compiled, eager, strict=True)
    worst = float(torch.stack([(c - e).abs().max() / e.abs().max() for c, e in pairs]).max())
    return row | {"result" if worst < 1e-5 else "error": f"{worst:.1e} from eager, relative"}


def _values_and_gradients(
    attend: Callable[..., Tensor], inputs: tuple[Tensor, ...], frame: int | None, dtype: torch.dtype
) -> list[Tensor]:
    leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
    out = attend(*leaves, frame_causal=frame)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(dtype)
    out.backward(weight)
    return [out.detach().double(), *(t.grad.double() for t in leaves)]
