"""nearest_code's Triton body in the interpreter: the exact argmin, at odd sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from wmfast.kernels import nearest_code_reference
from wmfast.kernels.nearest_code_triton import nearest_code_triton

TILES = {"BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 1}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near_ties(n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """Codes a few float32 roundings apart, vectors between two of them."""
    code = normal(1, 1, d) + 3e-7 * normal(2, k, d)
    pick = torch.randint(k, (2, n), generator=torch.Generator().manual_seed(3))
    return (code[pick[0]] + code[pick[1]]) / 2, code


def search(x: Tensor, codebook: Tensor, splits: int = 1) -> Tensor:
    return nearest_code_triton(x, codebook, config=TILES, splits=splits)


@pytest.mark.parametrize(
    ("n", "k", "d", "splits"), [(37, 53, 48, 2), (17, 5, 1, 1), (5, 130, 20, 3), (16, 16, 130, 1)]
)
def test_odd_sizes(n: int, k: int, d: int, splits: int, offsets: str) -> None:
    x, codebook = normal(1, n, d), normal(2, k, d)
    assert torch.equal(search(x, codebook, splits), nearest_code_reference(x, codebook))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact_too(dtype: torch.dtype) -> None:
    x, codebook = normal(1, 40, 32).to(dtype), normal(2, 33, 32).to(dtype)
    assert torch.equal(search(x, codebook), nearest_code_reference(x, codebook))
    mixed = search(x, codebook.float())
    assert torch.equal(mixed, nearest_code_reference(x, codebook))


CASES = {
    "small integers: many exact ties": (normal(1, 40, 6).round(), normal(2, 50, 6).round()),
    "duplicated codes": (normal(1, 40, 24), normal(2, 20, 24).repeat(2, 1)),
    "near ties": near_ties(40, 33, 24),
    "far from the origin": (1e4 + normal(1, 40, 24), 1e4 + normal(2, 33, 24)),
    "tiny: squares vanish in float32": (1e-25 * normal(1, 20, 24), 1e-25 * normal(2, 33, 24)),
    "subnormal": (1e-41 * normal(1, 20, 24), 1e-41 * normal(2, 33, 24)),
    "huge: squares overflow float32": (1e25 * normal(1, 20, 24), 1e25 * normal(2, 33, 24)),
    "tiny vectors, huge codes": (1e-25 * normal(1, 20, 24), 1e12 * normal(2, 33, 24)),
    "huge vectors, small codes": (1e10 * normal(1, 20, 24), normal(2, 33, 24)),
    "only the vectors lose bits": (
        1 + 1e-3 * normal(1, 40, 8),
        1 - 2 * torch.eye(4).repeat(1, 2),
    ),
    "only the codes lose bits": (normal(1, 40, 8).sign(), 1 + 1e-3 * normal(2, 33, 8)),
    "some squares overflow": (
        3e19 * normal(1, 20, 24),
        torch.cat([1e18 * normal(3, 9, 24), 3e19 * normal(2, 9, 24)]),
    ),
    "float64 cannot tell them apart": (1e17 * normal(1, 20, 1), normal(2, 33, 1)),
    "one large element hides the rest from float16": (
        torch.cat([torch.full((20, 1), 3e4), normal(1, 20, 23)], 1),
        torch.cat([torch.full((33, 1), 3e4), normal(2, 33, 23)], 1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_where_float16_scores_are_not(case: str) -> None:
    x, codebook = CASES[case]
    assert torch.equal(search(x, codebook, 2), nearest_code_reference(x, codebook))


def test_the_number_of_the_tile_in_a_score_counts_as_an_error() -> None:
    codebook = torch.full((1024, 2), 2.0)
    codebook[0] = torch.tensor([1.0, 8 * 2.0**-14])  # |c|^2 = 1 + 2^-22, in the first tile
    codebook[-1] = torch.tensor([1.0, 0.0])  # the nearest, in tile 63
    assert search(torch.zeros(1, 2), codebook).tolist() == [1023]


def test_nan_and_infinity() -> None:
    x, codebook = normal(1, 12, 4), normal(2, 40, 4)
    x[0, 1], x[1, 0], x[2, 2] = math.nan, math.inf, -math.inf
    codebook[0, 0], codebook[4, 1], codebook[5, 3] = math.nan, math.inf, -math.inf
    for splits in (1, 3):
        index = search(x, codebook, splits)
        assert torch.equal(index, nearest_code_reference(x, codebook))
        assert (index[:3] == 0).all()
    nothing = torch.full((3, 4), math.nan)
    assert search(x, nothing).tolist() == [0] * 12


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_a_strange_code_is_not_taken_for_zero(strange: float) -> None:
    x, codebook = 1e-3 * normal(1, 5, 4), normal(2, 20, 4)
    codebook[7, 2] = strange
    assert torch.equal(search(x, codebook), nearest_code_reference(x, codebook))


def test_strided_rows_and_none_at_all() -> None:
    wide_x, wide_code = normal(1, 20, 30), normal(2, 33, 40)
    x, codebook = wide_x[::2, 3:20], wide_code[1:, 5:22]
    assert torch.equal(search(x, codebook), nearest_code_reference(x, codebook))
    across = x.t().contiguous().t()
    assert torch.equal(search(across, codebook), search(x, codebook))
    assert search(x[:0], codebook).shape == (0,)


def test_rows_beyond_32_bit_offsets() -> None:
    # Pages of this memory that nobody touches are never made: its 4 GB cost nothing.
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.float16))
    x = far.as_strided((3, 8), (1 << 30, 1))
    x.copy_(normal(1, 3, 8))
    codebook = normal(2, 33, 8)
    assert torch.equal(search(x, codebook), nearest_code_reference(x, codebook))
