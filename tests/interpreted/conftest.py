"""Kernels in Triton's interpreter: numerics without a GPU, in a process of their own.

``tests/test_interpreted.py`` starts it; by hand: ``TRITON_INTERPRET=1 pytest tests/interpreted``.
Every output is poisoned before a kernel writes it, and every test that takes ``offsets`` runs with
32-bit and with 64-bit offsets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("tests/interpreted: set TRITON_INTERPRET=1, before triton is imported")

import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from wmfast.kernels import launch


def _as_float32(handle: Any) -> npt.NDArray[Any]:
    """The interpreter keeps bfloat16 as uint16 bits; float32 holds the same values."""
    data: npt.NDArray[Any] = handle.data
    if handle.dtype.scalar != tl.bfloat16:
        return data
    return (data.astype(np.uint32) << 16).view(np.float32)


def round_to_tf32(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """float32 to the nearest of 11 bits, as tensor cores take it."""
    bits = np.ascontiguousarray(data).view(np.uint32) + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _correct_products() -> None:
    """``tl.dot`` as a GPU has it.

    There it multiplies the raw bits of bfloat16 operands (triton issue 11584), and takes TF32,
    which is what float32 becomes unless a kernel says otherwise, for IEEE.
    """
    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *options: Any) -> Any:
        if tl.bfloat16 in (a.dtype.scalar, b.dtype.scalar):
            left, right = _as_float32(a), _as_float32(b)
        elif a.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
            left, right = round_to_tf32(a.data), round_to_tf32(b.data)
        else:
            return plain(self, a, b, d, precision, *options)
        product = np.matmul(left, right, dtype=np.float32)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _correct_rounding() -> None:
    """float32 to bfloat16 as a GPU has it: to the nearest, where the interpreter cuts bits off."""
    plain = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return plain(self, source, to)
        nearest = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
        bits = nearest.view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(bits.reshape(source.data.shape), tl.bfloat16)

    interpreter.InterpreterBuilder.cast_impl = cast_impl


_correct_products()
_correct_rounding()


def poison(tensor: Tensor) -> Tensor:
    """NaN, or the lowest integer: what no kernel may leave in an output."""
    if tensor.is_floating_point():
        return tensor.fill_(torch.nan)
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).min)


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: poison(make(*args, **kwargs))

    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (Tensor, ("new_empty",)),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(autouse=True)
def _plain_float_arithmetic() -> Iterator[None]:
    """Overflow to infinity and NaN are results here, as on a GPU, not warnings of numpy."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(params=["int32", "int64"])
def offsets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once as the sizes ask for, once with ``launch.wide`` always true."""
    if request.param == "int64":
        monkeypatch.setattr(launch, "NARROW_LIMIT", 0)
    return str(request.param)
