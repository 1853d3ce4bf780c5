"""nearest_code in C++: every path of this machine gives the index that float64 gives.

The AMX path runs on emulated tiles in csrc/tests/test_nearest_code.cpp where the machine has none.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from wmfast.kernels import nearest_code, nearest_code_reference
from wmfast.kernels.nearest_code_cpu import nearest_code_cpp

from wmfast import _core

PATHS = _core.nearest_code_paths()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def truth(x: Tensor, codebook: Tensor) -> Tensor:
    """The reference in parts: its (N, K, D) differences are large."""
    flat = x.reshape(-1, x.shape[-1])
    rows = max(1, (1 << 22) // codebook.numel())
    parts = [nearest_code_reference(part, codebook) for part in flat.split(rows)]
    return torch.cat(parts).view(x.shape[:-1])


def assert_every_path_agrees(x: Tensor, codebook: Tensor, expected: Tensor | None = None) -> None:
    expected = truth(x, codebook) if expected is None else expected
    for path in PATHS:
        for threads in (1, 2):
            index = nearest_code_cpp(x, codebook, threads=threads, path=path)
            assert torch.equal(index, expected), (path, threads)


def assert_every_path_is_nearest(x: Tensor, codebook: Tensor) -> None:
    """All paths give one answer: the reference's, or a code as near as float64 can tell."""
    expected = truth(x, codebook)
    first = nearest_code_cpp(x, codebook, threads=1, path=PATHS[0])
    assert_every_path_agrees(x, codebook, first)
    other = first != expected
    for row, ours, theirs in zip(x[other], first[other], expected[other], strict=True):
        near, nearest = (sum_of_squares(row, codebook[code]) for code in (ours, theirs))
        assert abs(near - nearest) <= 2.0**-52 * x.shape[-1] * nearest


def sum_of_squares(row: Tensor, code: Tensor) -> Fraction:
    """Squared distance without any rounding."""
    pairs = zip(row.tolist(), code.tolist(), strict=True)
    return sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs), Fraction())


# Every value is a multiple of a power of two that keeps float64 sums exact as long as x and codes
# have one factor, so that ties are ties whatever the order of the sum; the factors move them to
# where float32 goes wrong. With two factors a square has more bits than a double.
VALUES = {
    "integers": lambda g, n, d: torch.randint(-3, 4, (n, d), generator=g).float(),
    "fine steps": lambda g, n, d: torch.randint(-(2**20), 2**20, (n, d), generator=g) / 2**18,
    "rarely not zero": lambda g, n, d: (torch.rand(n, d, generator=g) > 0.9).float(),
}
FACTORS = (1.0, 2.0**-140, 2.0**-120, 2.0**-75, 2.0**57, 2.0**60, 2.0**100)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(VALUES)),
    n=st.integers(0, 200),
    k=st.one_of(st.integers(1, 80), st.integers(1, 5000)),
    d=st.integers(1, 100),
    factor_x=st.sampled_from(FACTORS),
    factor_c=st.sampled_from(FACTORS),
    shift=st.sampled_from([0.0, 0.0, 64.0]),
    copies=st.booleans(),
    poison=st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_every_path_gives_the_float64_argmin(
    kind: str,
    n: int,
    k: int,
    d: int,
    factor_x: float,
    factor_c: float,
    shift: float,
    copies: bool,
    poison: list[float],
    seed: int,
) -> None:
    n, k = min(n, 200_000 // (k * d) + 1), min(k, 100_000 // d)
    g = torch.Generator().manual_seed(seed)
    x = (VALUES[kind](g, n, d) + shift) * factor_x
    codebook = (VALUES[kind](g, k, d) + shift) * factor_c
    if copies:
        codebook = codebook[torch.randint((k + 1) // 2, (k,), generator=g)]
    for value in poison:
        for tensor in (x, codebook):
            if tensor.numel():
                tensor.view(-1)[torch.randint(tensor.numel(), (), generator=g)] = value
    if factor_x == factor_c:
        assert_every_path_agrees(x, codebook)
    else:
        assert_every_path_is_nearest(x, codebook)


def test_a_tie_but_for_the_rounding_of_float64() -> None:
    """Found by the test above: the reference's sum, in another order, tells the codes apart."""
    g = torch.Generator().manual_seed(1)
    x = (VALUES["rarely not zero"](g, 3, 11) + 64.0) * 2.0**-75
    codebook = (VALUES["rarely not zero"](g, 3, 11) + 64.0) * 2.0**-120
    assert_every_path_is_nearest(x, codebook)


@pytest.mark.parametrize(
    ("n", "k", "d"), [(1, 1, 1024), (300, 512, 48), (97, 70, 1023), (20, 5000, 33), (700, 65, 257)]
)
def test_normal_values_of_many_shapes(n: int, k: int, d: int) -> None:
    assert_every_path_agrees(normal(1, n, d), normal(2, k, d))


def test_a_codebook_beyond_the_cache() -> None:
    x, codebook = normal(1, 700, 96), normal(2, 6000, 96)
    codebook[3000:] = codebook[:3000]
    assert_every_path_agrees(x, codebook, truth(x, codebook[:3000]))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_16_bit_values_are_taken_as_they_are(
    x_dtype: torch.dtype, codebook_dtype: torch.dtype
) -> None:
    x, codebook = normal(1, 90, 37).to(x_dtype), normal(2, 70, 37).to(codebook_dtype)
    x[0, 0], x[1, 0], codebook[3, 3] = math.nan, 1e-7, -math.inf
    assert_every_path_agrees(x, codebook)


def test_vectors_may_lie_anyhow() -> None:
    store, codebook = normal(1, 40, 64), normal(2, 50, 24)
    for x in (
        store[:, 8:32],  # rows apart
        store[::3, 8:32],
        store[:, ::2][:, :24],  # elements apart
        store.t()[:24].t(),
        store[0, :24].expand(7, 24),  # one row many times
        store.view(4, 10, 64)[:, 2:5, :24],
        store.view(-1)[3 : 3 + 24 * 5].view(5, 24),  # not on a boundary
    ):
        expected = truth(x.contiguous(), codebook)
        assert_every_path_agrees(x, codebook, expected)
        assert_every_path_agrees(x, codebook.t().contiguous().t(), expected)
        assert_every_path_agrees(x.flip(0), codebook, expected.flip(0))
    assert_every_path_agrees(store[:, :1], codebook[:, :1])


def test_negated_views_are_read_with_their_sign() -> None:
    x = torch.view_as_complex(normal(1, 20, 8, 2)).conj().imag
    assert x.is_neg()
    codebook = normal(2, 9, 8)
    assert torch.equal(nearest_code(x, codebook), truth(x.clone(), codebook))


WRITES = {
    "in place": lambda c: c.add_(1),
    "one element": lambda c: c.view(-1)[-1:].fill_(9.0),
    "through .data": lambda c: c.data.neg_(),
    "through numpy": lambda c: np.square(c.numpy(), out=c.numpy()),
    "through a view": lambda c: c[3:5].zero_(),
    "by swapping rows": lambda c: c.copy_(c.flip(0)),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_changed_codebook_is_packed_again(write: str) -> None:
    x, codebook = normal(1, 200, 12), normal(2, 30, 12)
    assert torch.equal(nearest_code(x, codebook), truth(x, codebook))
    before = _core.nearest_code_packs()
    nearest_code(x, codebook)
    nearest_code(x, codebook.clone())
    assert _core.nearest_code_packs() == before  # the same bits: nothing to pack
    WRITES[write](codebook)
    assert torch.equal(nearest_code(x, codebook), truth(x, codebook))
    assert _core.nearest_code_packs() == before + 1


def test_inference_tensors_have_no_version_and_work() -> None:
    with torch.inference_mode():
        x, codebook = normal(1, 50, 12), normal(2, 30, 12)
        assert torch.equal(nearest_code(x, codebook), truth(x, codebook))
        codebook.mul_(-1)
        assert torch.equal(nearest_code(x, codebook), truth(x, codebook))


def test_flushing_denormals_in_this_thread_changes_nothing() -> None:
    x, codebook = 1e-40 * normal(1, 30, 6), 1e-40 * normal(2, 20, 6)
    expected = truth(x, codebook)
    assert len(expected.unique()) > 5
    assert torch.set_flush_denormal(True)
    try:
        for path in PATHS:
            assert torch.equal(nearest_code_cpp(x, codebook, path=path), expected)
        assert not (torch.tensor([1e-40]) * 2).any()  # the thread's own setting is back
    finally:
        torch.set_flush_denormal(False)


def test_calls_from_many_threads_at_once() -> None:
    sets = [(normal(i, 500, 16), normal(-i, 40 + i, 16)) for i in range(1, 5)]
    expected = [truth(*pair) for pair in sets]
    right: list[bool] = []

    def search(i: int) -> None:
        right.extend(
            torch.equal(nearest_code_cpp(*sets[i], threads=2), expected[i]) for _ in range(50)
        )

    threads = [threading.Thread(target=search, args=(i % 4,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 300


def test_a_forked_child_searches_with_threads_of_its_own() -> None:
    code = """
import os, signal, torch
from wmfast.kernels.nearest_code_cpu import nearest_code_cpp
x, c = torch.randn(3000, 64), torch.randn(200, 64)
expected = nearest_code_cpp(x, c, threads=2)
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if torch.equal(nearest_code_cpp(x, c, threads=2), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("path", ["avx512", "avx2", "scalar"])
def test_wmfast_cpu_forces_a_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = normal(1, 60, 9), normal(2, 20, 9)
    monkeypatch.setenv("WMFAST_CPU", path)
    if path in PATHS:
        assert torch.equal(nearest_code(x, codebook), truth(x, codebook))
    else:
        with pytest.raises(ValueError, match=f"WMFAST_CPU is {path}, but this machine has no such"):
            nearest_code(x, codebook)


def test_a_path_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, 1)
    monkeypatch.setenv("WMFAST_CPU", "neon")
    words = "^WMFAST_CPU is 'neon', allowed are amx, avx512, avx2, scalar$"
    with pytest.raises(ValueError, match=words):
        nearest_code(x, x)
    if "amx" not in PATHS:
        monkeypatch.setenv("WMFAST_CPU", "amx")
        with pytest.raises(ValueError, match=r"^WMFAST_CPU is amx, but this machine has no such"):
            nearest_code(x, x)
    with pytest.raises(ValueError, match=r"^path is neon"):
        nearest_code_cpp(x, x, path="neon")


def test_wmfast_kernels_torch_does_without_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = normal(1, 60, 9), normal(2, 20, 9) + 50
    before = _core.nearest_code_packs()
    monkeypatch.setenv("WMFAST_KERNELS", "torch")
    assert torch.equal(nearest_code(x, codebook), truth(x, codebook))
    assert _core.nearest_code_packs() == before
    monkeypatch.setenv("WMFAST_KERNELS", "auto")
    assert torch.equal(nearest_code(x, codebook), truth(x, codebook))
    assert _core.nearest_code_packs() == before + 1


def test_the_compiled_call_is_one_graph() -> None:
    x, codebook = normal(1, 30, 9), normal(2, 20, 9)
    compiled = torch.compile(
        lambda x, c: nearest_code(2 * x, c) + 1, backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(x, codebook), truth(2 * x, codebook) + 1)


def test_paths_are_in_order_and_scalar_is_always_there() -> None:
    known = ["amx", "avx512_bf16", "avx512", "avx2", "scalar"]
    assert [path for path in known if path in PATHS] == PATHS
    assert PATHS[-1] == "scalar"
    assert os.environ.get("WMFAST_CPU", "") in ("", *known)
