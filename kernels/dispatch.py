"""Which body of a kernel runs: one line in each public op, one environment variable for A/B runs.

``WMFAST_KERNELS`` is read at every call: ``auto`` (the default) takes Triton for a CUDA tensor and
C++ for a CPU tensor where such a body exists, and torch elsewhere; ``triton`` and ``torch`` insist.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import torch

Body = Literal["triton", "cpp", "torch"]
_HAS_TRITON = find_spec("triton") is not None


def choose_body(op: str, device: torch.device, bodies: tuple[Body, ...]) -> Body:
    """The body of ``op`` that runs on ``device``, out of those that exist.

    Without triton installed no Triton body exists. Raises ValueError for an unknown
    ``WMFAST_KERNELS`` and RuntimeError where ``triton`` is asked for but not installed, ``op`` has
    no Triton body for these tensors, or they are not on a CUDA device.
    """
    wanted = os.environ.get("WMFAST_KERNELS") or "auto"  # empty: as if not set, like WMFAST_CPU
    if wanted == "torch":
        return "torch"
    if wanted == "auto":
        best: Body = "cpp" if device.type != "cuda" else "triton" if _HAS_TRITON else "torch"
        return best if best in bodies and device.type in ("cuda", "cpu") else "torch"
    if wanted != "triton":
        raise ValueError(f"WMFAST_KERNELS={wanted!r}: allowed are auto, triton and torch")
    if not _HAS_TRITON:
        raise RuntimeError(f"WMFAST_KERNELS=triton: {op} needs triton, which is not installed")
    if "triton" not in bodies:
        raise RuntimeError(f"WMFAST_KERNELS=triton: {op} has no Triton body; use auto or torch")
    if device.type != "cuda":
        raise RuntimeError(
            f"WMFAST_KERNELS=triton: {op} got {device.type} tensors, allowed is cuda"
        )
    return "triton"
