"""The backward kernels of FiLM attention: one for the queries, one for keys and values.

    p = exp(s - lse)    ds = p (do v^T - delta)    delta = rowsum(do o)
    dv = p^T do         dk = scale ds^T film(q)    dfilm(q) = scale ds k

The kernel of the queries runs first and leaves two things for the other: delta, and the modulated
queries, bit for bit those of the forward, so that no program modulates a tile twice. The gradients
of gamma and beta are column sums of dfilm(q) q and dfilm(q): each tile of queries writes its own
sums, and they are added up in a fixed order. Nothing is added atomically: equal inputs give equal
bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.film_attention_forward import (
    LOG2_E,
    SIZES,
    STRIDES,
    block_d,
    bucket,
    dense_rows,
    head_start,
    lint_rows,
    load_rows,
    masks_of,
    modulate,
    pair,
    precision,
    query_tile,
    query_tiles,
    row_limits,
    store_rows,
)
from wmfast.kernels.film_attention_torch import like_rows, no_film_gradient
from wmfast.kernels.lint import Case

QUERIES = "film_attention_queries"
KEYS = "film_attention_keys"


@triton.jit
def queries_kernel(
    do_in, q_in, k_in, v_in, gamma_in, beta_in, o_in, lse_in,
    dq_out, delta_out, filmed_out, sums_out,
    scale, scale_log2, heads, q_len, k_len, frame, tiles,
    q_b, q_n, q_l, k_b, k_n, k_l, v_b, v_n, v_l, gamma_b, gamma_n, beta_b, beta_n,
    do_b, do_n, do_l, o_b, o_n, o_l,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr, BY_FRAME: tl.constexpr,
):  # fmt: skip
    """dq, delta, the modulated queries, and each tile's sums for dgamma and dbeta.

    ``sums_out`` is (2, B, N, tiles, D) float32; it and ``filmed_out`` are written with FiLM only.
    """
    tile, start_m, end_m, stop, batch, head = query_tile(
        q_len, k_len, frame, tiles, heads, BLOCK_M, BY_FRAME
    )
    d = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    inside = start_m + rows < end_m
    k_head = head_start(k_in, batch, head, k_b, k_n)
    v_head = head_start(v_in, batch, head, v_b, v_n)

    do_head = head_start(do_in, batch, head, do_b, do_n)
    do = load_rows(do_head, start_m, end_m, do_l, rows, d, D)
    o_head = head_start(o_in, batch, head, o_b, o_n)
    o = load_rows(o_head, start_m, end_m, o_l, rows, d, D)
    row_head = (batch.to(tl.int64) * heads + head) * q_len + start_m
    # Rows beyond the head: an infinite sum makes their p zero.
    lse = tl.load(lse_in + row_head + rows, mask=inside, other=float("inf")) * 1.4426950408889634
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_out + row_head + rows, delta, mask=inside)

    q_head = head_start(q_in, batch, head, q_b, q_n)
    q = load_rows(q_head, start_m, end_m, q_l, rows, d, D)
    gamma = head_start(gamma_in, batch, head, gamma_b, gamma_n)
    if HAS_GAMMA or HAS_BETA:
        beta = head_start(beta_in, batch, head, beta_b, beta_n)
        q = modulate(q, gamma, beta, d, D, HAS_GAMMA, HAS_BETA)
        store_rows(filmed_out, q, batch, head, heads, start_m, q_len, end_m, rows, d, D)

    limit = row_limits(start_m + rows, q_len, k_len, frame)  # [M]
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    tl.assume(stop > 0)
    for start in tl.range(0, stop, BLOCK_N):
        k = load_rows(k_head, start, stop, k_l, columns, d, D)  # [N, D]
        v = load_rows(v_head, start, stop, v_l, columns, d, D)  # [N, D]
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [M, N]
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # [M, N]
        p = tl.math.exp2(score * scale_log2 - lse[:, None])
        if MASKED:
            p = tl.where((start + columns)[None, :] < limit[:, None], p, 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    dq *= scale
    if HAS_GAMMA or HAS_BETA:
        sums = sums_out + ((batch.to(tl.int64) * heads + head) * tiles + tile) * D + d
        plain = load_rows(q_head, start_m, end_m, q_l, rows, d, D)
        tl.store(sums, tl.sum(dq * plain.to(tl.float32), 0), mask=d < D)
        every = tl.num_programs(0).to(tl.int64) * D  # from the sums of gamma to those of beta
        tl.store(sums + every, tl.sum(dq, 0), mask=d < D)
        if HAS_GAMMA:
            dq *= (1.0 + tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32))[None, :]
    store_rows(dq_out, dq, batch, head, heads, start_m, q_len, end_m, rows, d, D)


@triton.jit
def keys_kernel(
    do_in, filmed_in, k_in, v_in, lse_in, delta_in, dk_out, dv_out,
    scale, scale_log2, heads, q_len, k_len, frame,
    q_b, q_n, q_l, k_b, k_n, k_l, v_b, v_n, v_l, do_b, do_n, do_l,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys, from the rows that see it.

    Rows of a frame before that of the tile's first key see none of it, rows from the frame of its
    last key on see all of it; between them (a tile across frames) the scores are masked.
    """
    all_heads = tl.num_programs(0) // tl.cdiv(k_len, BLOCK_N)
    if frame < k_len:  # the first tiles are seen by the most rows: they start first
        tile = tl.program_id(0) // all_heads
        batch_head = tl.program_id(0) % all_heads
    else:
        tile = tl.program_id(0) % tl.cdiv(k_len, BLOCK_N)
        batch_head = tl.program_id(0) // tl.cdiv(k_len, BLOCK_N)
    batch = batch_head // heads
    head = batch_head % heads
    d = tl.arange(0, BLOCK_D)
    rows = tl.arange(0, BLOCK_M)
    start_n = tile * BLOCK_N
    columns = tl.arange(0, BLOCK_N)
    k_head = head_start(k_in, batch, head, k_b, k_n)
    v_head = head_start(v_in, batch, head, v_b, v_n)
    k = load_rows(k_head, start_n, k_len, k_l, columns, d, D)  # [N, D]
    v = load_rows(v_head, start_n, k_len, v_l, columns, d, D)  # [N, D]
    q_head = head_start(filmed_in, batch, head, q_b, q_n)
    do_head = head_start(do_in, batch, head, do_b, do_n)
    row_head = (batch.to(tl.int64) * heads + head) * q_len

    last_key = tl.minimum(start_n + BLOCK_N, k_len) - 1
    # The frames of the tile's first and last key, as rows of the queries.
    some = tl.maximum(start_n // frame * frame - (k_len - q_len), 0) // BLOCK_M * BLOCK_M
    every = last_key // frame * frame - (k_len - q_len)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    tl.assume(some < q_len)
    for start in tl.range(some, q_len, BLOCK_M):
        inside = start + rows < q_len
        q = load_rows(q_head, start, q_len, q_l, rows, d, D)  # [M, D]
        do = load_rows(do_head, start, q_len, do_l, rows, d, D)  # [M, D]
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [N, M]
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # [N, M]
        # Rows beyond the head: an infinite sum makes their p zero.
        lse = tl.load(lse_in + row_head + start + rows, mask=inside, other=float("inf"))
        p = tl.math.exp2(score * scale_log2 - (lse * 1.4426950408889634)[None, :])
        if start < every:
            limit = row_limits(start + rows, q_len, k_len, frame)
            p = tl.where((start_n + columns)[:, None] < limit[None, :], p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        delta = tl.load(delta_in + row_head + start + rows, mask=inside, other=0.0)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    store_rows(dk_out, dk * scale, batch, head, heads, start_n, k_len, k_len, columns, d, D)
    store_rows(dv_out, dv, batch, head, heads, start_n, k_len, k_len, columns, d, D)


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
    """The gradients of q, k, v, and of gamma and beta stacked, float32 (2, B, N, D)."""
    do, q, k, v, o = (dense_rows(x) for x in (do, q, k, v, o))
    gamma, beta = (None if x is None else dense_rows(x) for x in (gamma, beta))
    filming = gamma is not None or beta is not None
    batch, heads, q_len, width = q.shape
    k_len = k.shape[2]
    dq, dk, dv, delta = like_rows(q), like_rows(k), like_rows(v), torch.empty_like(lse)
    filmed = like_rows(q) if filming else q
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    constants = {
        "D": width,
        "BLOCK_D": block_d(width),
        "PRECISION": precision(),
    }
    config = launch.config_of(QUERIES, q, bucket(q))
    tiles = query_tiles(q, k, frame, config)
    sums = lse.new_empty((2, batch, heads, tiles, width) if filming else (0,))
    launch.run(
        queries_kernel,
        (tiles * batch * heads,),
        config,
        *(do, q, k, v, q if gamma is None else gamma, q if beta is None else beta, o, lse),
        *(dq, delta, filmed, sums),
        *(scale, scale * LOG2_E, heads, q_len, k_len, frame, tiles),
        *(*strides, *pair(gamma), *pair(beta), *do.stride()[:3], *o.stride()[:3]),
        HAS_GAMMA=gamma is not None,
        HAS_BETA=beta is not None,
        **masks_of(q, k, frame, config),
        **constants,
    )
    config = launch.config_of(KEYS, q, bucket(k))
    launch.run(
        keys_kernel,
        (triton.cdiv(k_len, config["BLOCK_N"]) * batch * heads,),
        config,
        *(do, filmed, k, v, lse, delta, dk, dv),
        *(scale, scale * LOG2_E, heads, q_len, k_len, frame),
        *(*filmed.stride()[:3], *strides[3:], *do.stride()[:3]),
        **constants,
    )
    return dq, dk, dv, sums.sum(3) if filming else no_film_gradient(q)


def lint_cases() -> Iterator[Case]:
    """Every row of the table, with FiLM and a mask."""
    strides = (*STRIDES, *(f"{x}_{axis}" for x in ("do", "o") for axis in "bnl"))
    for op, kernel in ((QUERIES, queries_kernel), (KEYS, keys_kernel)):
        names = kernel.arg_names
        for name, config, sm, kind, constants in lint_rows(op):
            signature = {
                **dict.fromkeys((n for n in names if n.endswith(("_in", "_out"))), kind),
                **dict.fromkeys(("lse_in", "delta_in", "delta_out", "sums_out"), "*fp32"),
                **dict.fromkeys(("scale", "scale_log2"), "fp32"),
                **dict.fromkeys(SIZES, "i32"),
                **dict.fromkeys(strides, "i32:16"),
            }
            constants |= {"HAS_GAMMA": True, "HAS_BETA": True}
            yield Case(
                name,
                kernel,
                {n: signature[n] for n in names if n in signature},
                {n: constants[n] for n in names if n in constants},
                config,
                sm,
                tensor_cores=kind == "*bf16" or constants["PRECISION"] == "tf32",
                few_rows=kind == "*fp32",
            )
