"""Nearest-code speed: wmfast's exact search beside the usual ways of writing it, and faiss.

    pytest bench/bench_nearest_code.py                       # on a GPU where there is one
    OMP_NUM_THREADS=1 pytest bench/bench_nearest_code.py     # one thread, as the training loop runs
    pytest bench/bench_nearest_code.py --benchmark-disable   # answers only, as CI runs it

Every rival must give the answer of ``nearest_code_reference`` before it is timed. Shapes: a frame,
8 frames and 128 frames, of patches (D = 48) and of a VQ-VAE (D = 256). On a CPU also each path of
``WMFAST_CPU`` that the machine has, and the torch body. faiss-cpu is timed where it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from wmfast.kernels import nearest_code, nearest_code_reference
from wmfast.kernels.nearest_code_cpu import nearest_code_cpp

from wmfast import _core

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Search = Callable[[Tensor, Tensor], Tensor]


def cdist(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(x, codebook).argmin(1)


def expanded(x: Tensor, codebook: Tensor) -> Tensor:
    squares = x.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return (squares - 2 * x @ codebook.t()).argmin(1)


def addmm(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.addmm(codebook.square().sum(1), x, codebook.t(), alpha=-2).argmin(1)


def addmm_chunks(x: Tensor, codebook: Tensor) -> Tensor:
    square, transposed = codebook.square().sum(1), codebook.t()
    return torch.cat(
        [torch.addmm(square, c, transposed, alpha=-2).min(1)[1] for c in x.split(1024)]
    )


def faiss_flat(x: Tensor, codebook: Tensor) -> Tensor:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def torch_body(x: Tensor, codebook: Tensor) -> Tensor:
    # The module, which the function of the same name hides as an attribute of the package.
    body: Search = importlib.import_module("wmfast.kernels.nearest_code")._nearest_code_torch
    return body(x, codebook)


RIVALS: dict[str, Search] = {
    f.__name__: f for f in (nearest_code, cdist, expanded, addmm, addmm_chunks)
}
if DEVICE == "cpu":
    RIVALS["torch_body"] = torch_body
    for path in _core.nearest_code_paths():
        RIVALS[path] = partial(nearest_code_cpp, path=path)
    if importlib.util.find_spec("faiss"):
        RIVALS["faiss_flat"] = faiss_flat


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("n", [336, 2688, 43008])
@pytest.mark.parametrize("d", [48, 256])
def test_nearest_code(benchmark: Any, rival: str, n: int, d: int) -> None:
    k = 512
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(k, d, generator=generator)
    x = torch.randn(n, d, generator=generator)
    search = RIVALS[rival]
    truth = torch.cat([nearest_code_reference(part, codebook) for part in x[:256].split(64)])
    x, codebook = x.to(DEVICE), codebook.to(DEVICE)
    assert torch.equal(search(x, codebook)[:256].cpu(), truth)

    def call() -> None:
        search(x, codebook)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"nearest code {n} x {k} x {d} on {DEVICE}, {torch.get_num_threads()} threads"
    benchmark.extra_info["torch"] = torch.__version__
    benchmark(call)
