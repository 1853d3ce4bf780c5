"""The forward kernel of FiLM attention: one program for each tile of queries of one head.

The queries of a tile are modulated once and stay in registers; the keys stream past them with a
running maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022). A row sees the keys before its
``limit``, the end of its frame, and keys that no row of the tile sees are never read. So where a
tile lies within one frame nothing of a later frame can touch it, not even a NaN. Where a tile lies
across frames, scores are masked row by row, and a value that is not finite reaches all its rows:
zero times it is NaN. Tiles begin with every frame where that leaves few rows of them empty.

Full attention is the case of one frame: every limit is Lk. The scores are in units of log 2, since
a GPU has exp2: their scale is multiplied in where the maximum is subtracted, one instruction
either way, and the queries are rounded where plain FiLM rounds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.film_attention_torch import like_rows
from wmfast.kernels.lint import Case

OP = "film_attention_forward"
LOG2_E = math.log2(math.e)
_FILL = 0.75  # 4 frames of 336 or 196 in tiles of 128: as many tiles of keys as in one row of tiles
SIZES = ("heads", "q_len", "k_len", "frame", "tiles")
STRIDES = (
    *(f"{tensor}_{axis}" for tensor in "qkv" for axis in "bnl"),
    *(f"{tensor}_{axis}" for tensor in ("gamma", "beta") for axis in "bn"),
)


@triton.jit
def row_limits(rows, q_len, k_len, frame):
    """For each query row the number of keys that it sees: the keys up to the end of its frame."""
    position = k_len - q_len + rows
    return tl.minimum((position // frame + 1) * frame, k_len)


@triton.jit
def query_tile(
    q_len, k_len, frame, tiles, heads, BLOCK_M: tl.constexpr, BY_FRAME: tl.constexpr
):  # fmt: skip
    """(tile, its first row, end of its rows, end of its keys, batch, head) of this program.

    With frames the last tiles have the most keys: they start first, over all heads, so that no
    long one is left at the end. Without frames all are equal and those of one head follow each
    other, so that its keys stay in the L2 cache.
    """
    program = tl.program_id(0)
    all_heads = tl.num_programs(0) // tiles
    if frame < k_len:
        tile = tiles - 1 - program // all_heads
        batch_head = program % all_heads
    else:
        tile = program % tiles
        batch_head = program // tiles
    start, end = tile * BLOCK_M, q_len
    if BY_FRAME:
        head_rows = frame - (k_len - q_len) % frame  # of the first frame, which may be cut
        head_tiles = tl.cdiv(head_rows, BLOCK_M)
        each = tl.cdiv(frame, BLOCK_M)
        past = tl.maximum(tile - head_tiles, 0)
        later_end = head_rows + (past // each + 1) * frame
        later = later_end - frame + past % each * BLOCK_M
        start = tl.where(tile < head_tiles, start, later)
        end = tl.minimum(tl.where(tile < head_tiles, head_rows, later_end), q_len)
    last_row = tl.minimum(start + BLOCK_M, end) - 1
    stop = row_limits(last_row, q_len, k_len, frame)
    return tile, start, end, stop, batch_head // heads, batch_head % heads


@triton.jit
def head_start(base, batch, head, stride_b, stride_n):
    """Where a head begins; int64, since a batch may pass 2^31 elements where its rows don't."""
    return base + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n


@triton.jit
def load_rows(head, start, length, stride, rows, d, D: tl.constexpr):
    """A tile (rows, d) from row ``start`` on; what lies beyond the head is 0."""
    # Only the step from tile to tile can pass 32 bits, and as a scalar it is free in 64.
    pointers = head + tl.cast(start, tl.int64) * stride + ((rows * stride)[:, None] + d[None, :])
    inside = (start + rows < length)[:, None]
    if d.shape[0] > D:  # a width that is no power of two
        inside = inside & (d < D)[None, :]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_rows(
    out, x, batch, head, heads, start, length, end, rows, d, D: tl.constexpr
):  # fmt: skip
    """Write a tile's rows before ``end`` to an output whose memory is (B, length, N, D)."""
    out += ((batch.to(tl.int64) * length + start) * heads + head) * D
    pointers = out + ((rows * (heads * D))[:, None] + d[None, :])
    inside = (start + rows < end)[:, None] & (d < D)[None, :]
    tl.store(pointers, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def modulate(q, gamma, beta, d, D: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr):  # fmt: skip  # noqa: E501
    """(1 + gamma) q + beta in float32, rounded to q's dtype."""
    filmed = q.to(tl.float32)
    if HAS_GAMMA:
        filmed *= (1.0 + tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32))[None, :]
    if HAS_BETA:
        filmed += tl.load(beta + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    return filmed.to(q.dtype)


@triton.jit
def unmodulate(dfilmed, gamma, d, D: tl.constexpr, HAS_GAMMA: tl.constexpr):
    """The gradient of q from that of the modulated q."""
    if HAS_GAMMA:
        dfilmed *= (1.0 + tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32))[None, :]
    return dfilmed


@triton.jit
def forward_kernel(
    q_in, k_in, v_in, gamma_in, beta_in, o_out, lse_out,
    scale_log2, heads, q_len, k_len, frame, tiles,
    q_b, q_n, q_l, k_b, k_n, k_l, v_b, v_n, v_l, gamma_b, gamma_n, beta_b, beta_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr, BY_FRAME: tl.constexpr,
):  # fmt: skip
    """o = softmax(film(q) k^T scale) v and the natural log of each row's softmax sum."""
    _, start_m, end_m, stop, batch, head = query_tile(
        q_len, k_len, frame, tiles, heads, BLOCK_M, BY_FRAME
    )
    d = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    k_head = head_start(k_in, batch, head, k_b, k_n)
    v_head = head_start(v_in, batch, head, v_b, v_n)

    q_head = head_start(q_in, batch, head, q_b, q_n)
    q = load_rows(q_head, start_m, end_m, q_l, rows, d, D)
    if HAS_GAMMA or HAS_BETA:
        gamma = head_start(gamma_in, batch, head, gamma_b, gamma_n)
        beta = head_start(beta_in, batch, head, beta_b, beta_n)
        q = modulate(q, gamma, beta, d, D, HAS_GAMMA, HAS_BETA)

    limit = row_limits(start_m + rows, q_len, k_len, frame)  # [M]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # The lowest number, not -inf: a tile's scores may all be -inf, and -inf + inf would be NaN.
    top = tl.full([BLOCK_M], -3.4028234663852886e38, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    tl.assume(stop > 0)  # a loop that may not run at all has its wgmma serialized
    for start in tl.range(0, stop, BLOCK_N):
        k = load_rows(k_head, start, stop, k_l, columns, d, D)  # [N, D]
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [M, N]
        if MASKED:  # by row, although rows of one frame have one limit: it takes fewer registers
            score = tl.where((start + columns)[None, :] < limit[:, None], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1) * scale_log2)
        p = tl.math.exp2(score * scale_log2 - new_top[:, None])
        fade = tl.math.exp2(top - new_top)
        total = total * fade + tl.sum(p, 1)
        v = load_rows(v_head, start, stop, v_l, columns, d, D)  # [N, D]
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        top = new_top

    total = tl.where(total == 0, 1.0, total)  # every score -inf: the row is 0, as torch has it
    store_rows(o_out, acc / total[:, None], batch, head, heads, start_m, q_len, end_m, rows, d, D)
    lse_head = lse_out + (batch.to(tl.int64) * heads + head) * q_len
    lse = (top + tl.math.log2(total)) * 0.6931471805599453
    tl.store(lse_head + start_m + rows, lse, mask=start_m + rows < end_m)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    frame: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The answer (B, N, Lq, D) and the natural log-sum-exp of the scores (B, N, Lq), float32."""
    q, k, v = (dense_rows(x) for x in (q, k, v))
    gamma, beta = (None if x is None else dense_rows(x) for x in (gamma, beta))
    batch, heads, q_len, width = q.shape
    o = like_rows(q)
    lse = q.new_empty((batch, heads, q_len), dtype=torch.float32)
    config = launch.config_of(OP, q, bucket(q))
    masks = masks_of(q, k, frame, config)
    tiles = query_tiles(q, k, frame, config)
    launch.run(
        forward_kernel,
        (tiles * batch * heads,),
        config,
        *(q, k, v, q if gamma is None else gamma, q if beta is None else beta, o, lse),
        *(scale * LOG2_E, heads, q_len, k.shape[2], frame, tiles),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *pair(gamma), *pair(beta)),
        D=width,
        BLOCK_D=block_d(width),
        HAS_GAMMA=gamma is not None,
        HAS_BETA=beta is not None,
        PRECISION=precision(),
        **masks,
    )
    return o, lse


def dense_rows(x: Tensor) -> Tensor:
    """``x`` itself where its rows of D lie dense, as they come from a fused projection.

    Inside a tile of at most 128 rows the offsets are 32 bits wide.
    """
    return x if x.stride(-1) == 1 and x.stride(2) < 1 << 24 else x.contiguous()


def pair(film: Tensor | None) -> tuple[int, int]:
    """Strides of batch and head."""
    return (0, 0) if film is None else (film.stride(0), film.stride(1))


def block_d(width: int) -> int:
    """The width of a tile: a power of two from 16 on."""
    return max(16, 1 << (width - 1).bit_length())


def bucket(q: Tensor) -> str:
    """Row of the config table: the tile's width, and whether large tiles would leave SMs idle."""
    few = q.shape[0] * q.shape[1] * triton.cdiv(q.shape[2], 128) < 128
    return f"d{block_d(q.shape[3])}{'-few' if few else ''}"


def masks_of(q: Tensor, k: Tensor, frame: int, config: launch.Config) -> dict[str, bool]:
    """How a tile of queries keeps to the keys that its rows see.

    BY_FRAME: tiles begin with every frame. MASKED: some row sees a part of a tile of keys only.
    """
    k_len, size = k.shape[2], config["BLOCK_N"]
    rows = triton.cdiv(frame, config["BLOCK_M"]) * config["BLOCK_M"]
    by_frame = frame < k_len and frame >= _FILL * rows
    whole = (by_frame or frame >= k_len) and min(frame, k_len) % size == k_len % size == 0
    return {"BY_FRAME": by_frame, "MASKED": not whole}


def query_tiles(q: Tensor, k: Tensor, frame: int, config: launch.Config) -> int:
    """Tiles of queries of a head."""
    rows, size = q.shape[2], config["BLOCK_M"]
    if not masks_of(q, k, frame, config)["BY_FRAME"]:
        return int(triton.cdiv(rows, size))
    first = min(rows, frame - (k.shape[2] - rows) % frame)
    frames, last = divmod(rows - first, frame)
    first_tiles, each, last_tiles = (triton.cdiv(part, size) for part in (first, frame, last))
    return int(first_tiles + frames * each + last_tiles)


def precision() -> str:
    """How float32 operands are multiplied: as torch would, by the user's own switch.

    Read from the newer of torch's two switches, which the older one (set_float32_matmul_precision)
    sets too; reading the older one raises once the newer has been used.
    """
    own = torch.backends.cuda.matmul.fp32_precision
    if own == "none":
        own = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if own == "tf32" else "ieee"


def lint_rows(op: str) -> Iterator[tuple[str, launch.Config, int, str, dict[str, Any]]]:
    """(name, config, sm, type, constants) of each row of the table that differs from the others.

    Each is compiled for tiles that begin with every frame, as the models' do, and for what needs
    more registers: a width that is no power of two and tiles across frames; float32 also as TF32.
    float16 gives the code of bfloat16.
    """
    seen = []
    for entry in launch.entries(op):
        width = int(entry.bucket.removesuffix("-few").removeprefix("d"))
        kind = "*fp32" if entry.dtype == "float32" else "*bf16"
        row = (width, entry.config, entry.sm, kind)
        if row in seen:
            continue
        seen.append(row)
        long = {"D": width, "BLOCK_D": width, "PRECISION": "ieee", "MASKED": True, "BY_FRAME": True}
        odd = {"D": width * 3 // 4, "MASKED": True, "BY_FRAME": False}
        variants: dict[str, dict[str, Any]] = {"": {}, f" D {odd['D']} across frames": odd}
        if kind == "*fp32":
            variants[" tf32"] = {"PRECISION": "tf32"}
        for words, change in variants.items():
            name = f"{op} {entry.dtype} {entry.bucket} sm{entry.sm}{words}"
            yield name, entry.config, entry.sm, kind, long | change


def lint_cases() -> Iterator[Case]:
    """Every row of the table, with FiLM and a mask."""
    tensors = ("q_in", "k_in", "v_in", "gamma_in", "beta_in", "o_out")
    for name, config, sm, kind, constants in lint_rows(OP):
        yield Case(
            name,
            forward_kernel,
            {
                **dict.fromkeys(tensors, kind),
                "lse_out": "*fp32",
                "scale_log2": "fp32",
                **dict.fromkeys(SIZES, "i32"),
                **dict.fromkeys(STRIDES, "i32:16"),
            },
            {**constants, "HAS_GAMMA": True, "HAS_BETA": True},
            config,
            sm,
            tensor_cores=kind == "*bf16" or constants["PRECISION"] == "tf32",
            few_rows=kind == "*fp32",
        )
