"""The usual ways of writing the search for the nearest code in torch; no answer need be exact.

A rival is given its codebook beforehand, in whatever form it likes best.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Search = Callable[[Tensor], Tensor]
Rival = Callable[[Tensor], Search]  # of the codebook


def cdist(codebook: Tensor) -> Search:
    return lambda x: torch.cdist(x, codebook).argmin(1)


def expanded(codebook: Tensor) -> Search:
    square, transposed = codebook.square().sum(1), codebook.t()
    return lambda x: (x.square().sum(1, keepdim=True) + square - 2 * x @ transposed).argmin(1)


def addmm(codebook: Tensor) -> Search:
    square, transposed = codebook.square().sum(1), codebook.t()
    return lambda x: torch.addmm(square, x, transposed, alpha=-2).argmin(1)


def addmm_chunks(codebook: Tensor) -> Search:
    square, transposed = codebook.square().sum(1), codebook.t()
    return lambda x: torch.cat(
        [torch.addmm(square, part, transposed, alpha=-2).min(1)[1] for part in x.split(1024)]
    )


PLAIN: tuple[Rival, ...] = (cdist, expanded, addmm, addmm_chunks)
