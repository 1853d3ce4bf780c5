"""Attention whose queries are modulated by FiLM (Perez et al. 2018), for frames of tokens.

    o = softmax(((1 + gamma) q + beta) k^T scale) v

Shapes: q (B, N, Lq, D), k and v (B, N, Lk, D), gamma and beta (B, N, D) or None (0) -> o like q.
Dtypes: float32, bfloat16, float16 or float64, the same for q, k and v; o has it too. FiLM is
computed in float32 at least.

Queries are the LAST Lq of the Lk positions: query i stands at position Lk - Lq + i. With
``frame_causal=F`` position p belongs to frame p // F and sees its own and earlier frames only, so a
query of frame f sees the keys [0, (f + 1) F). What it saves: keys that no query of a tile sees are
never read, so that no mask is ever in memory; for four frames that is 37.5 % of the work. The
forward does not write the modulated queries either. The backward recomputes the probabilities from
the log-sum-exp of each row (Dao et al. 2022) and adds nothing atomically.

On CUDA the bodies are ``film_attention_forward.py`` and ``film_attention_backward.py`` (Triton, D
up to 128), on a CPU ``film_attention_torch.py``; older GPUs, other devices, wider heads and
float64 on CUDA take its differentiable slices (``film_attention_recomputed.py`` inside a compiled
program). The choice is made when the op runs, never while a program is traced.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from wmfast.kernels import film_attention_recomputed, film_attention_torch, launch
from wmfast.kernels.dispatch import Body, choose_body

_BODIES: tuple[Body, ...] = ("triton", "torch")
_LARGEST_SCALE = 2e38  # times log2(e) it is still a float32
_TRITON_WIDTH = 128  # wider heads, and float64, go to torch on a GPU
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def film_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    frame_causal: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """The truth: the equation above with a dense mask, in the dtype of its inputs."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if gamma is not None:
        q = (1 + gamma.unsqueeze(2)) * q
    if beta is not None:
        q = q + beta.unsqueeze(2)
    score = q @ k.transpose(-2, -1) * scale  # (B, N, Lq, Lk)
    if frame_causal is not None:
        frame = torch.arange(k.shape[2], device=k.device) // frame_causal
        unseen = frame[None, :] > frame[-q.shape[2] :, None]
        score = score.masked_fill(unseen, -math.inf)
    return score.softmax(-1) @ v


def film_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    frame_causal: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention with FiLM queries, differentiable in q, k, v, gamma and beta.

    q (B, N, Lq, D), k and v (B, N, Lk, D) with 1 <= Lq <= Lk; gamma, beta (B, N, D) or None;
    returns (B, N, Lq, D). ``frame_causal``: tokens a frame, where a token may see its own and
    earlier frames only; ``scale``: 1 / sqrt(D) unless given, positive, up to 2e38. Autocast leaves
    the dtypes alone. A row whose scores are all -inf is 0. Equal inputs give equal bits, forward
    and backward; there are no second derivatives, and torch.func's transforms raise RuntimeError
    (torch.autograd is the way). Raises ValueError for shapes or numbers that don't fit and
    TypeError for dtypes and types that don't.
    """
    _check(q, k, v, gamma, beta, frame_causal)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if not isinstance(scale, (int, float)):
        raise TypeError(f"scale is a {type(scale).__name__}: allowed is None or a positive number")
    if not 0 < scale <= _LARGEST_SCALE:
        raise ValueError(
            f"scale = {scale}: allowed is None or a positive number up to {_LARGEST_SCALE}"
        )
    frame = k.shape[2] if frame_causal is None else min(frame_causal, k.shape[2])
    inputs = (q, k, v, gamma, beta, frame, scale)
    if torch.compiler.is_compiling() and q.device.type in ("cpu", "cuda", "meta"):
        # One node of the graph; which body it runs is decided when it runs.
        return cast(Tensor, torch.ops.wmfast.film_attention(*inputs)[0])
    if _body(q) == "triton" or q.device.type in ("cpu", "meta"):
        return cast(Tensor, _FilmAttention.apply(*inputs))  # type: ignore[no-untyped-call]
    return film_attention_torch.slices(*inputs)


def _body(q: Tensor) -> Body:
    fits = q.shape[3] <= _TRITON_WIDTH and q.dtype != torch.float64
    if q.device.type == "cuda":
        fits = fits and launch.supported(q.device)
    return choose_body("film_attention", q.device, _BODIES if fits else ("torch",))


def _check(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor | None, beta: Tensor | None, frame: int | None
) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or 0 in q.shape or 0 in k.shape:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}: allowed "
            "are (B, N, Lq, D), (B, N, Lk, D), (B, N, Lk, D), none of them empty"
        )
    fits = q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    if not fits or q.shape[2] > k.shape[2]:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}: B, N and D must be equal and "
            "Lq at most Lk"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        raise TypeError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: one floating dtype is allowed"
        )
    devices = {str(tensor.device) for tensor in (q, k, v, gamma, beta) if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"the tensors are on {', '.join(sorted(devices))}: one device is allowed")
    for name, film in (("gamma", gamma), ("beta", beta)):
        if film is not None and film.shape != (q.shape[0], q.shape[1], q.shape[3]):
            raise ValueError(
                f"{name} has shape {tuple(film.shape)}: allowed is (B, N, D) = "
                f"{(q.shape[0], q.shape[1], q.shape[3])}"
            )
        if film is not None and not film.is_floating_point():
            raise TypeError(f"{name} is {film.dtype}: a real floating dtype is allowed")
    if frame is not None and not isinstance(frame, int):
        raise TypeError(
            f"frame_causal = {frame}: allowed is None or an int, not a {type(frame).__name__}"
        )
    if frame is not None and frame < 1:
        raise ValueError(f"frame_causal = {frame}: allowed is None or at least 1")


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.frame, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
    q, k, v, gamma, beta, o, lse = ctx.saved_tensors
    dq, dk, dv, dfilm = torch.ops.wmfast.film_attention_backward(
        grad_outputs[0], q, k, v, gamma, beta, o, lse, ctx.frame, ctx.scale
    )
    dgamma = None if gamma is None else dfilm[0].to(gamma.dtype)
    dbeta = None if beta is None else dfilm[1].to(beta.dtype)
    return dq, dk, dv, dgamma, dbeta, None, None


class _FilmAttention(torch.autograd.Function):
    """The op with its gradient; half the overhead of the op's own registration below."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        o, lse = torch.ops.wmfast.film_attention(*inputs)
        _save(ctx, inputs, (o, lse))
        return cast(Tensor, o)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True: what follows would be silently constant
            raise RuntimeError("film_attention has no second derivative, create_graph asks for one")
        return _differentiate(ctx, *grad_outputs)


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return film_attention_torch.like_rows(q), q.new_empty(q.shape[:3], dtype=lse_dtype)


def _backward_fake(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    o: Tensor,
    lse: Tensor,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dfilm = film_attention_torch.no_film_gradient(q)
    if gamma is not None or beta is not None:
        dfilm = dfilm.new_empty((2, *dfilm.shape[1:]))
    like_rows = film_attention_torch.like_rows
    return like_rows(q), like_rows(k), like_rows(v), dfilm


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? gamma, Tensor? beta"
torch.library.define(
    "wmfast::film_attention", f"({_INPUTS}, SymInt frame, float scale) -> (Tensor, Tensor)"
)
torch.library.define(
    "wmfast::film_attention_backward",
    f"(Tensor do, {_INPUTS}, Tensor o, Tensor lse, SymInt frame, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


def _forward_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    _body(q)  # there is one only, but the switch may ask for what is not
    return film_attention_torch.forward(q, k, v, gamma, beta, frame, scale)


def _forward_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    if _body(q) == "torch":
        return film_attention_recomputed.forward(q, k, v, gamma, beta, frame, scale)
    from wmfast.kernels.film_attention_forward import forward  # triton is optional

    return forward(q, k, v, gamma, beta, frame, scale)


def _backward_cuda(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    o: Tensor,
    lse: Tensor,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if _body(q) == "torch":
        return film_attention_recomputed.backward(do, q, k, v, gamma, beta, frame, scale)
    from wmfast.kernels.film_attention_backward import backward

    return backward(do, q, k, v, gamma, beta, o, lse, frame, scale)


torch.library.impl("wmfast::film_attention", "CUDA", _forward_cuda)
torch.library.impl("wmfast::film_attention_backward", "CUDA", _backward_cuda)
torch.library.impl("wmfast::film_attention", "CPU", _forward_cpu)
torch.library.impl("wmfast::film_attention_backward", "CPU", film_attention_torch.backward)
torch.library.register_fake("wmfast::film_attention", _forward_fake)
torch.library.register_fake("wmfast::film_attention_backward", _backward_fake)
torch.library.register_autograd("wmfast::film_attention", _differentiate, setup_context=_save)
