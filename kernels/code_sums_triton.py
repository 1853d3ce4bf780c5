"""``code_sums`` on a GPU: the one-hot matrix times the vectors, deterministic, no atomics.

A program owns BLOCK_K codes and BLOCK_D dimensions, and walks over its share of the rows; shares
are added afterwards, always in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.launch import Config
from wmfast.kernels.lint import Case
from wmfast.kernels.offsets import far
from wmfast.kernels.tune import Tunable

_SHARES = 32  # at most: each is a (K, D) of float32 in memory


@triton.jit
def share_kernel(
    x, index, count, total,
    rows, stride, codes, rows_each,
    D: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """count float32 (shares, K), total float32 (shares, K, D) of one share of the rows."""
    code = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    dim = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    share = far(tl.program_id(2), WIDE)
    last = tl.minimum((share + 1) * rows_each, rows)
    hits = tl.zeros([BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in tl.range(share * rows_each, last, BLOCK_N):
        row = far(start, WIDE) + tl.arange(0, BLOCK_N)
        nearest = tl.load(index + row, mask=row < last, other=-1).to(tl.int32)
        mask = (row < last)[:, None] & (dim < D)[None, :]
        vector = tl.load(x + row[:, None] * stride + dim[None, :], mask=mask, other=0.0)
        hit = (code[:, None] == nearest[None, :]).to(tl.float32)  # [BLOCK_K, BLOCK_N]
        hits += tl.sum(hit, 1)
        one_hot = hit.to(tl.bfloat16)
        high = vector.to(tl.bfloat16)
        vector -= high.to(tl.float32)
        middle = vector.to(tl.bfloat16)
        low = (vector - middle.to(tl.float32)).to(tl.bfloat16)
        sums = tl.dot(one_hot, high, sums)
        sums = tl.dot(one_hot, middle, sums)
        sums = tl.dot(one_hot, low, sums)
    place = share * codes + code
    mask = (code < codes)[:, None] & (dim < D)[None, :]
    tl.store(total + place[:, None] * D + dim[None, :], sums, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(count + place, hits, mask=code < codes)


def code_sums_triton(
    x_nd: Tensor, index_n: Tensor, codes: int, *, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """Counts (codes,) and sums (codes, D) of x (N, D) float32 by index (N,) int64."""
    rows, dim = x_nd.shape
    x_nd, index_n = x_nd if x_nd.stride(1) == 1 else x_nd.contiguous(), index_n.contiguous()
    if config is None:
        config = launch.config_of("code_sums", x_nd, "all")
    # Where D is 0 there still are counts.
    blocks = triton.cdiv(codes, config["BLOCK_K"]), max(1, triton.cdiv(dim, config["BLOCK_D"]))
    wanted = min(_SHARES, max(1, 2 * launch.processors(x_nd.device) // (blocks[0] * blocks[1])))
    steps = max(1, triton.cdiv(rows, config["BLOCK_N"] * wanted))
    rows_each = steps * config["BLOCK_N"]
    shares = max(1, triton.cdiv(rows, rows_each))
    count = torch.empty(shares, codes, device=x_nd.device)
    total = torch.empty(shares, codes, dim, device=x_nd.device)
    launch.run(
        share_kernel, (*blocks, shares), config,
        x_nd, index_n, count, total, rows, x_nd.stride(0), codes, rows_each,
        D=dim, WIDE=launch.wide(x_nd, index_n, total),
    )  # fmt: skip
    return count.sum(0), total.sum(0)


def lint_cases() -> Iterator[Case]:
    """Every config of the table, at D = 256."""
    kinds = {"x": "*fp32", "index": "*i64", "count": "*fp32", "total": "*fp32"}
    sizes = {"rows": "i32", "stride": "i32:16", "codes": "i32", "rows_each": "i32:16"}
    for entry in launch.entries("code_sums"):
        yield Case(
            f"code_sums sm{entry.sm}",
            share_kernel,
            kinds | sizes,
            {"D": 256, "WIDE": False},
            entry.config,
            entry.sm,
            tensor_cores=True,
        )


def tunables(device: torch.device) -> Iterator[Tunable]:
    """A batch of 32 frames of 336 tokens, with the codebook of the models."""
    x_nd = torch.randn(32 * 336, 256, device=device)
    index_n = torch.randint(512, (len(x_nd),), device=device)
    candidates = tuple(
        {"BLOCK_N": n, "BLOCK_K": k, "BLOCK_D": d, "num_warps": warps, "num_stages": stages}
        for n, k, d, warps, stages in itertools.product(
            (32, 64), (64, 128), (64, 128), (4, 8), (2, 3)
        )
    )

    def call(config: Config) -> Tensor:
        return code_sums_triton(x_nd, index_n, 512, config=config)[1]

    yield Tunable("code_sums", "any", "all", candidates, call)
