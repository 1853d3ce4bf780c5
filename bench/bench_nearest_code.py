"""Nearest-code speed: wmfast's exact search beside the usual ways of writing it in torch.

    pytest bench/bench_nearest_code.py                       # on a GPU where there is one
    pytest bench/bench_nearest_code.py --benchmark-disable   # answers only, as CI runs it

Every rival must give the answer of ``nearest_code_reference`` before it is timed. Shapes: 8 frames
of an actor (patch codes), 8 frames of a VQ-VAE, and a training batch of 32. On a machine that
others use too, OMP_NUM_THREADS=1 keeps the threads from waiting for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from wmfast.kernels import nearest_code, nearest_code_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


RIVALS = {f.__name__: f for f in (nearest_code, cdist, expanded, addmm, addmm_chunks)}


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize(("n", "k", "d"), [(2688, 512, 48), (2688, 512, 256), (10752, 512, 256)])
def test_nearest_code(benchmark: Any, rival: str, n: int, k: int, d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(k, d, generator=generator)
    x = codebook[torch.randint(k, (n,), generator=generator)]
    x = x + 0.3 * torch.randn(n, d, generator=generator)
    search: Callable[[Tensor, Tensor], Tensor] = RIVALS[rival]
    truth = torch.cat([nearest_code_reference(part, codebook) for part in x[:512].split(64)])
    x, codebook = x.to(DEVICE), codebook.to(DEVICE)
    assert torch.equal(search(x, codebook)[:512].cpu(), truth)

    def call() -> None:
        search(x, codebook)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"nearest code {n} x {k} x {d} on {DEVICE}"
    benchmark.extra_info["torch"] = torch.__version__
    benchmark(call)
