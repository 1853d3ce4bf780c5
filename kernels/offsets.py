"""Offsets of 64 bits where ``launch.wide`` asks for them: widened before the first product."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def far(x, WIDE: tl.constexpr):
    """``x`` as int64 where WIDE; also a size of 1, which Triton hands over as a constant."""
    return tl.cast(x, tl.int64) if WIDE else x
