"""film_attention on a CPU: whatever a later frame holds, earlier rows keep their bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from wmfast.kernels import film_attention, film_attention_torch

NAMES = ("q", "k", "v")


def draw(length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return {
        name: torch.randn(2, 2, length, 16, generator=generator).to(dtype)
        for name in (*NAMES, "do")
    }


def attend(inputs: dict[str, Tensor], frame: int, queries: int) -> list[Tensor]:
    """The answer and the gradients of q, k and v."""
    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]
    q, k, v = leaves
    out = film_attention(q[:, :, -queries:], k, v, None, None, frame_causal=frame)
    gradients = torch.autograd.grad(out, leaves, inputs["do"][:, :, -queries:])
    return [out.detach(), *gradients]


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    assert torch.equal(got, want), (got - want).abs().max()


@pytest.mark.parametrize("value", [math.inf, math.nan, "largest"])
@pytest.mark.parametrize("name", [*NAMES, "do"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
# frames that share one call, or two; and the last rows of frames, from the middle of one
@pytest.mark.parametrize(("frame", "queries"), [(8, 48), (100, 500), (8, 20)])
def test_a_later_frame_changes_no_bit_of_earlier_rows(
    frame: int, queries: int, dtype: torch.dtype, name: str, value: float | str
) -> None:
    length = 500 if frame == 100 else 48
    if isinstance(value, str):
        value = torch.finfo(dtype).max
    inputs = draw(length, dtype)
    before = attend(inputs, frame, queries)
    later = length - 2 * frame  # two frames follow, one of them is to be blind for the other
    inputs[name] = inputs[name].clone()
    inputs[name][0, 0, later + 1, 2] = value
    inputs[name][1, 1, later + frame :, 5] = -value
    after = attend(inputs, frame, queries)
    earlier = queries - 2 * frame
    assert_same_bits(after[0][:, :, :earlier], before[0][:, :, :earlier])
    assert_same_bits(after[1][:, :, :later], before[1][:, :, :later])
    # heads and episodes without such a value are as they were; keys sum over rows in other parts
    for at in ((0, 1), (1, 0)):
        assert_same_bits(after[0][at], before[0][at])
        assert_same_bits(after[1][at], before[1][at])
        for got, want in zip(after[2:], before[2:], strict=True):
            assert (got[at] - want[at]).norm() < 8 * torch.finfo(dtype).eps * want[at].norm()


@pytest.mark.parametrize(
    ("name", "value"),
    # not a NaN in q: torch's own attention drops it in some shapes
    [("q", math.inf), *((name, x) for name in ("k", "v", "do") for x in (math.inf, math.nan))],
)
def test_what_is_not_finite_goes_where_frame_after_frame_would_take_it(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(60, torch.float32)
    for position in (3, 25, 59):
        inputs[name][0, 0, position, position % 16] = value
    together = attend(inputs, 10, 60)
    monkeypatch.setattr(film_attention_torch, "_ROWS", 10)
    alone = attend(inputs, 10, 60)
    assert not all(want.isfinite().all() for want in alone)
    for got, want in zip(together, alone, strict=True):
        assert torch.equal(got.isnan(), want.isnan())
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_finite_inputs_of_any_frame_length_take_one_call_a_chunk() -> None:
    x = draw(500, torch.float32)

    def parts() -> list[list[tuple[int, int]]]:
        return [
            film_attention_torch.pieces(
                chunk, 20, (x["q"][:, :, chunk[0] : chunk[1]],), (x["k"], x["v"]), 0.25
            )
            for chunk in film_attention_torch.chunks(500, 500, 20)
        ]

    assert parts() == [[(0, 260)], [(260, 500)]]
    x["v"][1, 1, 330, 0] = math.inf
    assert parts() == [[(0, 260)], [(260, 320), (320, 500)]]
