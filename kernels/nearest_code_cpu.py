"""nearest_code on a CPU: addresses and sizes into the C++ core.

The core (``csrc/include/wmfast/nearest_code.hpp``) scores in the widest arithmetic of the machine,
AMX, AVX-512, AVX2 or plain, with a proven bound on the error, and settles what is close in
doubles: every path gives the same index. ``WMFAST_CPU=amx|avx512|avx2|scalar`` forces one.

A packed codebook is kept and recognised by its bits, compared anew in every call: a version counter
would miss what ``.data``, numpy and inference tensors write.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmfast._core import nearest_code as _search

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def nearest_code_cpp(
    x: Tensor, codebook: Tensor, *, threads: int | None = None, path: str | None = None
) -> Tensor:
    """Int64 (...) for x (..., D) and codebook (K, D), both on the CPU and in a dtype of _NAMES.

    ``threads``: ``torch.get_num_threads()`` unless given. ``path``: one of
    ``wmfast._core.nearest_code_paths()``, for tests and benches. Raises ValueError for a path, also
    one of ``WMFAST_CPU``, that is unknown or that this machine has not.
    """
    dim = codebook.shape[1]
    x_nd = x.detach().resolve_neg().reshape(-1, dim)
    if dim > 1 and x_nd.stride(1) != 1:
        x_nd = x_nd.contiguous()
    code_kd = codebook.detach().resolve_neg().contiguous()
    index_n = torch.empty(len(x_nd), dtype=torch.int64)
    _search(
        x_nd.data_ptr(),
        _NAMES[x.dtype],
        len(x_nd),
        x_nd.stride(0),
        code_kd.data_ptr(),
        _NAMES[codebook.dtype],
        len(code_kd),
        dim,
        index_n.data_ptr(),
        torch.get_num_threads() if threads is None else threads,
        path,
    )
    return index_n.view(x.shape[:-1])
