"""How every Triton kernel is launched: its tile sizes from one table, its offsets wide enough.

The table is ``configs.json``: op -> sm -> dtype -> shape bucket -> config. A config holds the tile
sizes that the kernel takes as constexpr, ``num_warps`` and ``num_stages``. Nothing is tuned while a
program runs: timing inside a CUDA-graph capture would break it. ``python -m wmfast.kernels.tune``
writes the table on a GPU.

Offsets are 32 bits wide as long as they fit; a kernel takes ``WIDE: tl.constexpr`` and, where it is
true, makes the index of a row int64 before the first multiplication.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Config = dict[str, int]
Table = dict[str, dict[str, dict[str, dict[str, Config]]]]

TABLE_FILE = Path(__file__).with_name("configs.json")
NARROW_LIMIT = 1 << 31  # offsets below fit 32 bits; the tests lower it

# Shared memory of one block in bytes, by the sm that a table entry is for.
SHARED_BYTES = {80: 166_912, 86: 101_376, 90: 232_448}


# a * b + c in one instruction; Triton 3.10 will not do so unless asked. No kernel needs it for
# exactness, nor its absence.
OPTIONS = {"enable_fp_fusion": True}


_trials: dict[str, Config] = {}


class Entry(NamedTuple):
    """One row of the table."""

    sm: int
    dtype: str
    bucket: str
    config: Config


@lru_cache(maxsize=1)
def table() -> Table:
    """The table as read once from ``configs.json``."""
    loaded: Table = json.loads(TABLE_FILE.read_text())
    return loaded


def entries(op: str) -> Iterator[Entry]:
    """Every config of ``op``, for the lint and the tuner."""
    for sm, by_dtype in table()[op].items():
        for dtype, by_bucket in by_dtype.items():
            for bucket, config in by_bucket.items():
                yield Entry(int(sm.removeprefix("sm")), dtype, bucket, config)


@lru_cache(maxsize=8)
def supported(device: torch.device) -> bool:
    """Whether Triton kernels run on ``device``: NVIDIA Ampere (8.0) or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@lru_cache(maxsize=8)
def sm_of(device: torch.device) -> int:
    """Which sm of the table serves ``device``; the newest for a CPU, where only tests launch.

    Consumer GPUs (8.6, 8.9, 12.x) have less shared memory than 8.0, so they share the 86 entries.
    """
    if device.type != "cuda":
        return max(SHARED_BYTES)
    major, minor = torch.cuda.get_device_capability(device)
    if major in (9, 10):
        return 90
    return 80 if (major, minor) in ((8, 0), (8, 7)) else 86


def config_of(op: str, tensor: Tensor, bucket: str) -> Config:
    """The config of ``op`` for a tensor's device and dtype; ``any`` serves dtypes without a row.

    KeyError where the table has none.
    """
    if op in _trials:
        return _trials[op]
    by_dtype = table()[op][f"sm{sm_of(tensor.device)}"]
    dtype = str(tensor.dtype).removeprefix("torch.")
    return by_dtype[dtype if dtype in by_dtype else "any"][bucket]


@contextmanager
def trying(op: str, config: Config) -> Iterator[None]:
    """Within it ``op`` takes this config whatever the table says; for the tuner."""
    _trials[op] = config
    try:
        yield
    finally:
        del _trials[op]


@lru_cache(maxsize=8)
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 for a CPU, where only tests launch."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def wide(*tensors: Tensor) -> bool:
    """Whether an element of one of them lies 2^31 elements or more from its first."""
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        >= NARROW_LIMIT
        for t in tensors
        if t.numel()
    )


def run(
    kernel: Any, grid: tuple[int, ...], config: Config, /, *arguments: Any, **constants: Any
) -> None:
    """Launch ``kernel``: its run-time arguments in order, its constexpr arguments by name.

    It runs on the device of its first argument, a tensor.
    """
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants, **config, **OPTIONS)
