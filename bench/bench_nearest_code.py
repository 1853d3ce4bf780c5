"""Nearest-code speed: wmfast's exact search beside the usual ways of writing it, and faiss.

    pytest bench/bench_nearest_code.py                       # on a GPU where there is one
    OMP_NUM_THREADS=1 pytest bench/bench_nearest_code.py     # one thread, as the training loop runs
    pytest bench/bench_nearest_code.py --benchmark-disable   # answers only, as CI runs it

Every rival must give the answer of ``nearest_code_reference`` before it is timed. Shapes: a frame,
8 frames and 128 frames, of patches (D = 48) and of a VQ-VAE (D = 256). On a CPU also each path of
``WMFAST_CPU`` that the machine has, and the torch body; torch.compile waits for
WMFAST_BENCH_COMPILE=1 there, as it needs a C++ compiler. faiss-cpu, scikit-learn and
vector-quantize-pytorch are timed where they are installed: `make bench-kernels` installs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import partial
from typing import Any

import pytest
import torch
from code_searches import PLAIN, Rival, Search, addmm
from torch import Tensor
from wmfast.kernels import nearest_code, nearest_code_reference
from wmfast.kernels.nearest_code_cpu import nearest_code_cpp

from wmfast import _core

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILE = DEVICE == "cuda" or os.environ.get("WMFAST_BENCH_COMPILE") == "1"
PATHS = _core.nearest_code_paths() if DEVICE == "cpu" else []
MODULES = {
    "faiss-cpu": "faiss",
    "scikit-learn": "sklearn",
    "vector-quantize-pytorch": "vector_quantize_pytorch",
}


def torch_compile(codebook: Tensor) -> Search:
    compiled: Search = torch.compile(addmm(codebook))
    return compiled


def faiss_flat(codebook: Tensor) -> Search:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return lambda x: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def sklearn_argmin(codebook: Tensor) -> Search:
    find = importlib.import_module("sklearn.metrics").pairwise_distances_argmin
    codes = codebook.numpy()
    return lambda x: torch.from_numpy(find(x.numpy(), codes))


def vector_quantize(codebook: Tensor) -> Search:
    """The layer in its eval mode: also gathers the codes, as it always does."""
    library = importlib.import_module("vector_quantize_pytorch")
    layer = library.VectorQuantize(dim=codebook.shape[1], codebook_size=len(codebook)).eval()
    layer.codebook = codebook

    def search(x: Tensor) -> Tensor:
        with torch.no_grad():
            index: Tensor = layer(x[None])[1][0]
        return index

    return search


def torch_body(codebook: Tensor) -> Search:
    # The module, which the function of the same name hides as an attribute of the package.
    body = importlib.import_module("wmfast.kernels.nearest_code")._nearest_code_torch
    return lambda x: body(x, codebook)


def rivals() -> dict[str, Rival]:
    found: dict[str, Rival] = {
        "nearest_code": lambda codebook: lambda x: nearest_code(x, codebook),
        **{f.__name__: f for f in PLAIN},
    }
    if COMPILE:
        found["torch_compile"] = torch_compile
    if DEVICE == "cpu":
        found["torch_body"] = torch_body
        for path in PATHS:
            found[path] = lambda codebook, path=path: partial(
                nearest_code_cpp, codebook=codebook, path=path
            )
        for name, rival in zip(MODULES, (faiss_flat, sklearn_argmin, vector_quantize), strict=True):
            if importlib.util.find_spec(MODULES[name]):
                found[rival.__name__] = rival
    return found


@pytest.mark.parametrize("rival", rivals())
@pytest.mark.parametrize("n", [336, 2688, 43008])
@pytest.mark.parametrize("d", [48, 256])
def test_nearest_code(benchmark: Any, rival: str, n: int, d: int) -> None:
    k = 512
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(k, d, generator=generator)
    x = torch.randn(n, d, generator=generator)
    truth = torch.cat([nearest_code_reference(part, codebook) for part in x[:256].split(64)])
    x, codebook = x.to(DEVICE), codebook.to(DEVICE)
    search = rivals()[rival](codebook)
    assert torch.equal(search(x)[:256].cpu(), truth)

    def call() -> None:
        search(x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"nearest code {n} x {k} x {d} on {DEVICE}, {torch.get_num_threads()} threads"
    benchmark.extra_info["torch"] = torch.__version__
    benchmark(call)
