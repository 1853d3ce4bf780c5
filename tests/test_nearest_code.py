"""nearest_code: the exact argmin, whatever the rounding; its dispatch and registration."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from wmfast.kernels import code_sums, film_attention, nearest_code, nearest_code_reference
from wmfast.kernels.dispatch import choose_body

# The module, which the function of the same name hides as an attribute of the package.
bodies = importlib.import_module("wmfast.kernels.nearest_code")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near_ties(seed: int, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """Codes a few float32 roundings apart, vectors at and between them."""
    code = normal(seed, 1, d) + 3e-7 * normal(seed + 1, k, d)
    pick = torch.randint(k, (2, n), generator=torch.Generator().manual_seed(seed))
    return (code[pick[0]] + code[pick[1]]) / 2, code


CASES = {
    "normal": lambda n, k, d: (normal(1, n, d), normal(2, k, d)),
    "small integers: many exact ties": lambda n, k, d: (
        normal(1, n, d).round(),
        normal(2, k, d).round(),
    ),
    "duplicated codes": lambda n, k, d: (
        normal(1, n, d),
        normal(2, (k + 1) // 2, d).repeat(2, 1)[:k],
    ),
    "near ties": lambda n, k, d: near_ties(1, n, k, d),
    "far from the origin": lambda n, k, d: (1e4 + normal(1, n, d), 1e4 + normal(2, k, d)),
    "tiny: squares vanish in float32": lambda n, k, d: (
        1e-25 * normal(1, n, d),
        1e-25 * normal(2, k, d),
    ),
    "huge: squares overflow float32": lambda n, k, d: (
        1e25 * normal(1, n, d),
        1e25 * normal(2, k, d),
    ),
    "tiny vectors, huge codes": lambda n, k, d: (1e-25 * normal(1, n, d), 1e12 * normal(2, k, d)),
    "huge vectors, small codes": lambda n, k, d: (1e10 * normal(1, n, d), normal(2, k, d)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("n", "k", "d"), [(70, 33, 48), (9, 600, 300), (40, 5, 1), (3, 1, 2)])
def test_equals_the_float64_argmin(case: str, n: int, k: int, d: int) -> None:
    x, codebook = CASES[case](n, k, d)
    assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook))


def test_float32_alone_would_be_wrong_on_the_near_ties() -> None:
    x, codebook = near_ties(1, 200, 33, 48)
    naive = torch.addmm(codebook.square().sum(1), x, codebook.t(), alpha=-2).argmin(1)
    assert not torch.equal(naive, nearest_code_reference(x, codebook))
    assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook))


def test_the_reference_does_not_depend_on_strides() -> None:
    """Reordered copies of one code are equally far from a constant vector but for the last bit."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(300, generator=generator)
        codebook = torch.stack([values[torch.randperm(300, generator=generator)] for _ in range(9)])
        x = torch.full((5, 300), 0.1)
        expected = nearest_code_reference(x, codebook)
        assert torch.equal(nearest_code_reference(x.t().contiguous().t(), codebook), expected)
        assert torch.equal(nearest_code_reference(x, codebook.t().contiguous().t()), expected)


def test_code_sums_of_what_is_large_or_not_finite() -> None:
    x, index = torch.ones(6, 2), torch.tensor([0, 1, 1, 2, 3, 3])
    largest = torch.finfo(torch.float32).max
    x[0, 0], x[1, 0], x[3, 1], x[4:, 0] = largest, math.inf, math.nan, largest
    count, total = code_sums(x, index, 5)
    assert count.tolist() == [1, 2, 1, 2, 0]
    want = [[largest, 1], [math.inf, 2], [1, math.nan], [math.inf, 2], [0, 0]]
    torch.testing.assert_close(total, torch.tensor(want), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(TypeError, match="float64"):
        code_sums(x.double(), index, 5)


def test_more_rows_than_a_chunk() -> None:
    x, codebook = normal(1, 3000, 8), normal(2, 512, 8)
    assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook))


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    assert nearest_code(torch.tensor([[0.0], [1.0], [-2.0]]), codebook).tolist() == [1, 1, 2]
    everywhere_equal = nearest_code(normal(1, 50, 7), normal(2, 1, 7).repeat(64, 1))
    assert (everywhere_equal == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_exact_too(dtype: torch.dtype) -> None:
    x, codebook = normal(1, 200, 16).to(dtype), normal(2, 64, 16).to(dtype)
    assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook))


def test_autocast_does_not_round_the_scores() -> None:
    x, codebook = near_ties(3, 200, 33, 48)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nearest_code(x, codebook)
    assert torch.equal(inside, nearest_code_reference(x, codebook))


def test_exact_where_the_user_allows_bfloat16_products() -> None:
    x, codebook = normal(1, 300, 48), normal(2, 100, 48)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert bodies._operand_roundoff() > 0
        assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook))
    finally:
        torch.set_float32_matmul_precision(before)
    assert bodies._operand_roundoff() == 0


@pytest.mark.parametrize("body", ["_nearest_code_cpu", "_nearest_code_cuda"])
def test_nan_and_infinity(body: str) -> None:
    x, codebook = normal(1, 12, 4), normal(2, 9, 4)
    x[0, 1], x[1, 0], x[2, 2] = math.nan, math.inf, -math.inf
    codebook[0, 0], codebook[4, 1], codebook[5, 3] = math.nan, math.inf, -math.inf
    index = getattr(bodies, body)(x, codebook)
    assert torch.equal(index, nearest_code_reference(x, codebook))
    assert (index[:3] == 0).all()  # nothing is at a finite distance
    assert not torch.isin(index[3:], torch.tensor([0, 4, 5])).any()


@pytest.mark.parametrize("case", CASES)
def test_the_sync_free_body_for_a_gpu_gives_the_same(case: str) -> None:
    x, codebook = CASES[case](70, 33, 48)
    index = bodies._nearest_code_cuda(x, codebook)
    assert torch.equal(index, nearest_code_reference(x, codebook))


def test_the_sync_free_body_is_exact_whatever_the_codes_sizes() -> None:
    codebook, x = normal(1, 64, 8), normal(2, 200, 8)
    codebook[5] = 1e9  # a bound that follows the largest code would take any code for a tie
    assert torch.equal(bodies._nearest_code_cuda(x, codebook), nearest_code_reference(x, codebook))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float32])
def test_an_out_dtype_that_cannot_hold_every_index_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"out_dtype is torch\.\w+: allowed .* 299"):
        nearest_code(normal(1, 5, 4), normal(2, 300, 4), out_dtype=dtype)
    assert nearest_code(normal(1, 5, 4), normal(2, 128, 4), out_dtype=torch.int8).max() >= 0


def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="x is on cpu, codebook on meta"):
        nearest_code(normal(1, 5, 4), normal(2, 30, 4).to("meta"))


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    x, codebook = normal(1, 3000, 48), normal(2, 512, 48)
    index = nearest_code(x.cuda(), codebook.cuda())
    assert torch.equal(index.cpu(), nearest_code_reference(x, codebook))


def test_shapes_and_output_dtype() -> None:
    codebook = normal(2, 20, 6)
    assert nearest_code(torch.empty(0, 6), codebook).shape == (0,)
    assert nearest_code(torch.empty(2, 0, 6), codebook).shape == (2, 0)
    assert nearest_code(codebook[3], codebook).tolist() == 3
    grid = normal(1, 2, 3, 6)
    index = nearest_code(grid, codebook, out_dtype=torch.int32)
    assert index.dtype == torch.int32
    assert torch.equal(index, nearest_code(grid.view(6, 6), codebook).view(2, 3).int())
    transposed = normal(1, 6, 30).t()
    assert torch.equal(
        nearest_code(transposed, codebook), nearest_code(transposed.clone(), codebook)
    )


def test_inputs_that_require_grad_are_fine() -> None:
    x, codebook = normal(1, 5, 3).requires_grad_(), normal(2, 4, 3).requires_grad_()
    index = nearest_code(x, codebook)
    assert not index.requires_grad
    assert torch.equal(index, nearest_code_reference(x, codebook))


@pytest.mark.parametrize(
    ("x", "codebook", "error", "words"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 5), ValueError, r"x has shape \(3, 4\)"),
        (torch.zeros(()), torch.zeros(2, 5), ValueError, r"x has shape \(\)"),
        (torch.zeros(3, 4), torch.zeros(0, 4), ValueError, r"codebook has shape \(0, 4\)"),
        (torch.zeros(3, 4), torch.zeros(4), ValueError, r"codebook has shape \(4,\)"),
        (torch.zeros(3, 4).double(), torch.zeros(2, 4), TypeError, "float64"),
        (torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(2, 4), TypeError, "uint8"),
    ],
)
def test_bad_input_is_named(
    x: Tensor, codebook: Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        nearest_code(x, codebook)


def test_opcheck_and_one_compiled_graph() -> None:
    x, codebook = normal(1, 6, 3), normal(2, 4, 3)
    torch.library.opcheck(torch.ops.wmfast.nearest_code.default, (x, codebook))
    compiled = torch.compile(nearest_code, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, codebook), nearest_code(x, codebook))


@pytest.mark.parametrize("op", ["nearest_code", "film_attention", "code_sums"])
def test_wmfast_kernels_chooses_the_body(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> Tensor:
        if op == "nearest_code":
            return nearest_code(torch.ones(2, 3), torch.ones(4, 3))
        if op == "code_sums":
            return code_sums(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64), 4)[1]
        return film_attention(*torch.ones(3, 1, 1, 2, 4), None, None)

    for value in ("auto", "torch", ""):  # empty counts as not set, as WMFAST_CPU does
        monkeypatch.setenv("WMFAST_KERNELS", value)
        call()
    monkeypatch.setenv("WMFAST_KERNELS", "triton")
    with pytest.raises(RuntimeError, match=f"{op} got cpu tensors, allowed is cuda"):
        call()
    monkeypatch.setenv("WMFAST_KERNELS", "cuda")
    with pytest.raises(ValueError, match="'cuda': allowed are auto, triton and torch"):
        call()


def test_auto_takes_triton_on_a_gpu_where_a_body_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WMFAST_KERNELS", raising=False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_body("op", cuda, ("triton", "torch")) == "triton"
    assert choose_body("op", cuda, ("torch",)) == "torch"
    assert choose_body("op", cpu, ("triton", "torch")) == "torch"
    monkeypatch.setenv("WMFAST_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="got cpu tensors"):
        choose_body("op", cpu, ("triton", "torch"))
    with pytest.raises(RuntimeError, match="op has no Triton body"):
        choose_body("op", cuda, ("cpp", "torch"))


def test_without_triton_a_gpu_gets_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmfast.kernels.dispatch._HAS_TRITON", False)
    monkeypatch.delenv("WMFAST_KERNELS", raising=False)
    cuda = torch.device("cuda")
    assert choose_body("op", cuda, ("triton", "cpp", "torch")) == "torch"
    monkeypatch.setenv("WMFAST_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="needs triton, which is not installed"):
        choose_body("op", cuda, ("triton", "torch"))


def test_the_default_dtype_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = torch.randn(200, 32), torch.randn(50, 32)
    expected = nearest_code_reference(x, codebook)
    torch.set_default_dtype(torch.float64)
    try:
        for body in ("torch", "auto"):
            monkeypatch.setenv("WMFAST_KERNELS", body)
            assert torch.equal(nearest_code(x, codebook), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_import_does_not_bring_triton() -> None:
    code = "import sys, wmfast.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
