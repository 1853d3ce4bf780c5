"""Attention whose queries are modulated by FiLM (Perez et al. 2018), for frames of tokens.

    o = softmax(((1 + gamma) q + beta) k^T scale) v

Shapes: q (B, N, Lq, D), k and v (B, N, Lk, D), gamma and beta (B, N, D) or None (0) -> o like q.
Dtypes: float32, bfloat16, float16 or float64, the same for q, k and v; o has it too. FiLM is
computed in float32 at least.

Queries are the LAST Lq of the Lk positions: query i stands at position Lk - Lq + i. With
``frame_causal=F`` position p belongs to frame p // F and sees its own and earlier frames only, so a
query of frame f sees the keys [0, (f + 1) F). What it saves: frames are handled one after another,
each with its prefix of the keys, so that no mask is ever in memory and nothing masked is computed;
for four frames that is 37.5 % of the work.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from wmfast.kernels.dispatch import Body, choose_body

_BODIES: tuple[Body, ...] = ("torch",)
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
    earlier frames only; ``scale``: 1 / sqrt(D) unless given. Autocast leaves the dtypes alone.
    Raises ValueError for shapes that don't fit and TypeError for dtypes that don't.
    """
    _check(q, k, v, gamma, beta, frame_causal)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    frame = k.shape[2] if frame_causal is None else frame_causal
    out: Tensor = torch.ops.wmfast.film_attention(q, k, v, gamma, beta, frame, scale)
    return out


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
    for name, film in (("gamma", gamma), ("beta", beta)):
        if film is not None and film.shape != (q.shape[0], q.shape[1], q.shape[3]):
            raise ValueError(
                f"{name} has shape {tuple(film.shape)}: allowed is (B, N, D) = "
                f"{(q.shape[0], q.shape[1], q.shape[3])}"
            )
    if frame is not None and frame < 1:
        raise ValueError(f"frame_causal = {frame}: allowed is None or at least 1")


def _film_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> Tensor:
    choose_body("film_attention", q.device, _BODIES)
    with torch.autocast(q.device.type, enabled=False):
        q = _film(q, gamma, beta)
        length, first = k.shape[2], k.shape[2] - q.shape[2]
        outs = []
        start = first
        while start < length:  # the queries of each frame against the keys up to its end
            end = min((start // frame + 1) * frame, length)
            q_frame = q[:, :, start - first : end - first]
            keys, values = k[:, :, :end], v[:, :, :end]
            outs.append(F.scaled_dot_product_attention(q_frame, keys, values, scale=scale))
            start = end
        return torch.cat(outs, 2)


def _film(q: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    if gamma is None and beta is None:
        return q
    filmed = q.to(torch.promote_types(q.dtype, torch.float32))
    if gamma is not None:
        filmed = filmed * (1 + gamma.unsqueeze(2))
    if beta is not None:
        filmed = filmed + beta.unsqueeze(2)
    return filmed.to(q.dtype)


torch.library.define(
    "wmfast::film_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? gamma, Tensor? beta, int frame, float scale) -> Tensor",
)
# Made of differentiable operations: autograd, fake tensors and the compiler look through it.
torch.library.impl("wmfast::film_attention", "CompositeImplicitAutograd", _film_attention_torch)
