"""The first two kernels of the exact nearest code: codes as float16, and the scan of their scores.

What they compute and how far it may be wrong is said in ``nearest_code_triton.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wmfast.kernels.offsets import far

BIG = tl.constexpr(2.0**127)  # a score of no code
_LARGEST = tl.constexpr(3.4028234663852886e38)
SLACK = tl.constexpr(1.01)  # for the rounding of the bound itself


@triton.jit
def _power_of(largest):
    """Bits of 2^p with p the exponent of ``largest``, kept where 2^p and 2^-p are both normal."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.where(largest == 0, 127 << 23, bits)
    return tl.minimum(tl.maximum(bits, 1 << 23), 253 << 23)


@triton.jit
def _inverse(bits):
    return ((254 << 23) - bits).to(tl.float32, bitcast=True)


@triton.jit
def prepare_kernel(
    codebook, half, square, power, norm, lost,
    codes, stride,
    D: tl.constexpr, D_PAD: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Codes as float16 and a power of two; rows beyond the last code look infinitely far."""
    code = far(tl.program_id(0), WIDE) * BLOCK_K + tl.arange(0, BLOCK_K)
    dim = tl.arange(0, D_PAD)
    mask = (code < codes)[:, None] & (dim < D)[None, :]
    c = tl.load(codebook + code[:, None] * stride + dim[None, :], mask=mask, other=0.0)
    c = c.to(tl.float32)  # [BLOCK_K, D_PAD]
    strange = tl.max(tl.where(tl.abs(c) <= _LARGEST, 0, 1), 1) > 0  # NaN is not <= anything
    c = tl.where(strange[:, None], 0.0, c)

    bits = _power_of(tl.max(tl.abs(c), 1))
    scaled = c * _inverse(bits)[:, None]
    h = scaled.to(tl.float16)
    rest = scaled - h.to(tl.float32)
    p = bits.to(tl.float32, bitcast=True)
    length = tl.sqrt(tl.sum(scaled * scaled, 1)) * p * SLACK
    wide_c = c.to(tl.float64)
    half_square = (0.5 * tl.sum(wide_c * wide_c, 1)).to(tl.float32)
    # a square beyond float32: no bound holds, and every row goes to float64
    length = tl.where(half_square <= _LARGEST, length, float("inf"))
    absent = strange | (code >= codes)
    tl.store(half + code[:, None] * D_PAD + dim[None, :], h)
    tl.store(square + code, tl.where(absent, float("inf"), half_square))
    tl.store(power + code, p)
    tl.store(norm + code, length)
    tl.store(lost + code, tl.sqrt(tl.sum(rest * rest, 1)) * p * SLACK)


@triton.jit
def scan_kernel(
    x, half, square, power, score, pick, about,
    rows, stride, tiles, tiles_each,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE_MASK: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Best and second-best of each row among the codes of this program, and a bound for the rest.

    Every column of a tile keeps its own two best over all tiles, elementwise; the number of the
    tile rides in the lowest bits of the score. Columns meet only once, at the end.

    score float32 (splits, 3, N): best, second, bound; pick int32 (splits, 2, N): their codes;
    about float32 (3, N): |h|, |lost|, 2^-p of the row.
    """
    row = far(tl.program_id(0), WIDE) * BLOCK_N + tl.arange(0, BLOCK_N)
    all_rows = far(rows, WIDE)
    dim = tl.arange(0, D_PAD)
    mask = (row < rows)[:, None] & (dim < D)[None, :]
    vector = tl.load(x + row[:, None] * stride + dim[None, :], mask=mask, other=0.0)
    vector = vector.to(tl.float32)  # [BLOCK_N, D_PAD]
    down = _inverse(_power_of(tl.max(tl.abs(vector), 1)))
    vector = vector * down[:, None]
    h = vector.to(tl.float16)
    rest = vector - h.to(tl.float32)

    split = tl.program_id(1)
    if split == 0:
        length, loss = tl.sqrt(tl.sum(vector * vector, 1)), tl.sqrt(tl.sum(rest * rest, 1))
        tl.store(about + row, length * SLACK, mask=row < rows)
        tl.store(about + all_rows + row, loss * SLACK, mask=row < rows)
        tl.store(about + 2 * all_rows + row, down, mask=row < rows)

    first = split * tiles_each
    best = tl.full([BLOCK_N, BLOCK_K], BIG, tl.float32)
    second = tl.full([BLOCK_N, BLOCK_K], BIG, tl.float32)
    column = tl.arange(0, BLOCK_K)
    for tile in tl.range(first, tl.minimum(first + tiles_each, tiles)):
        code = tile * BLOCK_K + column
        c = tl.load(half + far(code, WIDE)[None, :] * D_PAD + dim[:, None])  # [D_PAD, BLOCK_K]
        square_c = tl.load(square + code)[None, :] * down[:, None]
        t = square_c - tl.load(power + code)[None, :] * tl.dot(h, c)
        bits = tl.minimum(t, BIG).to(tl.int32, bitcast=True)
        t = ((bits & ~TILE_MASK) | (tile - first)).to(tl.float32, bitcast=True)
        second = tl.minimum(second, tl.maximum(best, t))
        best = tl.minimum(best, t)

    t1, column1 = tl.min(best, 1, return_indices=True)
    best = tl.where(column[None, :] == column1[:, None], second, best)
    t2, column2 = tl.min(best, 1, return_indices=True)
    # A third best hidden in a column is no better than the second best there.
    t3 = tl.min(tl.where(column[None, :] == column2[:, None], second, best), 1)
    tile1 = first + (t1.to(tl.int32, bitcast=True) & TILE_MASK)
    tile2 = first + (t2.to(tl.int32, bitcast=True) & TILE_MASK)

    out = split * 3 * all_rows + row
    tl.store(score + out, t1, mask=row < rows)
    tl.store(score + out + all_rows, t2, mask=row < rows)
    tl.store(score + out + 2 * all_rows, t3, mask=row < rows)
    out = split * 2 * all_rows + row
    tl.store(pick + out, tile1 * BLOCK_K + column1, mask=row < rows)
    tl.store(pick + out + all_rows, tile2 * BLOCK_K + column2, mask=row < rows)
