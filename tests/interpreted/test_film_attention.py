"""The Triton kernels of film_attention in the interpreter, against float64."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from wmfast.kernels import film_attention_reference
from wmfast.kernels.film_attention_backward import backward
from wmfast.kernels.film_attention_forward import forward, masks_of


class Shape(NamedTuple):
    batch: int
    heads: int
    q_len: int
    k_len: int
    width: int
    frame: int


# Lengths that no tile divides, tiles across frames, queries fewer than keys.
SHAPES = {
    "frames": Shape(1, 2, 97, 97, 16, 21),
    "full": Shape(2, 1, 65, 65, 32, 65),
    "full and tile-sized": Shape(1, 1, 33, 64, 16, 64),
    "odd width": Shape(1, 2, 33, 70, 40, 9),
    "last rows": Shape(2, 2, 30, 101, 16, 40),
    "one query": Shape(1, 1, 1, 50, 16, 7),
    "one key": Shape(1, 1, 1, 1, 8, 1),
    "causal": Shape(1, 1, 45, 45, 16, 1),
    "tile-sized": Shape(1, 1, 64, 128, 64, 32),
    "wide": Shape(1, 1, 20, 40, 128, 20),
    "tiles begin with frames": Shape(1, 1, 99, 128, 16, 30),  # the first and the last are cut
    "a frame of two tiles": Shape(1, 2, 130, 130, 16, 62),
}
Inputs = list[Tensor | None]  # q, k, v, gamma, beta and the gradient of the answer


def draw(shape: Shape, dtype: torch.dtype, *, gamma: bool = True, beta: bool = True) -> Inputs:
    """q, k, v and FiLM laid out as fused projections leave them."""
    b, n, lq, lk, d, _ = shape
    generator = torch.Generator().manual_seed(sum(shape))
    qkv = torch.randn(b, lk, 3, n, d, generator=generator).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    film = torch.randn(b, 2, n, d, generator=generator).to(dtype)
    do = torch.randn(b, lq, n, d, generator=generator).to(dtype).transpose(1, 2)
    q = q[:, :, lk - lq :]
    return [q, k, v, film[:, 0] if gamma else None, film[:, 1] if beta else None, do]


def plain(tensors: Inputs, frame: int, dtype: torch.dtype) -> list[Tensor]:
    """The answer of the reference and the gradients of its autograd, computed in ``dtype``."""
    *inputs, do = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    o = film_attention_reference(*inputs, frame_causal=frame, scale=0.3)
    o.backward(do)
    return [o.detach(), *(t.grad for t in inputs if t is not None and t.grad is not None)]


def kernels(tensors: Inputs, frame: int) -> list[Tensor]:
    """The same from the kernels."""
    q, k, v, gamma, beta, do = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    assert do is not None
    o, lse = forward(q, k, v, gamma, beta, frame, 0.3)
    dq, dk, dv, dfilm = backward(do, q, k, v, gamma, beta, o, lse, frame, 0.3)
    film = [g for g, t in zip(dfilm, (gamma, beta), strict=False) if t is not None]
    return [o, dq, dk, dv, *film]


def tiles(q: int, k: int) -> dict[str, int]:
    return {"BLOCK_M": q, "BLOCK_N": k, "num_warps": 4, "num_stages": 1}


def error(got: Tensor, want: Tensor) -> float:
    assert got.isfinite().all()
    return (got.double() - want).norm().item()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_equals_float64(shape: Shape) -> None:
    tensors = draw(shape, torch.float32)
    wanted = plain(tensors, shape.frame, torch.float64)
    for got, want in zip(kernels(tensors, shape.frame), wanted, strict=True):
        assert error(got, want) < 2e-6 * max(1.0, want.norm().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["frames", "full", "odd width"])
def test_half_precision_is_as_good_as_the_plain_computation(name: str, dtype: torch.dtype) -> None:
    shape = SHAPES[name]
    tensors = draw(shape, dtype)
    truth = plain(tensors, shape.frame, torch.float64)
    simple = plain(tensors, shape.frame, dtype)
    for got, low, want in zip(kernels(tensors, shape.frame), simple, truth, strict=True):
        assert error(got, want) <= 2 * error(low, want)


class _RoundedProduct(torch.autograd.Function):
    """a @ b as TF32 has it: operands of 11 bits, sums of float32, the same in the backward."""

    @staticmethod
    def round(x: Tensor) -> Tensor:
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = _RoundedProduct.round(a), _RoundedProduct.round(b)
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        g = _RoundedProduct.round(gradients[0])
        return g @ b.mT, a.mT @ g


class _TF32(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.__matmul__, Tensor.matmul, torch.matmul):
            return _RoundedProduct.apply(*args)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("name", ["frames", "full", "odd width", "tile-sized"])
def test_float32_is_as_good_as_the_plain_computation(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice its error and an ulp, for the rounding of both results."""
    shape = SHAPES[name]
    for module in ("forward", "backward"):
        monkeypatch.setattr(f"wmfast.kernels.film_attention_{module}.precision", lambda: precision)
    tensors = draw(shape, torch.float32)
    truth = plain(tensors, shape.frame, torch.float64)
    with _TF32() if precision == "tf32" else contextlib.nullcontext():
        simple = plain(tensors, shape.frame, torch.float32)
    got = kernels(tensors, shape.frame)
    for mine, low, want in zip(got, simple, truth, strict=True):
        ulp = 2.0**-23 * want.norm().item()
        assert error(mine, want) <= 2 * error(low, want) + ulp
        assert (error(low, want) > 1000 * ulp) == (precision == "tf32")


@pytest.mark.parametrize(("gamma", "beta"), [(True, False), (False, True), (False, False)])
def test_without_gamma_or_beta(gamma: bool, beta: bool) -> None:
    shape = SHAPES["frames"]
    tensors = draw(shape, torch.float32, gamma=gamma, beta=beta)
    wanted = plain(tensors, shape.frame, torch.float64)
    for got, want in zip(kernels(tensors, shape.frame), wanted, strict=True):
        assert error(got, want) < 2e-6 * want.norm().item()


def test_outputs_are_what_the_fake_ops_promise() -> None:
    shape = SHAPES["last rows"]
    q, k, v, gamma, beta, do = draw(shape, torch.bfloat16)
    assert q is not None
    o, lse = forward(q, k, v, gamma, beta, shape.frame, 0.3)
    got = (o, lse, *backward(do, q, k, v, gamma, beta, o, lse, shape.frame, 0.3))
    ops = torch.ops.wmfast
    with torch.device("meta"):
        meta = [None if t is None else t.to("meta") for t in (q, k, v, gamma, beta)]
        o, lse = ops.film_attention(*meta, shape.frame, 0.3)
        promised = (
            o,
            lse,
            *ops.film_attention_backward(o, *meta, o, lse, shape.frame, 0.3),
        )
    for tensor, promise in zip(got, promised, strict=True):
        assert tensor.shape == promise.shape
        assert tensor.dtype == promise.dtype
        assert tensor.stride() == promise.stride()


def test_what_a_row_may_not_see_changes_no_bit_and_gets_no_gradient() -> None:
    shape = Shape(1, 1, 63, 63, 16, 21)
    tensors = draw(shape, torch.float32)
    before = kernels(tensors, shape.frame)
    q, k, v, gamma, beta, do = tensors
    assert k is not None
    assert v is not None
    assert do is not None
    k, v, do = k.clone(), v.clone(), do.clone()
    k[:, :, 42:] *= -3
    v[:, :, 42:] += 100
    do[:, :, 42:] = 0
    o, _, dk, dv, *_ = kernels([q, k, v, gamma, beta, do], shape.frame)
    assert torch.equal(o[:, :, :42], before[0][:, :, :42])
    assert not torch.equal(o[:, :, 42:], before[0][:, :, 42:])
    for gradient in (dk, dv):
        assert not gradient[:, :, 42:].any()
        assert gradient[:, :, :42].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("what", ["k", "v"])
def test_what_is_not_finite_stays_in_its_frame_and_after(what: str, value: float) -> None:
    """3e38 overflows in sums. dk, dv, dgamma and dbeta have shares of all rows: they may spoil."""
    shape, earlier = Shape(1, 1, 112, 112, 16, 28), 84
    assert masks_of(*2 * (torch.empty(1, 1, 112, 16),), 28, tiles(32, 32))["BY_FRAME"]
    tensors = draw(shape, torch.float32)
    before = kernels(tensors, shape.frame)
    spoilt = tensors[:]
    place = "kv".index(what) + 1
    spoilt[place] = tensors[place].clone()  # type: ignore[union-attr]
    spoilt[place][:, :, earlier + 3, ::2] = value  # type: ignore[index]
    after = kernels(spoilt, shape.frame)
    for name, old, new in zip(("o", "dq"), before, after, strict=False):
        assert torch.equal(new[:, :, :earlier], old[:, :, :earlier]), name
        assert not torch.equal(new[:, :, earlier:], old[:, :, earlier:]), name


@pytest.mark.parametrize(("frame", "by_frame"), [(30, True), (23, False), (24, True), (9, False)])
def test_tiles_begin_with_frames_where_few_rows_of_them_stay_empty(
    frame: int, by_frame: bool
) -> None:
    q, k = torch.empty(1, 1, 50, 16), torch.empty(1, 1, 70, 16)
    assert masks_of(q, k, frame, tiles(32, 32))["BY_FRAME"] == by_frame
    assert masks_of(q, k, 70, tiles(32, 32)) == {"BY_FRAME": False, "MASKED": True}
    assert masks_of(k[:, :, :64], k[:, :, :64], 32, tiles(32, 32))["MASKED"] is False


def test_scores_far_beyond_the_range_of_exp() -> None:
    shape = SHAPES["frames"]
    tensors = draw(shape, torch.float32)
    assert tensors[0] is not None
    tensors[0] = tensors[0] * 1e5
    o, *gradients = kernels(tensors, shape.frame)
    want = plain(tensors, shape.frame, torch.float64)[0]
    torch.testing.assert_close(o.double(), want, rtol=1e-3, atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients)


# The empty rows of a tile: 0 times infinity, whose maximum numpy has a word for.
@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("value", [-1e30, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_the_first_keys_that_are_minus_infinity(value: float, dtype: torch.dtype) -> None:
    """-1e30 times 1e30 overflows: finite inputs have such scores too.

    Keys that are infinite themselves may have NaN gradients; the others' are not touched.
    """
    shape = Shape(1, 2, 33, 300, 16, 300)
    q, k, v, _, _, do = draw(shape, dtype, gamma=False, beta=False)
    assert q is not None
    assert k is not None
    q, k = q.abs() * 1e30, k * 1e-30
    k[:, :, :256] = value  # more than a tile of keys
    tensors = [q, k, v, None, None, do]
    wanted = plain(tensors, shape.frame, torch.float64)
    simple = plain(tensors, shape.frame, dtype)
    assert wanted[0].isfinite().all()
    for i, (got, low, want) in enumerate(
        zip(kernels(tensors, shape.frame), simple, wanted, strict=True)
    ):
        if i >= 2 and value == -math.inf:  # dk and dv
            got, low, want = (x[:, :, 256:] for x in (got, low, want))
        assert torch.equal(got.isnan(), want.isnan())  # in the gradient of q, 0 times infinity
        if want.isfinite().all():
            assert error(got, want) <= 2 * error(low, want) + 1e-6 * want.norm().item()


def test_a_row_whose_scores_are_all_minus_infinity_is_zero() -> None:
    """As torch's attention has it; it has no part in any gradient."""
    shape, blind = Shape(1, 1, 140, 140, 16, 70), 70
    q, k, v, _, _, do = draw(shape, torch.float32, gamma=False, beta=False)
    assert q is not None
    assert k is not None
    assert do is not None
    q, k = q.abs() * 1e30, k * 1e-30
    k[:, :, :blind] = -1e30
    o, dq, *rest = kernels([q, k, v, None, None, do], shape.frame)
    for x in (o, dq):
        assert not x[:, :, :blind].any()
    seeing = [q[:, :, blind:], k, v, None, None, do[:, :, blind:]]
    got = [o[:, :, blind:], dq[:, :, blind:], *rest]
    for mine, want in zip(got, plain(seeing, shape.frame, torch.float64), strict=True):
        assert error(mine, want) < 2e-6 * want.norm().item()


def test_a_batch_that_begins_beyond_32_bits() -> None:
    """Its bytes are never touched between the two samples, so the memory costs nothing."""
    shape = Shape(2, 1, 17, 17, 16, 17)
    q, k, v, gamma, beta, do = draw(shape, torch.float16)
    assert k is not None
    far = torch.UntypedStorage(2 * ((1 << 31) + 17 * 16))
    strided = torch.empty(0, dtype=torch.float16).set_(far, 0, k.shape, (1 << 31, 272, 16, 1))
    strided.copy_(k)
    dense, spread = (kernels([q, x, v, gamma, beta, do], 17) for x in (k, strided))
    assert all(torch.equal(a, b) for a, b in zip(dense, spread, strict=True))
