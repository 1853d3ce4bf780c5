"""film_attention: the equation, its gradients, frame causality, and the op's registration."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from wmfast.kernels import (
    film_attention,
    film_attention_reference,
    film_attention_torch,
    launch,
)

# The module, which the function of the same name hides as an attribute of the package.
op = importlib.import_module("wmfast.kernels.film_attention")


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


def gradients(attend: Any, inputs: Sequence[Tensor | None], frame: int | None) -> list[Tensor]:
    """The answer and every gradient, for one random gradient of the answer."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    out = attend(*leaves, frame_causal=frame)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    wanted = [t for t in leaves if t is not None]
    return [out.detach(), *torch.autograd.grad(out, wanted, weight)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("lq", "lk", "frame"), [(40, 40, None), (530, 560, 265), (70, 70, 9)])
def test_half_precision_is_as_good_as_the_plain_half_precision_reference(
    dtype: torch.dtype, lq: int, lk: int, frame: int | None
) -> None:
    inputs = draw(2, 2, lq, lk, 32, dtype=dtype)
    exact = [None if t is None else t.double() for t in inputs]
    truth = gradients(film_attention_reference, exact, frame)
    plain = gradients(film_attention_reference, inputs, frame)
    mine = gradients(film_attention, inputs, frame)
    for got, simple, want in zip(mine, plain, truth, strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).norm() <= 2 * (simple.double() - want).norm()


def test_large_scores_neither_overflow_nor_blur() -> None:
    q, k, v, _, _ = draw(1, 2, 20, 30, 16, dtype=torch.float32)
    inputs = (1e4 * q, 1e2 * k, v, None, None)  # scores up to 1e7: one key takes all
    out, *grads = gradients(film_attention, inputs, 10)
    exact = [None if t is None else t.double() for t in inputs]
    torch.testing.assert_close(out.double(), gradients(film_attention_reference, exact, 10)[0])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("frame", "seen"), [(4, 8), (260, 520)])  # masked together, and alone
def test_what_a_row_may_not_see_changes_no_bit_and_gets_no_gradient(
    frame: int, seen: int, dtype: torch.dtype
) -> None:
    q, k, v, g, b = draw(1, 2, 3 * frame, 3 * frame, 16, dtype=dtype)
    before = film_attention(q, k, v, g, b, frame_causal=frame)
    other_k, other_v = k.clone().requires_grad_(), v.clone().requires_grad_()
    with torch.no_grad():
        other_k[:, :, seen:] *= -3
        other_v[:, :, seen:] += 100
    after = film_attention(q, other_k, other_v, g, b, frame_causal=frame)
    assert torch.equal(after[:, :, :seen], before[:, :, :seen])
    assert not torch.equal(after[:, :, seen:], before[:, :, seen:])
    after[:, :, :seen].float().square().sum().backward()
    for leaf in (other_k, other_v):
        assert leaf.grad is not None
        assert not leaf.grad[:, :, seen:].any()
        assert leaf.grad[:, :, :seen].any()


def test_equal_inputs_give_equal_bits() -> None:
    inputs = draw(2, 2, 520, 520, 16, dtype=torch.float32)
    first, second = (gradients(film_attention, inputs, 260) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_refused(power: int) -> None:
    q, k, v, g, b = draw(1, 1, 4, 4, 8, dtype=torch.float32)
    out = film_attention(q.requires_grad_(), k, v, g, b)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.pow(power).sum(), q, create_graph=True)


def test_tensors_on_two_devices_are_refused() -> None:
    q, k, v, g, b = draw(1, 1, 4, 4, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match="on cpu, meta: one device"):
        film_attention(q, k, v, g.to("meta"), b)


@pytest.mark.parametrize("frame", [1, 3, 7, 50, 128, 200, None])
@pytest.mark.parametrize("rows", [16, 256])  # of frames that share a call
def test_frames_of_every_length(
    frame: int | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film_attention_torch, "_ROWS", rows)
    inputs = draw(1, 1, 190, 203, 8, dtype=torch.float64)
    mine = gradients(film_attention, inputs, frame)
    for got, want in zip(mine, gradients(film_attention_reference, inputs, frame), strict=True):
        torch.testing.assert_close(got, want)


def test_any_strides_of_a_fused_projection_and_of_the_gradient() -> None:
    qkv = torch.randn(2, 9, 3 * 4 * 8, generator=torch.Generator().manual_seed(0))
    film = torch.randn(2, 2, 4, 8, generator=torch.Generator().manual_seed(1))

    def attend(qkv: Tensor, film: Tensor, copy: bool) -> Tensor:
        q, k, v = qkv.view(2, 9, 3, 4, 8).permute(2, 0, 3, 1, 4)
        gamma, beta = film.unbind(1)
        if copy:
            q, k, v, gamma, beta = (x.contiguous() for x in (q, k, v, gamma, beta))
        return film_attention(q, k, v, gamma, beta, frame_causal=3)

    qkv, film = qkv.requires_grad_(), film.requires_grad_()
    strided = torch.autograd.grad(attend(qkv, film, False).sum(), (qkv, film))  # expanded ones
    dense = torch.autograd.grad(attend(qkv, film, True), (qkv, film), torch.ones(2, 4, 9, 8))
    for got, want in zip(strided, dense, strict=True):
        torch.testing.assert_close(got, want)
    assert attend(qkv, film, False).transpose(1, 2).is_contiguous()  # merging heads is a view


def test_gamma_keeps_its_own_dtype() -> None:
    q, k, v, g, b = draw(1, 2, 6, 6, 8, dtype=torch.bfloat16)
    assert g is not None
    assert b is not None
    g, b = g.float().requires_grad_(), b.float().requires_grad_()
    film_attention(q, k, v, g, b).float().sum().backward()
    assert g.grad is not None
    assert g.grad.dtype == torch.float32


def test_autocast_leaves_the_dtype_alone() -> None:
    inputs = draw(1, 2, 8, 8, 16, dtype=torch.float32)
    plain = gradients(film_attention, inputs, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(film_attention, inputs, 4)
    assert inside[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(inside, plain, strict=True))


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("frame", [3, 290])
def test_opcheck_of_both_ops(film: bool, frame: int) -> None:
    inputs = draw(1, 2, 300, 310, 8, film=film, dtype=torch.float32)
    leaves = [None if t is None else t.clone().requires_grad_() for t in inputs]
    for tensors in (inputs, leaves):
        torch.library.opcheck(torch.ops.wmfast.film_attention.default, (*tensors, frame, 0.5))
    o, lse = torch.ops.wmfast.film_attention(*inputs, frame, 0.5)
    backward = torch.ops.wmfast.film_attention_backward.default
    torch.library.opcheck(backward, (o.clone(), *inputs, o, lse, frame, 0.5))


def test_the_log_sum_exp_is_that_of_the_scores() -> None:
    q, k, v, _, _ = draw(1, 2, 5, 7, 8, dtype=torch.float64)
    _, lse = torch.ops.wmfast.film_attention(q, k, v, None, None, 7, 0.5)
    torch.testing.assert_close(lse, (q @ k.mT * 0.5).logsumexp(-1))


def test_compiles_as_one_graph_forward_and_backward() -> None:
    inputs = [t.requires_grad_() for t in draw(1, 2, 4, 8, 8, dtype=torch.float32) if t is not None]

    def loss(*tensors: Tensor) -> Tensor:
        return film_attention(*tensors, frame_causal=4).square().sum()

    plain = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, want in zip(torch.autograd.grad(compiled(*inputs), inputs), plain, strict=True):
        torch.testing.assert_close(got, want)


def test_a_compiled_program_takes_any_length_without_a_compile_for_each() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(film_attention, backend=count, fullgraph=True, dynamic=True)
    for length in range(20, 32):
        inputs = draw(1, 2, length, length, 8, dtype=torch.float32)
        torch.testing.assert_close(compiled(*inputs), film_attention(*inputs))
    assert len(graphs) <= 3


def test_a_compiled_gradient_takes_any_length() -> None:
    def loss(*tensors: Tensor) -> Tensor:
        return film_attention(*tensors).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in range(20, 32):  # more than torch would compile one by one
        drawn = draw(1, 2, length, length, 8, dtype=torch.float32)
        inputs = [t.requires_grad_() for t in drawn if t is not None]
        plain = torch.autograd.grad(loss(*inputs), inputs)
        for got, want in zip(torch.autograd.grad(compiled(*inputs), inputs), plain, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("frame", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meta_tensors_have_a_meta_answer_and_meta_gradients(
    frame: int | None, dtype: torch.dtype
) -> None:
    drawn = draw(2, 3, 8, 12, 16, dtype=dtype)
    inputs = [t.to("meta").requires_grad_() for t in drawn if t is not None]
    for training in (False, True):
        with torch.set_grad_enabled(training):
            o = film_attention(*inputs, frame_causal=frame)
        assert (o.device.type, o.dtype, o.shape) == ("meta", dtype, inputs[0].shape)
    o.sum().backward()
    for x in inputs:
        assert x.grad is not None
        assert (x.grad.device.type, x.grad.shape) == ("meta", x.shape)


class FakeCuda(NamedTuple):
    """What the choice of a body looks at, without a GPU."""

    shape: tuple[int, ...] = (1, 2, 8, 64)
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = torch.device("cuda", 7)


@pytest.mark.parametrize(
    ("capability", "switch", "q", "body"),
    [
        ((9, 0), "auto", FakeCuda(), "triton"),
        ((8, 0), "auto", FakeCuda(), "triton"),
        ((7, 5), "auto", FakeCuda(), "torch"),  # Turing: Triton has no kernels for it
        ((9, 0), "torch", FakeCuda(), "torch"),
        ((9, 0), "auto", FakeCuda(shape=(1, 2, 8, 129)), "torch"),
        ((9, 0), "auto", FakeCuda(dtype=torch.float64), "torch"),
    ],
)
def test_the_body_for_a_gpu(
    capability: tuple[int, int],
    switch: str,
    q: FakeCuda,
    body: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setenv("WMFAST_KERNELS", switch)
    launch.supported.cache_clear()
    try:
        assert op._body(q) == body  # type: ignore[arg-type]
    finally:
        launch.supported.cache_clear()


def test_a_compiled_program_chooses_its_body_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced for a GPU that is not there, with a switch that would refuse; then run with others."""
    monkeypatch.setenv("WMFAST_KERNELS", "nonsense")
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    q, k, v, g, b = draw(1, 1, 4, 8, 8, dtype=torch.float32)
    compiled = torch.compile(film_attention, backend=keep, fullgraph=True)
    with pytest.raises(ValueError, match="nonsense"):
        compiled(q, k, v, g, b)  # not while it is traced: there is a graph
    assert torch.ops.wmfast.film_attention.default in graphs[0] or (
        torch.ops.wmfast.film_attention in graphs[0]
    )
    monkeypatch.setenv("WMFAST_KERNELS", "torch")
    torch.testing.assert_close(compiled(q, k, v, g, b), film_attention(q, k, v, g, b))
    assert len(graphs) == 1


@pytest.mark.parametrize("film", [(True, True), (True, False), (False, True), (False, False)])
def test_the_op_on_a_gpu_without_triton(
    film: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(1, 2, 300, 310, 8, dtype=torch.float32)
    inputs = (*inputs[:3], *(t if use else None for t, use in zip(inputs[3:], film, strict=True)))
    monkeypatch.setattr(op, "_body", lambda q: "torch")
    o, lse = op._forward_cuda(*inputs, 7, 0.3)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(2))
    got = (o, lse, *op._backward_cuda(do, *inputs, o, lse, 7, 0.3))
    o, lse = torch.ops.wmfast.film_attention(*inputs, 7, 0.3)
    want = (o, lse, *torch.ops.wmfast.film_attention_backward(do, *inputs, o, lse, 7, 0.3))
    for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert mine.stride() == theirs.stride()
        if i < 5 or all(film):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_functorch_is_refused() -> None:
    q, k, v, g, b = draw(1, 1, 4, 4, 8, dtype=torch.float32)
    for transform, x in ((torch.func.grad, q), (torch.vmap, q[None])):
        with pytest.raises(RuntimeError, match="functorch"):
            transform(lambda q: film_attention(q, k, v, g, b).sum())(x)


@pytest.mark.parametrize("frame", [3, 290, 400])
def test_the_differentiable_slices_of_other_devices_agree(frame: int) -> None:
    inputs = draw(1, 2, 300, 310, 8, dtype=torch.float32)

    def slices(*tensors: Any, frame_causal: int) -> Tensor:
        return film_attention_torch.slices(*tensors, frame_causal, 8**-0.5)

    mine, theirs = (gradients(attend, inputs, frame) for attend in (film_attention, slices))
    for got, want in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.zeros(1, 2, 9, 4)}, ValueError, "Lq at most Lk"),
        ({"k": torch.zeros(1, 2, 8, 5)}, ValueError, r"\(1, 2, 8, 5\)"),
        ({"gamma": torch.zeros(1, 4)}, ValueError, r"gamma has shape \(1, 4\)"),
        ({"v": torch.zeros(1, 2, 8, 4).half()}, TypeError, "float16"),
        ({"frame_causal": 0}, ValueError, "frame_causal = 0"),
        ({"frame_causal": 4.0}, TypeError, "frame_causal = 4.0: .* an int, not a float"),
        ({"gamma": torch.zeros(1, 2, 4).cfloat()}, TypeError, "gamma is torch.complex64: a real"),
        ({"beta": torch.zeros(1, 2, 4).long()}, TypeError, "beta is torch.int64: a real"),
        ({"scale": torch.tensor(0.5)}, TypeError, "scale is a Tensor: allowed is None or a pos"),
        ({"scale": 0.0}, ValueError, r"scale = 0.0: allowed is None or a positive"),
        ({"scale": 3e38}, ValueError, r"scale = 3e\+38: allowed is None or a positive number up"),
        ({"scale": 10**400}, ValueError, r"allowed is None or a positive number up to 2e\+38"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], words: str) -> None:
    zeros = torch.zeros(1, 2, 8, 4)
    film = torch.zeros(1, 2, 4)
    arguments = {"q": zeros, "k": zeros, "v": zeros, "gamma": film, "beta": film, **change}
    with pytest.raises(error, match=words):
        film_attention(**arguments)  # type: ignore[arg-type]
