"""The harness itself: what the interpreter gets wrong is corrected, outputs are poisoned."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from wmfast.kernels import launch


@triton.jit
def _product_kernel(a, b, out, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    row = tl.arange(0, SIZE)[:, None]
    column = tl.arange(0, SIZE)[None, :]
    left = tl.load(a + row * SIZE + column)
    right = tl.load(b + row * SIZE + column)
    tl.store(out + row * SIZE + column, tl.dot(left, right, input_precision=PRECISION))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_of_every_dtype(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 16, generator=generator).to(dtype)
    out = torch.empty(16, 16)
    _product_kernel[(1,)](a, b, out, SIZE=16, PRECISION="ieee")
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_tf32_rounds_its_operands() -> None:
    ones, out = torch.eye(16), torch.empty(16, 16)
    x = torch.full((16, 16), 1 + 2.0**-10 + 2.0**-12)
    _product_kernel[(1,)](ones, x, out, SIZE=16, PRECISION="tf32")
    assert torch.equal(out, torch.full((16, 16), 1 + 2.0**-10))
    _product_kernel[(1,)](ones, x, out, SIZE=16, PRECISION="ieee")
    assert torch.equal(out, x)


@triton.jit
def _cast_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


def test_bfloat16_is_the_nearest() -> None:
    """Ties to even, overflow, subnormals, infinity and NaN, as torch and a GPU have it."""
    x = torch.tensor([0.9999999, -0.9999999, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38, 1e-40])
    x = torch.cat([x, torch.tensor([torch.inf, torch.nan])])
    out = torch.empty(8, dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, out, SIZE=8)
    torch.testing.assert_close(out, x.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)
    assert out.tolist()[:5] == [1, -1, 1, 1 + 2.0**-6, torch.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.int64])
def test_outputs_are_poisoned(dtype: torch.dtype) -> None:
    like = torch.zeros(3, dtype=dtype)
    made = (torch.empty(3, dtype=dtype), torch.empty_like(like), like.new_empty(3))
    for tensor in made:
        assert tensor.isnan().all() if dtype.is_floating_point else (tensor < -1000).all()


def test_offsets_of_both_widths(offsets: str) -> None:
    assert launch.wide(torch.zeros(4, 4)) == (offsets == "int64")


def test_wide_looks_at_the_last_element() -> None:
    assert not launch.wide(torch.empty(0, 1 << 40, device="meta"))
    assert not launch.wide(torch.empty(1 << 31, device="meta"))
    assert launch.wide(torch.empty((1 << 31) + 1, device="meta"))
    every_other = torch.empty(3, 1 << 30, device="meta")[::2, :1]
    assert launch.wide(torch.zeros(2), every_other)
    assert not launch.wide(every_other[:1])
