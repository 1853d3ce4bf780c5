"""The exact nearest code on a GPU, in one pass over the vectors: no (N, K) matrix is ever made.

Half the squared distance, less what all codes share, is t_j = |c_j|^2 / 2 - x.c_j. Three kernels:

    prepare  code_j = 2^p_j (h_j + lost_j), h_j float16 with its largest element in [1, 2)
    scan     x = 2^p (h + lost) likewise; t_j from h.h_j on the tensor cores; the two best t_j of
             each row, and a bound below all others
    settle   rows whose runner-up lies further from the best than the error can reach are done;
             where only two codes remain, float64 decides between them; the few other rows take
             float64 distances to every code

The error is bounded by what was really lost, with C = max|c|, L = max|2^p_j lost_j|:

    |t_j - exact| <= |lost| C + (|h| + |lost|) L                          rounding to float16
                     + (D + 16) 2^-22 |h| (C + L)                         sums on the tensor cores
                     + (2^-22 + 2^(bits - 23)) (C^2 / 2 + |x| C)          score, packed tile number

in units of the row's 2^p. Products of float16 are exact in float32; a tensor core adds a block of
them by shifting to the largest exponent and cutting off what does not fit 24 bits (Fasi et al.
2021, Numerical behavior of NVIDIA tensor cores), so every one of its at most D + D / 4 additions
loses less than 2^-23 of sum|h h_j|; the second line has twice that. Scaled to its own exponent,
float16 keeps 11 bits of an element where bfloat16 keeps 8, in the same time: of normal vectors
(K = 512, D = 256) 4.7 % need a second look in place of 29 %, and 0.2 % all codes in place of 8 %.

Codes with NaN or infinity are never candidates; a row with either, and everything beyond the range
of float32, has an infinite or NaN bound and thus goes to float64.

Dimension legend: n rows, k codes, d dimensions; a tile is BLOCK_K codes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.launch import Config

PREPARE: Config = {"BLOCK_K": 8, "num_warps": 4, "num_stages": 1}
SETTLE: Config = {"BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 1}
_FEW_ROWS = 4096  # up to here the codes are split over programs too

_BIG = tl.constexpr(2.0**127)  # a score of no code
_LARGEST = tl.constexpr(3.4028234663852886e38)
_SLACK = tl.constexpr(1.01)  # for the rounding of the bound itself


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
    code = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    dim = tl.arange(0, D_PAD)
    row = code.to(tl.int64) if WIDE else code
    mask = (code < codes)[:, None] & (dim < D)[None, :]
    c = tl.load(codebook + row[:, None] * stride + dim[None, :], mask=mask, other=0.0)
    c = c.to(tl.float32)  # [BLOCK_K, D_PAD]
    strange = tl.max(tl.where(tl.abs(c) <= _LARGEST, 0, 1), 1) > 0  # NaN is not <= anything
    c = tl.where(strange[:, None], 0.0, c)

    bits = _power_of(tl.max(tl.abs(c), 1))
    scaled = c * _inverse(bits)[:, None]
    h = scaled.to(tl.float16)
    rest = scaled - h.to(tl.float32)
    p = bits.to(tl.float32, bitcast=True)
    length = tl.sqrt(tl.sum(scaled * scaled, 1)) * p * _SLACK
    wide_c = c.to(tl.float64)
    half_square = (0.5 * tl.sum(wide_c * wide_c, 1)).to(tl.float32)
    # a square beyond float32: no bound holds, and every row goes to float64
    length = tl.where(half_square <= _LARGEST, length, float("inf"))
    absent = strange | (code >= codes)
    tl.store(half + row[:, None] * D_PAD + dim[None, :], h)
    tl.store(square + code, tl.where(absent, float("inf"), half_square))
    tl.store(power + code, p)
    tl.store(norm + code, length)
    tl.store(lost + code, tl.sqrt(tl.sum(rest * rest, 1)) * p * _SLACK)


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
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if WIDE:
        row = row.to(tl.int64)
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
        tl.store(about + row, length * _SLACK, mask=row < rows)
        tl.store(about + rows + row, loss * _SLACK, mask=row < rows)
        tl.store(about + 2 * rows + row, down, mask=row < rows)

    first = split * tiles_each
    best = tl.full([BLOCK_N, BLOCK_K], _BIG, tl.float32)
    second = tl.full([BLOCK_N, BLOCK_K], _BIG, tl.float32)
    column = tl.arange(0, BLOCK_K)
    for tile in tl.range(first, tl.minimum(first + tiles_each, tiles)):
        code = tile * BLOCK_K + column
        c = tl.load(half + code[None, :] * D_PAD + dim[:, None])  # [D_PAD, BLOCK_K]
        far = tl.load(square + code)[None, :] * down[:, None]
        t = far - tl.load(power + code)[None, :] * tl.dot(h, c)
        bits = tl.minimum(t, _BIG).to(tl.int32, bitcast=True)
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

    far_rows = rows.to(tl.int64) if WIDE else rows
    out = split * 3 * far_rows + row
    tl.store(score + out, t1, mask=row < rows)
    tl.store(score + out + rows, t2, mask=row < rows)
    tl.store(score + out + 2 * rows, t3, mask=row < rows)
    out = split * 2 * far_rows + row
    tl.store(pick + out, tile1 * BLOCK_K + column1, mask=row < rows)
    tl.store(pick + out + rows, tile2 * BLOCK_K + column2, mask=row < rows)


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
        wide_code = code.to(tl.int64) if WIDE else code
        distance = tl.zeros([BLOCK_K], tl.float64)
        for d in tl.range(0, D, BLOCK_D):
            dim = d + tl.arange(0, BLOCK_D)
            mask = (code < codes)[:, None] & (dim < D)[None, :]
            at = codebook + wide_code[:, None] * code_stride + dim[None, :]
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
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if WIDE:
        row = row.to(tl.int64)
    far_rows = rows.to(tl.int64) if WIDE else rows
    here = row < rows
    t1 = tl.full([BLOCK_N], _BIG, tl.float32)
    t2 = tl.full([BLOCK_N], _BIG, tl.float32)
    t3 = tl.full([BLOCK_N], _BIG, tl.float32)
    code1 = tl.zeros([BLOCK_N], tl.int32)
    code2 = tl.zeros([BLOCK_N], tl.int32)
    for split in tl.range(0, splits):
        at, at_pick = row + 3 * far_rows * split, row + 2 * far_rows * split
        for rank in tl.static_range(2):
            t = tl.load(score + at + rank * rows, mask=here, other=0.0)
            code = tl.load(pick + at_pick + rank * rows, mask=here, other=0)
            t3 = tl.minimum(t3, tl.maximum(t2, t))
            second = t < t2
            first = t < t1
            t2 = tl.where(first, t1, tl.where(second, t, t2))
            code2 = tl.where(first, code1, tl.where(second, code, code2))
            t1 = tl.where(first, t, t1)
            code1 = tl.where(first, code, code1)
        t3 = tl.minimum(t3, tl.load(score + at + 2 * rows, mask=here, other=0.0))

    reach = tl.zeros([BLOCK_K], tl.float32)
    loss = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.range(0, padded, BLOCK_K):
        code = start + tl.arange(0, BLOCK_K)
        reach = tl.maximum(reach, tl.load(norm + code, mask=code < padded, other=0.0))
        loss = tl.maximum(loss, tl.load(lost + code, mask=code < padded, other=0.0))
    c, c_lost = tl.max(reach, 0), tl.max(loss, 0)
    length = tl.load(about + row, mask=here, other=0.0)
    x_lost = tl.load(about + rows + row, mask=here, other=0.0)
    down = tl.load(about + 2 * rows + row, mask=here, other=1.0)
    sums: tl.constexpr = (D_PAD + 16) * 2.0**-22
    rounding: tl.constexpr = 2.0**-22 + 2.0 ** (TILE_BITS - 23)
    double: tl.constexpr = (D_PAD + 4) * 2.0**-53
    error = x_lost * c + (length + x_lost) * (c_lost + sums * (c + c_lost))
    error += rounding * c * (0.5 * c * down + length)
    error += double * length * length / down  # of the float64 distances themselves
    error += 2.0**-148 * down + 2.0**-140  # where |c|^2 / 2, or a product, underflows
    limit = t1 + 2 * _SLACK * error

    settled = (t2 > limit) & (t1 < _BIG)
    several = here & ~settled
    pair = several & (t3 > limit) & (t2 < _BIG)
    best = code1
    if tl.max(pair.to(tl.int32), 0) > 0:
        low, high = tl.minimum(code1, code2), tl.maximum(code1, code2)
        far_low = low.to(tl.int64) if WIDE else low
        far_high = high.to(tl.int64) if WIDE else high
        to_low = _distance(
            x, codebook, row, far_low, pair, stride, code_stride, D, BLOCK_N, BLOCK_D
        )
        to_high = _distance(
            x, codebook, row, far_high, pair, stride, code_stride, D, BLOCK_N, BLOCK_D
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


def nearest_code_triton(
    x_nd: Tensor, codebook_kd: Tensor, *, config: Config | None = None, splits: int | None = None
) -> Tensor:
    """Exact nearest codes int64 (N,); x (N, D), codebook (K, D) of any float dtype, D <= 1024.

    ``config`` and ``splits`` (programs that share the codes of a row) come from the table and from
    the size unless given. Waits for nothing; the grids depend on shapes only.
    """
    rows, dim = x_nd.shape
    codes = len(codebook_kd)
    x_nd = x_nd if x_nd.stride(1) == 1 else x_nd.contiguous()
    codebook_kd = codebook_kd if codebook_kd.stride(1) == 1 else codebook_kd.contiguous()
    index = torch.empty(rows, dtype=torch.int64, device=x_nd.device)
    if rows == 0:
        return index
    if config is None:
        config = launch.config_of("nearest_code", x_nd, bucket(rows, dim))
    blocks = triton.cdiv(rows, config["BLOCK_N"])
    tiles = triton.cdiv(codes, config["BLOCK_K"])
    if splits is None:
        splits = max(1, 2 * launch.processors(x_nd.device) // blocks) if rows <= _FEW_ROWS else 1
    splits = max(splits, triton.cdiv(tiles, 256))  # at most 8 bits of a score for the tile
    tiles_each = triton.cdiv(tiles, min(splits, tiles))
    splits = triton.cdiv(tiles, tiles_each)
    bits = (tiles_each - 1).bit_length()
    padded = tiles * config["BLOCK_K"]

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x_nd.device)

    pad = max(16, triton.next_power_of_2(dim))
    half = torch.empty(padded, pad, dtype=torch.float16, device=x_nd.device)
    square, power, norm, lost = floats(4, padded)
    score, about = floats(splits, 3, rows), floats(3, rows)
    pick = torch.empty(splits, 2, rows, dtype=torch.int32, device=x_nd.device)
    constants = {"D": dim, "D_PAD": pad, "WIDE": launch.wide(x_nd, codebook_kd, half, score)}
    launch.run(
        prepare_kernel, (padded // PREPARE["BLOCK_K"],), PREPARE,
        codebook_kd, half, square, power, norm, lost, codes, codebook_kd.stride(0),
        **constants,
    )  # fmt: skip
    launch.run(
        scan_kernel, (blocks, splits), config,
        x_nd, half, square, power, score, pick, about, rows, x_nd.stride(0), tiles, tiles_each,
        TILE_MASK=(1 << bits) - 1, **constants,
    )  # fmt: skip
    launch.run(
        settle_kernel, (triton.cdiv(rows, SETTLE["BLOCK_N"]),), SETTLE,
        x_nd, codebook_kd, score, pick, about, norm, lost, index,
        rows, codes, padded, x_nd.stride(0), codebook_kd.stride(0), splits,
        TILE_BITS=bits, **constants,
    )  # fmt: skip
    return index


def bucket(rows: int, dim: int) -> str:
    """The table's name for a shape: ``d256``, or ``d256-few`` where the codes are split too."""
    (width,) = [w for w in (64, 256, 1024) if w >= dim][:1]
    return f"d{width}-few" if rows <= _FEW_ROWS else f"d{width}"
