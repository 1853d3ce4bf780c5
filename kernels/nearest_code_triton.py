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
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.launch import Config
from wmfast.kernels.nearest_code_scan import prepare_kernel, scan_kernel
from wmfast.kernels.nearest_code_settle import settle_kernel

PREPARE: Config = {"BLOCK_K": 8, "num_warps": 4, "num_stages": 1}
SETTLE: Config = {"BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 1}
_FEW_ROWS = 4096  # up to here the codes are split over programs too


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
