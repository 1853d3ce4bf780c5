"""Nearest code of each vector: index_n = argmin_k |x_n - c_k|^2, ties to the lowest index.

Shapes: x (..., D), codebook (K, D) -> index (...). Dtypes: float32, bfloat16 or float16 in (the two
16-bit types convert to float32 without error), int64 out unless ``out_dtype`` says otherwise.

On a CPU the C++ core answers (``nearest_code_cpu.py``); what follows is the torch body, which
``WMFAST_KERNELS=torch`` asks for.

What it saves: the scores |c|^2 - 2 x.c come from a float32 matrix product in cache-sized chunks,
and yet the answer is that of float64 arithmetic. A float32 sum of n products carries an error of at
most gamma_n sum|a_i b_i|, gamma_n = n u / (1 - n u), u = 2^-24, in whatever order it is added
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). So with C = max|c|

    |score_float32 - score| <= E = gamma_{D+2} (2 |x| C + C^2)

and a row whose two best scores lie more than 2 E apart is settled. The few others are decided by
float64 distances, computed only for the codes within 2 E of the best.

On a GPU a Triton kernel does the same in one pass, with scores from float16 operands and a bound
to match (``nearest_code_triton.py``).

A NaN distance counts as +inf (a NaN code is never chosen while another is at a finite distance); a
row without any finite distance gets index 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels.dispatch import Body, choose_body
from wmfast.kernels.nearest_code_cpu import nearest_code_cpp

_BODIES: tuple[Body, ...] = ("triton", "cpp", "torch")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OUT_DTYPES: tuple[torch.dtype, ...] = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
_MAX_TRITON_DIM = 1024
_MAX_DIM = 1 << 18  # the slack below covers the rounding of the norms up to here
_CHUNK = 1 << 19  # float32 scores in flight: 2 MB, an L2 cache
_RECHECK = 1 << 23  # float64 differences in flight at most: 64 MB
_SLACK = 1.05  # for the rounding of the bound itself


def nearest_code_reference(x: Tensor, codebook: Tensor) -> Tensor:
    """The truth, in float64: int64 (...) for x (..., D) and codebook (K, D).

    Contiguous before it is summed: the order of a sum, so its last bit, would follow the strides.
    """
    difference = (x.double().unsqueeze(-2) - codebook.double()).contiguous()  # (..., K, D)
    distance = difference.square().sum(-1)
    return distance.nan_to_num(nan=math.inf, posinf=math.inf).argmin(-1)


def nearest_code(x: Tensor, codebook: Tensor, *, out_dtype: torch.dtype = torch.int64) -> Tensor:
    """Index of the nearest code by squared L2, ties to the lowest index.

    x (..., D) and codebook (K, D), float32, bfloat16 or float16 on one device; returns
    ``out_dtype`` (...). Exact: the argmin that float64 arithmetic gives, for every input dtype. Not
    differentiable. Raises ValueError for shapes, devices or an ``out_dtype`` that don't fit and
    TypeError for other dtypes.
    """
    if codebook.ndim != 2 or 0 in codebook.shape or codebook.shape[1] > _MAX_DIM:
        raise ValueError(
            f"codebook has shape {tuple(codebook.shape)}: allowed is (K, D), "
            f"K at least 1, D from 1 to {_MAX_DIM}"
        )
    if x.ndim == 0 or x.shape[-1] != codebook.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}: allowed is (..., {codebook.shape[1]})")
    if x.dtype not in _DTYPES or codebook.dtype not in _DTYPES:
        raise TypeError(
            f"x is {x.dtype}, codebook {codebook.dtype}: allowed are float32, bfloat16 and float16"
        )
    if x.device != codebook.device:
        raise ValueError(
            f"x is on {x.device}, codebook on {codebook.device}: one device is allowed"
        )
    if out_dtype != torch.int64:
        _check_out_dtype(out_dtype, len(codebook))
    index: Tensor = torch.ops.wmfast.nearest_code(x, codebook)
    return index if out_dtype == torch.int64 else index.to(out_dtype)


def _check_out_dtype(out_dtype: torch.dtype, codes: int) -> None:
    if out_dtype not in _OUT_DTYPES or codes - 1 > torch.iinfo(out_dtype).max:
        raise ValueError(
            f"out_dtype is {out_dtype}: allowed are integers that hold the last index, {codes - 1}"
        )


def _gamma(n: int, unit_roundoff: float) -> float:
    return n * unit_roundoff / (1 - n * unit_roundoff)


def _operand_roundoff() -> float:
    """Unit roundoff of a float32 product's operands: not zero where the user allows bfloat16."""
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return 0.0 if precision in ("none", "ieee") else 2.0**-8


def _nearest_code_cpu(x: Tensor, codebook: Tensor) -> Tensor:
    body = choose_body("nearest_code", x.device, _BODIES)
    return nearest_code_cpp(x, codebook) if body == "cpp" else _nearest_code_torch(x, codebook)


def _nearest_code_torch(x: Tensor, codebook: Tensor) -> Tensor:
    dim = codebook.shape[1]
    x_nd = x.detach().reshape(-1, dim).float().contiguous()
    code_kd = codebook.detach().float()
    code64_kd = code_kd.double()
    square64_k = code64_kd.square().sum(1)
    square_k, code_dk = square64_k.float(), code_kd.t()
    largest = math.sqrt(square64_k.max().item())

    # margin(|x|) = 2 E32 + 2 E64: also the float64 distances of the recheck are rounded
    operand = _operand_roundoff()
    single = _gamma(dim + 2, 2.0**-24) + 2 * operand + operand**2
    double = _gamma(dim + 2, 2.0**-53)
    a = 2 * _SLACK * double
    b = 4 * _SLACK * (single + double) * largest
    c = 2 * _SLACK * (single + double) * largest**2 + (dim + 2) * 2.0**-124  # products underflow
    lost = math.sqrt(dim) * 2.0**-63  # squares below 2^-126 vanish in the float32 norm
    norm_n = torch.linalg.vector_norm(x_nd, dim=1).add_(lost)
    margin_n = norm_n.mul(a).add_(b).mul_(norm_n).add_(c)

    index_n = torch.empty(len(x_nd), dtype=torch.int64)
    rows = max(1, _CHUNK // len(code_kd))
    buffer = torch.empty(min(rows, len(x_nd)), len(code_kd), dtype=torch.float32)
    for start in range(0, len(x_nd), rows):
        chunk_nd = x_nd[start : start + rows]
        score_nk = buffer[: len(chunk_nd)]
        torch.addmm(square_k, chunk_nd, code_dk, alpha=-2, out=score_nk)  # out=: autocast keeps off
        limit_n = score_nk.amin(1).add_(margin_n[start : start + rows])
        # not (score > limit), so that NaN stays in; numpy compares and finds 7 times faster
        beyond = score_nk.numpy() > limit_n[:, None].numpy()
        pair = torch.from_numpy((~beyond).reshape(-1).nonzero()[0])
        row, code = pair // len(code_kd), pair % len(code_kd)
        if len(pair) > len(chunk_nd):  # every row has a candidate; some have more
            code = _settle(chunk_nd, code64_kd, row, code)
        index_n[start : start + rows] = code
    return index_n.view(x.shape[:-1])


def _settle(x_nd: Tensor, code64_kd: Tensor, row: Tensor, code: Tensor) -> Tensor:
    """Exact index of each row, given its candidates: pairs (row, code) in row-major order."""
    several = row.bincount(minlength=len(x_nd)) > 1
    index_n = torch.empty(len(x_nd), dtype=torch.int64).scatter_(0, row, code)
    pair = several[row].nonzero().flatten()
    row, code = row[pair], code[pair]
    part = max(1, _RECHECK // code64_kd.shape[1])
    distance = torch.cat(
        [
            (x_nd[r].double() - code64_kd[c]).square_().sum(1)
            for r, c in zip(row.split(part), code.split(part), strict=True)
        ]
    ).nan_to_num_(nan=math.inf, posinf=math.inf)
    least = torch.full((len(x_nd),), math.inf, dtype=torch.float64)
    least.scatter_reduce_(0, row, distance, "amin")
    tie = distance == least[row]
    first = torch.full((len(x_nd),), len(code64_kd), dtype=torch.int64)
    first.scatter_reduce_(0, row[tie], code[tie], "amin")
    return torch.where(several, first, index_n)


def _nearest_code_cuda(x: Tensor, codebook: Tensor) -> Tensor:
    """Triton, or plain torch for very wide vectors and GPUs before Ampere; no host sync."""
    body = choose_body("nearest_code", x.device, _BODIES)
    dim = codebook.shape[1]
    if body == "torch" or dim > _MAX_TRITON_DIM or not launch.supported(x.device):
        return _nearest_code_float64(x, codebook)
    from wmfast.kernels.nearest_code_triton import nearest_code_triton

    index_n = nearest_code_triton(x.detach().reshape(-1, dim), codebook.detach())
    return index_n.view(x.shape[:-1])


def _nearest_code_float64(x: Tensor, codebook: Tensor) -> Tensor:
    """All distances in float64, a chunk of rows at a time: the reference in bounded memory."""
    x_nd = x.detach().reshape(-1, codebook.shape[1])
    rows = max(1, _RECHECK // codebook.numel())
    parts = [nearest_code_reference(part, codebook.detach()) for part in x_nd.split(rows)]
    return torch.cat(parts).view(x.shape[:-1])


def _nearest_code_fake(x: Tensor, codebook: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


torch.library.define("wmfast::nearest_code", "(Tensor x, Tensor codebook) -> Tensor")
torch.library.impl("wmfast::nearest_code", "CPU", _nearest_code_cpu)
torch.library.impl("wmfast::nearest_code", "CUDA", _nearest_code_cuda)
torch.library.register_fake("wmfast::nearest_code", _nearest_code_fake)
