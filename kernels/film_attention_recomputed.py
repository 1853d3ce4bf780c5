"""FiLM attention inside the op on a GPU that has no Triton body for it: slices, recomputed.

For GPUs before Ampere, heads wider than Triton's and float64, where a compiled program calls the op
as one node. Eager calls take ``film_attention_torch.slices`` and its autograd themselves. The
backward forgets what the forward knew and asks autograd again.

Shapes as in ``film_attention``; ``frame`` is a plain number (Lk or more: no frames).
"""

from __future__ import annotations

import torch
from torch import Tensor
from wmfast.kernels import film_attention_torch
from wmfast.kernels.film_attention_torch import chunks, like_rows, slices, unseen


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The answer (B, N, Lq, D) and the natural log-sum-exp of the scores (B, N, Lq)."""
    o = like_rows(q).copy_(slices(q, k, v, gamma, beta, frame, scale))
    filmed = film_attention_torch.film(q, gamma, beta)
    wide = torch.promote_types(q.dtype, torch.float32)
    lse = q.new_empty(q.shape[:3], dtype=wide)
    for start, stop, keys in chunks(q.shape[2], k.shape[2], frame):
        score = filmed[:, :, start:stop].to(wide) @ k[:, :, :keys].to(wide).mT * scale
        mask = unseen(start, stop, keys, q, k, frame)
        lse[:, :, start:stop] = (score if mask is None else score + mask).logsumexp(-1)
    return o, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, and of gamma and beta stacked, float32 at least (2, B, N, D)."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    gamma, beta = (None if x is None else x.detach().requires_grad_() for x in (gamma, beta))
    given = [x for x in (q, k, v, gamma, beta) if x is not None]
    with torch.enable_grad():
        o = slices(q, k, v, gamma, beta, frame, scale)
        gradients = torch.autograd.grad(o, given, do)
    dq, dk, dv = (like_rows(g).copy_(g) for g in gradients[:3])
    dfilm = film_attention_torch.no_film_gradient(q)
    if gamma is None and beta is None:
        return dq, dk, dv, dfilm
    film = iter(gradients[3:])
    both = [torch.zeros_like(q[:, :, 0]) if x is None else next(film) for x in (gamma, beta)]
    return dq, dk, dv, torch.stack([x.to(dfilm.dtype) for x in both])
