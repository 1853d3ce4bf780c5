"""code_sums' Triton body in the interpreter: counts and sums at odd sizes."""

from __future__ import annotations

import pytest
import torch
from wmfast.kernels import code_sums_reference
from wmfast.kernels.code_sums_triton import code_sums_triton

TILES = {"BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_D": 16, "num_warps": 4, "num_stages": 1}


@pytest.mark.parametrize(
    ("n", "k", "d"), [(53, 37, 20), (100, 5, 33), (1, 1, 1), (0, 20, 8), (9, 4, 0)]
)
@pytest.mark.parametrize("shares", [1, 3])
def test_counts_and_sums(
    n: int, k: int, d: int, shares: int, offsets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = -(-k // 16) * max(1, -(-d // 16))
    monkeypatch.setattr("wmfast.kernels.launch.processors", lambda device: shares * blocks / 2)
    monkeypatch.setattr("wmfast.kernels.code_sums_triton._SHARES", shares)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 2 * d, generator=generator)[:, :d]
    index = torch.randint(k, (n,), generator=generator)
    count, total = code_sums_triton(x, index, k, config=TILES)
    exact_count, exact_total = code_sums_reference(x, index, k)
    assert torch.equal(count, exact_count.float())
    torch.testing.assert_close(total, exact_total.float(), rtol=1e-6, atol=1e-6)


def test_a_float32_is_taken_whole() -> None:
    x = torch.tensor([[1 + 2.0**-23], [-(1 + 2.0**-12)], [3e38], [2.0**-100]])
    count, total = code_sums_triton(x, torch.tensor([0, 1, 2, 3]), 5, config=TILES)
    assert count.tolist() == [1, 1, 1, 1, 0]
    assert torch.equal(total[:4], x)
    assert total[4].item() == 0
