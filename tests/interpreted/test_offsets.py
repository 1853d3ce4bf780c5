"""No offset overflows far down a grid, where no memory could be: Triton's own checks, in debug.

Loads give zeros and stores go nowhere; what is looked at is the arithmetic on the way there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from wmfast.kernels.code_sums_triton import share_kernel
from wmfast.kernels.film_attention_backward import keys_kernel, queries_kernel
from wmfast.kernels.film_attention_forward import forward_kernel
from wmfast.kernels.nearest_code_scan import prepare_kernel, scan_kernel
from wmfast.kernels.nearest_code_settle import settle_kernel

Run = Callable[..., None]
MANY = 1 << 30  # rows: two of them are more than 32 bits hold


@pytest.fixture
def run_far(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one program of a grid as if all the others were there."""
    builder = interpreter.interpreter_builder
    debugging = dataclasses.replace(builder.options, debug=True)
    monkeypatch.setattr(builder, "options", debugging)

    def load(self: Any, at: Any, mask: Any, *_: Any) -> Any:
        kind = at.get_element_ty()
        return interpreter.TensorHandle(
            np.zeros_like(at.data, dtype=interpreter._get_np_dtype(kind)), kind
        )

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", lambda *_: None)

    def run(kernel: Any, program: tuple[int, int, int], **values: Any) -> None:
        def far_away(self: Any, *_: int) -> None:
            self.grid_idx, self.grid_dim = program, tuple(place + 1 for place in program)

        with monkeypatch.context() as patch:
            patch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", far_away)
            floats = torch.zeros(1)
            kernel[(1,)](**{name: values.get(name, floats) for name in kernel.arg_names})

    return run


INTS, LONGS = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
TILES = {"BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_D": 16}
HALF = torch.zeros(1, dtype=torch.float16)
NEAREST = {"D": 16, "D_PAD": 16, "stride": 16, "rows": MANY, "half": HALF, "pick": INTS, **TILES}
CASES: dict[str, tuple[Any, tuple[int, int, int], dict[str, Any]]] = {
    "2^31 elements of the codes": (
        prepare_kernel,
        ((1 << 24) - 1, 0, 0),
        {**NEAREST, "codes": 1 << 27},
    ),
    "three scores of 2^30 rows": (
        scan_kernel,
        (MANY // 16 - 1, 0, 0),
        {**NEAREST, "tiles": 4, "tiles_each": 2, "TILE_MASK": 1},
    ),
    "2^31 elements of float16 codes": (
        scan_kernel,
        (0, 1 << 22, 0),
        {**NEAREST, "rows": 64, "tiles": 1 << 24, "tiles_each": 2, "TILE_MASK": 1},
    ),
    "rows and codes of the last kernel": (
        settle_kernel,
        (MANY // 16 - 1, 0, 0),
        {
            **NEAREST,
            **dict.fromkeys(("codes", "padded"), 48),
            "code_stride": 1 << 26,
            "splits": 3,
            "TILE_BITS": 1,
        },
    ),
    "sums of 2^27 codes": (
        share_kernel,
        ((1 << 23) - 1, 0, 31),
        {**TILES, "D": 1, "rows": 512, "rows_each": 16, "codes": 1 << 27, "stride": 1},
    ),
    "sums over 2^30 rows": (
        share_kernel,
        (0, 0, MANY // 16 - 1),
        {**TILES, "D": 8, "rows": MANY, "rows_each": 16, "codes": 16, "stride": 8},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wide_offsets_are_wide_from_the_start(case: str, run_far: Run) -> None:
    kernel, program, values = CASES[case]
    run_far(kernel, program, WIDE=True, index=LONGS, **values)
    with pytest.raises(InterpreterError, match="int32 overflow"):
        run_far(kernel, program, WIDE=False, index=LONGS, **values)


@pytest.mark.parametrize("kernel", [forward_kernel, queries_kernel, keys_kernel])
@pytest.mark.parametrize("by_frame", [True, False])
def test_attention_needs_no_switch(kernel: Any, by_frame: bool, run_far: Run) -> None:
    batch, stride = 1 << 18, (1 << 24) - 16  # the largest that ``dense_rows`` leaves alone
    strides = {name: stride for name in kernel.arg_names if name[-2:] in ("_b", "_n", "_l")}
    values = {
        **dict.fromkeys(("D", "BLOCK_D"), 128),
        **dict.fromkeys(("BLOCK_M", "BLOCK_N"), 128),
        "heads": 64,
        "frame": 2048,
        "tiles": 32,
        "PRECISION": "ieee",
        **dict.fromkeys(("q_len", "k_len"), 4096),
        **dict.fromkeys(("scale", "scale_log2"), 0.1),
        **dict.fromkeys(("HAS_GAMMA", "HAS_BETA", "MASKED"), True),
    }
    for tile in (0, 31):
        place = (tile * 64 * batch + 64 * batch - 1, 0, 0)
        run_far(kernel, place, **values, **strides, BY_FRAME=by_frame)
