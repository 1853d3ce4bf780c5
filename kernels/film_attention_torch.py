"""FiLM attention without Triton: frame after frame, each against its own prefix of the keys.

``slices`` is the differentiable way, for any device and dtype. On a CPU ``forward`` and
``backward`` do the same with the log-sum-exp kept between them: the forward copies nothing twice,
and the backward adds the gradients of the keys in place, where autograd would pad each frame's part
with zeros to the full length.

Shapes as in ``film_attention``; ``frame`` is a plain number (Lk or more: no frames).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 256  # shorter frames share a call: 64 of 16 tokens 487 -> 50 ms, B 8, 4 heads of 64


def film(q: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """(1 + gamma) q + beta, computed in float32 at least and rounded once to q's dtype."""
    if gamma is None and beta is None:
        return q
    wide = torch.promote_types(q.dtype, torch.float32)
    filmed = q.to(wide)
    factor = None if gamma is None else 1 + gamma.to(wide).unsqueeze(2)
    shift = None if beta is None else beta.to(wide).unsqueeze(2)
    if factor is not None and shift is not None:
        filmed = torch.addcmul(shift, filmed, factor)
    elif factor is not None:
        filmed = filmed * factor
    elif shift is not None:
        filmed = filmed + shift
    return filmed.to(q.dtype)


def chunks(q_len: int, k_len: int, frame: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, keys): query rows [start, stop) see at most the first ``keys`` keys.

    A chunk is one frame, or several where they are short.
    """
    first = k_len - q_len
    chunk = -(-_ROWS // frame) * frame
    start = 0
    while start < q_len:
        keys = min(((first + start) // chunk + 1) * chunk, k_len)
        yield start, keys - first, keys
        start = keys - first


def unseen(start: int, stop: int, keys: int, q: Tensor, k: Tensor, frame: int) -> Tensor | None:
    """(stop - start, keys), 0 where a row sees a key and -inf elsewhere; None if all see all."""
    first = k.shape[2] - q.shape[2] + start
    if keys <= (first // frame + 1) * frame:
        return None
    frames = torch.arange(keys, device=q.device).div(frame, rounding_mode="floor")
    later = frames[None, :] > frames[first:, None]
    zero = torch.zeros(stop - start, keys, dtype=q.dtype, device=q.device)
    return zero.masked_fill_(later, -math.inf)


def slices(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> Tensor:
    """The answer (B, N, Lq, D), differentiable by autograd."""
    with torch.autocast(q.device.type, enabled=False):
        q = film(q, gamma, beta)
        return torch.cat(
            [
                F.scaled_dot_product_attention(
                    q[:, :, start:stop],
                    k[:, :, :keys],
                    v[:, :, :keys],
                    attn_mask=unseen(start, stop, keys, q, k, frame),
                    scale=scale,
                )
                for start, stop, keys in chunks(q.shape[2], k.shape[2], frame)
            ],
            2,
        )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """On a CPU: the answer (B, N, Lq, D) and the natural log-sum-exp of the scores (B, N, Lq)."""
    q, k, v = (_dense_rows(x) for x in (film(q, gamma, beta), k, v))
    o = like_rows(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for start, stop, keys in chunks(q.shape[2], k.shape[2], frame):
        o[:, :, start:stop], lse[:, :, start:stop] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, start:stop],
                k[:, :, :keys],
                v[:, :, :keys],
                attn_mask=unseen(start, stop, keys, q, k, frame),
                scale=scale,
            )
        )
    return o, lse


def backward(
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
    """On a CPU: the gradients of q, k, v, and of gamma and beta stacked, float32 (2, B, N, D)."""
    filmed, k, v, do = (_dense_rows(x) for x in (film(q, gamma, beta), k, v, do))
    dq, dk, dv = like_rows(q), k.new_empty(0), v.new_empty(0)
    # The last chunk reads all keys, so its gradients are the buffers that the others add to.
    for start, stop, keys in reversed(list(chunks(q.shape[2], k.shape[2], frame))):
        dq[:, :, start:stop], dk_part, dv_part = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                do[:, :, start:stop],
                filmed[:, :, start:stop],
                k[:, :, :keys],
                v[:, :, :keys],
                o[:, :, start:stop],
                lse[:, :, start:stop],
                0.0,
                False,
                attn_mask=unseen(start, stop, keys, q, k, frame),
                scale=scale,
            )
        )
        if keys == k.shape[2]:
            dk, dv = dk_part, dv_part
        else:
            dk[:, :, :keys] += dk_part
            dv[:, :, :keys] += dv_part
    if gamma is None and beta is None:
        return dq, dk, dv, no_film_gradient(q)
    wide = torch.promote_types(q.dtype, torch.float32)
    dq_wide = dq.to(wide)
    dfilm = torch.stack([(dq_wide * q).sum(2), dq_wide.sum(2)])
    if gamma is not None:
        dq = dq_wide.mul_(1 + gamma.to(wide).unsqueeze(2)).to(q.dtype)
    return dq, dk, dv, dfilm


def like_rows(x: Tensor) -> Tensor:
    """Empty (B, N, L, D) whose memory is (B, L, N, D): merging the heads needs no copy then."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width).transpose(1, 2)


def no_film_gradient(q: Tensor) -> Tensor:
    """What stands for the gradients of gamma and beta where neither is given."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty((0, q.shape[0], q.shape[1], q.shape[3]), dtype=wide)


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
