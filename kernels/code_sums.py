"""How many vectors fell to each code, and their sum: what a moving-average codebook needs.

    count_k = #{n : index_n = k}        sum_k = sum of x_n over these n

Shapes: x (N, D), index (N,) -> count (K,), sum (K, D), both float32. On a GPU ``index_add_`` adds
by atomics in no fixed order; here the order is fixed, so that a run gives the same bits every time:
on CUDA a Triton kernel multiplies the one-hot matrix, which it never stores, with the vectors on
the tensor cores. A vector goes in as three bfloat16 pieces of 8 bits, which together are its
float32 value, so the sum is as good as one in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.dispatch import Body, choose_body

_BODIES: tuple[Body, ...] = ("triton", "torch")


def code_sums_reference(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """The truth, in float64."""
    one_hot = torch.nn.functional.one_hot(index, codes).double()  # (N, K)
    return one_hot.sum(0), one_hot.t() @ x.double()


def code_sums(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Counts float32 (codes,) and sums float32 (codes, D), the same bits every time.

    x (N, D) float32; index (N,) int64 in [0, codes). On a CPU an infinity or NaN stays in the sum
    of its code; in Triton it may spoil others, as may values beyond bfloat16's largest, 3.3895e38.
    Not differentiable. Raises ValueError for shapes or devices and TypeError for dtypes that don't
    fit, and what ``choose_body`` raises for ``WMFAST_KERNELS``.
    """
    if x.ndim != 2 or index.shape != x.shape[:1] or codes < 1:
        raise ValueError(
            f"x {tuple(x.shape)}, index {tuple(index.shape)}, codes {codes}: allowed are (N, D), "
            "(N,) and at least 1"
        )
    if x.dtype != torch.float32 or index.dtype != torch.int64:
        raise TypeError(f"x is {x.dtype}, index {index.dtype}: allowed are float32 and int64")
    if x.device != index.device:
        raise ValueError(f"x is on {x.device}, index on {index.device}: one device is allowed")
    count, total = torch.ops.wmfast.code_sums(x.detach(), index, codes)
    return count, total


def _code_sums_torch(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    x_nd, one_n = x.detach(), torch.ones_like(index, dtype=torch.float32)
    count = x_nd.new_zeros(codes).index_add_(0, index, one_n)
    return count, x_nd.new_zeros(codes, x_nd.shape[1]).index_add_(0, index, x_nd)


def _code_sums_cpu(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    choose_body("code_sums", x.device, _BODIES)  # refuses what can't be had, as on a GPU
    return _code_sums_torch(x, index, codes)


def _code_sums_cuda(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    body = choose_body("code_sums", x.device, _BODIES)
    if body == "torch" or not launch.supported(x.device):
        return _code_sums_torch(x, index, codes)
    from wmfast.kernels.code_sums_triton import code_sums_triton

    return code_sums_triton(x.detach(), index, codes)


def _code_sums_fake(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(codes), x.new_empty(codes, x.shape[1])


torch.library.define(
    "wmfast::code_sums", "(Tensor x, Tensor index, SymInt codes) -> (Tensor, Tensor)"
)
torch.library.impl("wmfast::code_sums", "CPU", _code_sums_cpu)
torch.library.impl("wmfast::code_sums", "CUDA", _code_sums_cuda)
torch.library.register_fake("wmfast::code_sums", _code_sums_fake)
