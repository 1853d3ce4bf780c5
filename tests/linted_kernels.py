"""A matrix product to try the lint on: sound in one configuration, refused in others."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from wmfast.kernels.lint import Case


@triton.jit
def _product_kernel(
    a, b, out, steps,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for step in tl.range(0, steps):
        left = tl.load(a + (rows[:, None] * steps + step) * K + inner[None, :])
        right = tl.load(b + (step * K + inner[:, None]) * N + columns[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(out + rows[:, None] * N + columns[None, :], total)


def product(
    sm: int, m: int, n: int, k: int, *, warps: int = 4, stages: int = 2, kind: str = "*fp16"
) -> Case:
    """out = a @ b, (m, steps k) by (steps k, n)."""
    return Case(
        f"product {m} x {n} x {k} {kind} sm{sm}",
        _product_kernel,
        {"a": kind, "b": kind, "out": "*fp32", "steps": "i32:16"},
        {"PRECISION": "ieee"},
        {"M": m, "N": n, "K": k, "num_warps": warps, "num_stages": stages},
        sm,
        tensor_cores=True,
    )


def lint_cases() -> Iterator[Case]:
    """A sound one and one that cannot be built."""
    yield product(90, 64, 32, 64)
    yield product(90, 64, 33, 64)
