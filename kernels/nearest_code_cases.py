"""What the lint compiles and what the tuner times of ``nearest_code``'s Triton kernels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from wmfast.kernels import launch
from wmfast.kernels import nearest_code_triton as kernels
from wmfast.kernels.launch import Config
from wmfast.kernels.lint import Case
from wmfast.kernels.nearest_code_scan import prepare_kernel, scan_kernel
from wmfast.kernels.nearest_code_settle import settle_kernel
from wmfast.kernels.tune import Tunable


def lint_cases() -> Iterator[Case]:
    """The three kernels in every config of the table, at the widest D of its bucket."""
    pointers = {"half": "*fp16", "pick": "*i32", "index": "*i64"}
    ints = {"rows", "codes", "tiles", "tiles_each", "padded", "splits"}

    def case(kernel: Any, sm: int, name: str, config: Config, **constants: Any) -> Case:
        signature = {
            argument: "i32:16" if "stride" in argument else
            "i32" if argument in ints else pointers.get(argument, "*fp32")
            for argument in kernel.arg_names
            if argument not in constants and argument not in config
        }  # fmt: skip
        scan = kernel is scan_kernel
        few = scan and config["BLOCK_N"] < 64
        title = f"nearest_code {name} sm{sm}"
        return Case(title, kernel, signature, constants, config, sm, scan, few)

    sizes = {"D": 1024, "D_PAD": 1024, "WIDE": True}
    for sm in launch.SHARED_BYTES:
        yield case(prepare_kernel, sm, "prepare", kernels.PREPARE, **sizes)
        yield case(settle_kernel, sm, "settle", kernels.SETTLE, TILE_BITS=3, **sizes)
    for entry in launch.entries("nearest_code"):
        width = int(entry.bucket.split("-")[0][1:])
        sizes = {"D": width, "D_PAD": width, "WIDE": False, "TILE_MASK": 7}
        yield case(scan_kernel, entry.sm, f"scan {entry.bucket}", entry.config, **sizes)


def tunables(device: torch.device) -> Iterator[Tunable]:
    """Data and candidates for every bucket; the scan is what a config changes."""
    for rows, dim in itertools.product((2688, 43008), (64, 256, 1024)):
        x_nd, codebook_kd = (torch.randn(n, dim, device=device) for n in (rows, 512))
        candidates = tuple(
            {"BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}
            for n, k, warps, stages in itertools.product(
                (16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3)
            )
            if stages * k * dim * 2 + n * dim * 2 <= max(launch.SHARED_BYTES.values())
            and n * dim <= 32768  # a vector's float32 elements must fit the registers
        )
        call = functools.partial(_search, x_nd, codebook_kd)
        yield Tunable("nearest_code", "any", kernels.bucket(rows, dim), candidates, call)


def _search(x_nd: Tensor, codebook_kd: Tensor, config: Config) -> Tensor:
    return kernels.nearest_code_triton(x_nd, codebook_kd, config=config)
