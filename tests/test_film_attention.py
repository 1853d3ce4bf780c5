"""film_attention: the equation, its gradients, frame causality, and the op's registration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from wmfast.kernels import film_attention, film_attention_reference


def draw(
    b: int, n: int, lq: int, lk: int, d: int, *, film: bool = True, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(b + 10 * lq + 100 * lk + d)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = normal(b, n, lq, d), normal(b, n, lk, d), normal(b, n, lk, d)
    return (q, k, v, normal(b, n, d), normal(b, n, d)) if film else (q, k, v, None, None)


SHAPES = [(2, 3, 12, 12, 8, 4), (1, 2, 5, 13, 7, 4), (2, 1, 1, 9, 33, None), (1, 4, 30, 30, 64, 7)]


@pytest.mark.parametrize(("b", "n", "lq", "lk", "d", "frame"), SHAPES)
@pytest.mark.parametrize("film", [True, False])
def test_value_and_gradients_equal_float64_autograd_of_the_reference(
    b: int, n: int, lq: int, lk: int, d: int, frame: int | None, film: bool
) -> None:
    inputs = draw(b, n, lq, lk, d, film=film, dtype=torch.float32)
    exact = [None if t is None else t.double().requires_grad_() for t in inputs]
    truth = film_attention_reference(*exact, frame_causal=frame, scale=0.3)
    weight = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    truth.backward(weight.double())

    mine = [None if t is None else t.clone().requires_grad_() for t in inputs]
    out = film_attention(*mine, frame_causal=frame, scale=0.3)
    out.backward(weight)
    torch.testing.assert_close(out, truth.float(), rtol=1e-5, atol=1e-5)
    for name, got, want in zip(("q", "k", "v", "gamma", "beta"), mine, exact, strict=True):
        if want is None:
            assert got is None
            continue
        assert want.grad is not None
        assert got is not None
        assert want.grad.abs().max() > 0, name
        torch.testing.assert_close(got.grad, want.grad.float(), rtol=1e-4, atol=1e-5, msg=name)


def test_gradcheck_in_all_five() -> None:
    inputs = [t.requires_grad_() for t in draw(1, 2, 3, 6, 4, dtype=torch.float64) if t is not None]
    assert torch.autograd.gradcheck(lambda *t: film_attention(*t, frame_causal=2), inputs)


@pytest.mark.parametrize(("gamma", "beta"), [(True, False), (False, True)])
def test_gamma_or_beta_alone(gamma: bool, beta: bool) -> None:
    q, k, v, g, b = draw(2, 2, 6, 6, 8, dtype=torch.float64)
    g, b = (g if gamma else None), (b if beta else None)
    torch.testing.assert_close(
        film_attention(q, k, v, g, b), film_attention_reference(q, k, v, g, b)
    )


def test_equation_by_hand() -> None:
    # one query 1 with gamma 1 and beta 1 becomes 3; keys 0 and ln(2)/3 give weights 1/3 and 2/3
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([0.0, 2.0]).log1p()[None, None, :, None] / 3  # ln 1, ln 3
    v = torch.tensor([4.0, 8.0])[None, None, :, None]
    one = torch.ones(1, 1, 1)
    out = film_attention(q, k, v, one, one, scale=1.0)
    torch.testing.assert_close(out, torch.full_like(out, 0.25 * 4 + 0.75 * 8))


def test_scale_is_one_over_the_root_of_the_width() -> None:
    q, k, v, g, b = draw(1, 1, 4, 4, 16, dtype=torch.float64)
    default = film_attention(q, k, v, g, b)
    torch.testing.assert_close(default, film_attention(q, k, v, g, b, scale=0.25))


def test_a_token_sees_its_own_and_earlier_frames_only() -> None:
    q, k, v, g, b = draw(1, 1, 12, 12, 4, dtype=torch.float64)
    before = film_attention(q, k, v, g, b, frame_causal=4)
    v[:, :, 4:8] += 1  # frame 1
    moved = (film_attention(q, k, v, g, b, frame_causal=4) - before).abs().amax((0, 1, 3)) > 1e-9
    assert moved.tolist() == [False] * 4 + [True] * 8


def test_a_last_frame_that_is_not_full_sees_everything() -> None:
    q, k, v, g, b = draw(1, 1, 10, 10, 4, dtype=torch.float64)
    causal = film_attention(q, k, v, g, b, frame_causal=4)
    full = film_attention(q, k, v, g, b)
    torch.testing.assert_close(causal[:, :, 8:], full[:, :, 8:])
    assert (causal[:, :, :8] - full[:, :, :8]).abs().max() > 1e-3


def test_short_queries_are_the_last_positions() -> None:
    q, k, v, g, b = draw(2, 2, 12, 12, 8, dtype=torch.float64)
    for last, frame in itertools.product((1, 5, 12), (4, None)):
        short = film_attention(q[:, :, -last:], k, v, g, b, frame_causal=frame)
        whole = film_attention(q, k, v, g, b, frame_causal=frame)
        torch.testing.assert_close(short, whole[:, :, -last:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_the_plain_half_precision_reference(
    dtype: torch.dtype,
) -> None:
    inputs = draw(2, 2, 40, 40, 32, dtype=dtype)
    truth = film_attention_reference(*(t.double() for t in inputs if t is not None))
    out = film_attention(*inputs)
    assert out.dtype == dtype
    plain = (film_attention_reference(*inputs).double() - truth).abs().max()
    assert (out.double() - truth).abs().max() <= 2 * plain


def test_autocast_leaves_the_dtype_alone() -> None:
    inputs = draw(1, 2, 8, 8, 16, dtype=torch.float32)
    plain = film_attention(*inputs, frame_causal=4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = film_attention(*inputs, frame_causal=4)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


@pytest.mark.parametrize("film", [True, False])
def test_opcheck(film: bool) -> None:
    inputs = draw(1, 2, 4, 6, 8, film=film, dtype=torch.float32)
    torch.library.opcheck(torch.ops.wmfast.film_attention.default, (*inputs, 3, 0.5))


def test_compiles_as_one_graph_forward_and_backward() -> None:
    inputs = [t.requires_grad_() for t in draw(1, 2, 4, 8, 8, dtype=torch.float32) if t is not None]

    def loss(*tensors: Tensor) -> Tensor:
        return film_attention(*tensors, frame_causal=4).square().sum()

    plain = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, want in zip(torch.autograd.grad(compiled(*inputs), inputs), plain, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.zeros(1, 2, 9, 4)}, ValueError, "Lq at most Lk"),
        ({"k": torch.zeros(1, 2, 8, 5)}, ValueError, r"\(1, 2, 8, 5\)"),
        ({"gamma": torch.zeros(1, 4)}, ValueError, r"gamma has shape \(1, 4\)"),
        ({"v": torch.zeros(1, 2, 8, 4).half()}, TypeError, "float16"),
        ({"frame_causal": 0}, ValueError, "frame_causal = 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], words: str) -> None:
    zeros = torch.zeros(1, 2, 8, 4)
    film = torch.zeros(1, 2, 4)
    arguments = {"q": zeros, "k": zeros, "v": zeros, "gamma": film, "beta": film, **change}
    with pytest.raises(error, match=words):
        film_attention(**arguments)  # type: ignore[arg-type]
