"""FiLM attention without Triton: frame after frame, each against its own prefix of the keys.

``slices`` is the differentiable way, for any device and dtype. On a CPU ``forward`` and
``backward`` do the same with the log-sum-exp kept between them: the forward copies nothing twice,
and the backward adds the gradients of the keys in place, where autograd would pad each frame's part
with zeros to the full length.

Short frames share a call, with a mask that adds -inf to the scores of keys that a row may not see.
That alone would not do where such a key brings a score, or a gradient of one, that is infinite or
NaN: inf - inf and 0 * inf are NaN. ``forward`` and ``backward`` look for it, by the norms of all
vectors, and then repeat the call of the same shape with those keys zero for the rows before
them. So a row has the same bits whatever later frames hold. ``slices`` wants finite inputs there.

Shapes as in ``film_attention``; ``frame`` is a plain number (Lk or more: no frames).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 256  # shorter frames share a call: 64 of 16 tokens 487 -> 50 ms, B 8, 4 heads of 64


def film(q: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor | None = None) -> Tensor:
    """(1 + gamma) q + beta, computed in float32 at least and rounded once to q's dtype.

    It is written to ``out``, where that is given and q is as wide as that.
    """
    if gamma is None and beta is None:
        return q
    wide = torch.promote_types(q.dtype, torch.float32)
    filmed = q.to(wide)
    out = out if q.dtype == wide else None
    factor = None if gamma is None else 1 + gamma.to(wide).unsqueeze(2)
    shift = None if beta is None else beta.to(wide).unsqueeze(2)
    if factor is not None and shift is not None:
        filmed = torch.addcmul(shift, filmed, factor, out=out)
    elif factor is not None:
        filmed = torch.mul(filmed, factor, out=out)
    elif shift is not None:
        filmed = torch.add(filmed, shift, out=out)
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


def pieces(
    chunk: tuple[int, int, int],
    frame: int,
    rows: tuple[Tensor, ...],
    keys: tuple[Tensor, Tensor],
    scale: float,
) -> list[tuple[int, int]]:
    """The rows [start, stop) of a chunk in parts that are to be blind for what follows them.

    ``rows``: those of q, and in the backward of do, o, lse; ``keys``: all of k, v. A part ends
    before each frame that could bring earlier rows of the chunk an infinite or NaN score or
    gradient. For any set of products |sum a_d b_d| <= |a| |b|, so finite norms of the vectors, with
    a product far below overflow, bring none.
    """
    start, stop, end_of_keys = chunk
    first = end_of_keys - stop  # the position of query 0
    if _tame(rows, [x[:, :, first + start : end_of_keys] for x in keys], scale):
        return [(start, stop)]
    ends = [
        end
        for end in range((first + start) // frame * frame + frame - first, stop, frame)
        if not _tame(
            [x[:, :, : end - start] for x in rows],
            [x[:, :, first + end : first + end + frame] for x in keys],
            scale,
        )
    ]
    return list(itertools.pairwise([start, *ends, stop]))


def _tame(rows: Sequence[Tensor], keys: Sequence[Tensor], scale: float) -> bool:
    """Whether the scores of these rows and keys, and the gradients of these, are surely finite."""
    wide = torch.promote_types(keys[0].dtype, torch.float32)

    def longest(x: Tensor) -> float:
        return float(torch.linalg.vector_norm(x, dim=-1, dtype=wide).max())

    q, *rest = (longest(x) for x in rows)
    k, v = (longest(x) for x in keys)
    largest = [q * k * max(scale, 1), v]
    if rest:
        do, o, lse = rest
        largest += [do * v, do * o, lse]
    limit = torch.finfo(wide).max / 4
    return all(0 <= x < limit for x in largest)  # NaN is not


def known(x: Tensor, keys: int, stop: int) -> Tensor:
    """The first ``keys`` positions of x (B, N, Lk, D), zero from ``stop`` on."""
    x = x[:, :, :keys]
    return x if stop == keys else F.pad(x[:, :, :stop], (0, 0, 0, keys - stop))


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
    q, k, v = (_dense_rows(x) for x in (q, k, v))
    o = like_rows(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for chunk in chunks(q.shape[2], k.shape[2], frame):
        start, stop, keys = chunk
        # To where the answer goes: still in the cache when it is read, and no new memory.
        filmed = film(q[:, :, start:stop], gamma, beta, o[:, :, start:stop])
        mask = unseen(*chunk, q, k, frame)
        parts = [(start, stop)] if mask is None else pieces(chunk, frame, (filmed,), (k, v), scale)
        for begin, end in parts:
            o_part, lse_part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                filmed,
                known(k, keys, keys - stop + end),
                known(v, keys, keys - stop + end),
                attn_mask=mask,
                scale=scale,
            )
            o[:, :, begin:end] = o_part[:, :, begin - start : end - start]
            lse[:, :, begin:end] = lse_part[:, :, begin - start : end - start]
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
    q, k, v, do = (_dense_rows(x) for x in (q, k, v, do))
    dq, dk, dv = like_rows(q), k.new_empty(0), v.new_empty(0)
    dfilm = no_film_gradient(q)
    if gamma is not None or beta is not None:
        dfilm = dfilm.new_zeros((2, *dfilm.shape[1:]))
    # The last chunk reads all keys, so its gradients are the buffers that the others add to.
    for chunk in reversed(list(chunks(q.shape[2], k.shape[2], frame))):
        start, stop, keys = chunk
        filmed = film(q[:, :, start:stop], gamma, beta)
        rows = (filmed, *(x[:, :, start:stop] for x in (do, o, lse)))
        mask = unseen(*chunk, q, k, frame)
        parts = [(start, stop)]
        if mask is not None:
            parts = pieces(chunk, frame, (*rows[:3], rows[3].unsqueeze(-1)), (k, v), scale)
        for begin, end in reversed(parts):
            seen, part = keys - stop + end, slice(begin - start, end - start)
            dq_part, dk_part, dv_part = _backward_call(rows, k, v, keys, seen, mask, scale)
            dq_part = dq_part[:, :, part]
            if len(parts) > 1:  # what other rows give the keys is no business of this part
                part_rows = tuple(x[:, :, part] for x in rows)
                part_mask = unseen(begin, end, seen, q, k, frame)
                dk_part, dv_part = _backward_call(part_rows, k, v, seen, seen, part_mask, scale)[1:]
            if seen == k.shape[2]:
                dk, dv = dk_part, dv_part
            else:
                dk[:, :, :seen] += dk_part
                dv[:, :, :seen] += dv_part
            if dfilm.numel():
                dq_part = _film_gradient(dq_part, q[:, :, begin:end], gamma, dfilm)
            dq[:, :, begin:end] = dq_part
    return dq, dk, dv, dfilm


def _backward_call(
    rows: tuple[Tensor, ...],
    k: Tensor,
    v: Tensor,
    keys: int,
    seen: int,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of these rows' q, and of the first ``keys`` of k and v, which end at ``seen``."""
    q, do, o, lse = rows
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        do,
        q,
        known(k, keys, seen),
        known(v, keys, seen),
        o,
        lse,
        0.0,
        False,
        attn_mask=mask,
        scale=scale,
    )
    return cast(tuple[Tensor, Tensor, Tensor], found)


def _film_gradient(dq: Tensor, q: Tensor, gamma: Tensor | None, dfilm: Tensor) -> Tensor:
    """The gradient of q from that of the modulated q; adds those of gamma and beta to ``dfilm``."""
    wide = dq.to(dfilm.dtype)
    dfilm[0] += (wide * q).sum(2)
    dfilm[1] += wide.sum(2)
    return dq if gamma is None else wide.mul(1 + gamma.to(dfilm.dtype).unsqueeze(2)).to(dq.dtype)


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
