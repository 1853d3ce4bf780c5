"""The last kernel of the exact nearest code: certify the scan, settle the rest in float64.

The bound and its proof are in ``nearest_code_triton.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wmfast.kernels.nearest_code_scan import BIG, SLACK
from wmfast.kernels.offsets import far


@triton.jit
def _distance(
    x, codebook, row, code, mask, stride, code_stride,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Float64 |x_row - c_code|^2 of each pair, (BLOCK_N,)."""
    total = tl.zeros([BLOCK_N], tl.float64)
    for start in tl.range(0, D, BLOCK_D):
        dim = start + tl.arange(0, BLOCK_D)
        both = mask[:, None] & (dim < D)[None, :]
        a = tl.load(x + row[:, None] * stride + dim[None, :], mask=both, other=0.0)
        b = tl.load(codebook + code[:, None] * code_stride + dim[None, :], mask=both, other=0.0)
        difference = a.to(tl.float64) - b.to(tl.float64)
        total += tl.sum(difference * difference, 1)
    return total


@triton.jit
def _nearest_of_all(
    x, codebook, row, codes, stride, code_stride,
    D: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Index of the least float64 distance from one row; 0 where none is finite."""
    least = tl.full([BLOCK_K], float("inf"), tl.float64)
    nearest = tl.zeros([BLOCK_K], tl.int32)
    for start in tl.range(0, codes, BLOCK_K):
        code = start + tl.arange(0, BLOCK_K)
        distance = tl.zeros([BLOCK_K], tl.float64)
        for d in tl.range(0, D, BLOCK_D):
            dim = d + tl.arange(0, BLOCK_D)
            mask = (code < codes)[:, None] & (dim < D)[None, :]
            at = codebook + far(code, WIDE)[:, None] * code_stride + dim[None, :]
            b = tl.load(at, mask=mask, other=0.0).to(tl.float64)
            a = tl.load(x + row * stride + dim, mask=dim < D, other=0.0).to(tl.float64)
            difference = a[None, :] - b
            distance += tl.sum(difference * difference, 1)
        closer = (distance < least) & (code < codes)  # never for NaN; < keeps the lower of equals
        nearest = tl.where(closer, code, nearest)
        least = tl.where(closer, distance, least)
    tied = tl.where(least == tl.min(least, 0), nearest, codes)
    return tl.min(tied, 0)


@triton.jit
def settle_kernel(
    x, codebook, score, pick, about, norm, lost, index,
    rows, codes, padded, stride, code_stride, splits,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE_BITS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Join the splits, certify, decide what is left in float64; index int64 (N,)."""
    row = far(tl.program_id(0), WIDE) * BLOCK_N + tl.arange(0, BLOCK_N)
    all_rows = far(rows, WIDE)
    here = row < rows
    t1 = tl.full([BLOCK_N], BIG, tl.float32)
    t2 = tl.full([BLOCK_N], BIG, tl.float32)
    t3 = tl.full([BLOCK_N], BIG, tl.float32)
    code1 = tl.zeros([BLOCK_N], tl.int32)
    code2 = tl.zeros([BLOCK_N], tl.int32)
    for split in tl.range(0, splits):
        at, at_pick = row + 3 * all_rows * split, row + 2 * all_rows * split
        for rank in tl.static_range(2):
            t = tl.load(score + at + rank * all_rows, mask=here, other=0.0)
            code = tl.load(pick + at_pick + rank * all_rows, mask=here, other=0)
            t3 = tl.minimum(t3, tl.maximum(t2, t))
            second = t < t2
            first = t < t1
            t2 = tl.where(first, t1, tl.where(second, t, t2))
            code2 = tl.where(first, code1, tl.where(second, code, code2))
            t1 = tl.where(first, t, t1)
            code1 = tl.where(first, code, code1)
        t3 = tl.minimum(t3, tl.load(score + at + 2 * all_rows, mask=here, other=0.0))

    reach = tl.zeros([BLOCK_K], tl.float32)
    loss = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.range(0, padded, BLOCK_K):
        code = start + tl.arange(0, BLOCK_K)
        reach = tl.maximum(reach, tl.load(norm + code, mask=code < padded, other=0.0))
        loss = tl.maximum(loss, tl.load(lost + code, mask=code < padded, other=0.0))
    c, c_lost = tl.max(reach, 0), tl.max(loss, 0)
    length = tl.load(about + row, mask=here, other=0.0)
    x_lost = tl.load(about + all_rows + row, mask=here, other=0.0)
    down = tl.load(about + 2 * all_rows + row, mask=here, other=1.0)
    sums: tl.constexpr = (D_PAD + 16) * 2.0**-22
    rounding: tl.constexpr = 2.0**-22 + 2.0 ** (TILE_BITS - 23)
    double: tl.constexpr = (D_PAD + 4) * 2.0**-53
    error = x_lost * c + (length + x_lost) * (c_lost + sums * (c + c_lost))
    error += rounding * c * (0.5 * c * down + length)
    error += double * length * length / down  # of the float64 distances themselves
    error += 2.0**-148 * down + 2.0**-140  # where |c|^2 / 2, or a product, underflows
    limit = t1 + 2 * SLACK * error

    settled = (t2 > limit) & (t1 < BIG)
    several = here & ~settled
    pair = several & (t3 > limit) & (t2 < BIG)
    best = code1
    if tl.max(pair.to(tl.int32), 0) > 0:
        low, high = tl.minimum(code1, code2), tl.maximum(code1, code2)
        to_low = _distance(
            x, codebook, row, far(low, WIDE), pair, stride, code_stride, D, BLOCK_N, BLOCK_D
        )
        to_high = _distance(
            x, codebook, row, far(high, WIDE), pair, stride, code_stride, D, BLOCK_N, BLOCK_D
        )
        best = tl.where(pair, tl.where(to_high < to_low, high, low), best)
    open_rows = (several & ~pair).to(tl.int32)
    place = tl.arange(0, BLOCK_N)
    for _ in tl.range(0, tl.sum(open_rows, 0)):
        at = tl.argmax(open_rows, 0)
        this_row = tl.sum(tl.where(place == at, row, 0), 0)
        nearest = _nearest_of_all(
            x, codebook, this_row, codes, stride, code_stride, D, WIDE, BLOCK_K, BLOCK_D
        )
        best = tl.where(place == at, nearest, best)
        open_rows = tl.where(place == at, 0, open_rows)
    tl.store(index + row, best.to(tl.int64), mask=here)
