"""code_sums: counts and sums of the vectors of each code, and the op's registration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from wmfast.kernels import code_sums, code_sums_reference


def draw(n: int = 300, k: int = 20, d: int = 7) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    return x, torch.randint(k - 1, (n,), generator=generator), k


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_equals_the_float64_reference(device: str) -> None:
    x, index, codes = draw()
    count, total = code_sums(x.to(device), index.to(device), codes)
    exact_count, exact_total = code_sums_reference(x, index, codes)
    assert torch.equal(count.cpu(), exact_count.float())
    torch.testing.assert_close(total.cpu(), exact_total.float(), rtol=1e-5, atol=1e-5)
    assert count[-1] == 0
    assert count.sum() == len(x)


@pytest.mark.gpu
def test_the_same_bits_every_time() -> None:
    x, index, codes = (t.cuda() if isinstance(t, Tensor) else t for t in draw(50_000, 5, 256))
    first = code_sums(x, index, codes)[1]
    assert all(torch.equal(code_sums(x, index, codes)[1], first) for _ in range(5))


def test_opcheck_and_one_compiled_graph() -> None:
    x, index, codes = draw()
    torch.library.opcheck(torch.ops.wmfast.code_sums.default, (x, index, codes))
    compiled = torch.compile(code_sums, backend="aot_eager", fullgraph=True)
    for got, want in zip(compiled(x, index, codes), code_sums(x, index, codes), strict=True):
        assert torch.equal(got, want)


def test_bad_input_is_named() -> None:
    x, index, codes = draw()
    with pytest.raises(ValueError, match=r"index \(299,\)"):
        code_sums(x, index[1:], codes)
    with pytest.raises(ValueError, match="codes 0"):
        code_sums(x, index, 0)
    with pytest.raises(TypeError, match="int32"):
        code_sums(x, index.int(), codes)


def test_one_device_and_no_gradient() -> None:
    x, index, codes = draw()
    with pytest.raises(ValueError, match="x is on cpu, index on meta: one device is allowed"):
        code_sums(x, index.to("meta"), codes)
    count, total = code_sums(x.requires_grad_(), index, codes)
    assert not count.requires_grad
    assert not total.requires_grad
