"""The VQ-VAE: the seeds' shapes, its codebook by hand, gradients through it, and fitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from wmfast.config import TokenizerConfig
from wmfast.fit import fit_tokenizer
from wmfast.models.ema_codebook import CHECKS, PERIOD, EmaCodebook
from wmfast.models.tokenizer import build_tokenizer, tokenizer_quality
from wmfast.models.vqvae import VQVAE, to_images
from wmfast.step import TrainStep

TINY = TokenizerConfig(
    kind="vqvae", codebook_size=32, code_dim=8, channels=8, residual_blocks=1, train_steps=3
)


def game(frames: int, seed: int = 0) -> Tensor:
    """Uint8 (N, 84, 64, 3): a block that moves over a plain board with an edge."""
    generator = torch.Generator().manual_seed(seed)
    film = torch.full((frames, 84, 64, 3), 30, dtype=torch.uint8)
    film[:, 60:, :, 1] = 160
    for frame in film:
        y, x = (int(torch.randint(high, (), generator=generator)) for high in (70, 52))
        frame[y : y + 10, x : x + 10, 0] = 250
    return film


def ready(config: TokenizerConfig = TINY) -> VQVAE:
    torch.manual_seed(0)
    tokenizer = VQVAE(config)
    tokenizer.initialise(game(20), torch.Generator().manual_seed(0))
    return tokenizer


@pytest.mark.parametrize("codes", [512, 32])
def test_the_seeds_shapes_and_size(codes: int) -> None:
    model = VQVAE(TokenizerConfig(kind="vqvae", codebook_size=codes)).eval()
    assert sum(p.numel() for p in model.parameters()) == 5_885_571
    assert model.codes.shape == (codes, 256)
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 84, 64))
        latent = model.encoder(torch.zeros(1, 3, 84, 64))
    assert latent.shape == (1, 256, 21, 16)
    assert output.reconstruction_bchw.shape == (1, 3, 84, 64)
    assert output.reconstruction_bchw.abs().max() <= 1
    assert output.tokens_bhw.shape == (1, 21, 16)
    assert output.tokens_bhw.dtype == torch.int64
    assert int(output.tokens_bhw.max()) < codes


def test_forward_encode_and_decode_agree() -> None:
    model, frames = ready().eval(), game(3, seed=1)
    with torch.no_grad():
        output = model(to_images(frames))
    tokens = model.encode(frames)
    assert tokens.shape == (3, 336)
    assert torch.equal(tokens, output.tokens_bhw.flatten(1))
    images = output.reconstruction_bchw.permute(0, 2, 3, 1)
    decoded = model.decode(tokens)
    assert decoded.dtype == torch.uint8
    assert ((decoded / 127.5 - 1) - images).abs().max() < 0.5 / 127.5 + 1e-4
    assert torch.equal(model.decode(tokens), decoded)


def test_a_token_is_the_nearest_code_of_its_latent() -> None:
    model, frames = ready().eval(), game(2, seed=1)
    with torch.no_grad():
        latent = model.encoder(to_images(frames)).flatten(2).transpose(1, 2)
    distance = torch.cdist(latent.double(), model.codes.double()[None])
    assert torch.equal(model.encode(frames), distance.argmin(2))


def test_straight_through_gradient_reaches_the_encoder() -> None:
    model = ready()
    output = model(to_images(game(2)))
    output.reconstruction_bchw.square().sum().backward()
    first = model.encoder[0].weight.grad
    assert first is not None
    assert first.abs().max() > 0
    assert not model.codes.requires_grad


def test_commitment_pulls_the_latent_to_its_code() -> None:
    model, images = ready().eval(), to_images(game(2))
    latent = model.encoder(images).detach().requires_grad_()
    output = model._quantize_and_decode(latent)
    output.commitment.backward()
    codes = model.codes[output.tokens_bhw].permute(0, 3, 1, 2)
    torch.testing.assert_close(output.commitment, (latent - codes).square().mean())
    torch.testing.assert_close(latent.grad, 2 * (latent - codes) / latent.numel())


def test_codebook_moves_to_cluster_means_by_hand() -> None:
    codes = torch.tensor([[0.0], [10.0], [99.0]])
    averages = EmaCodebook(3, 1, decay=0.5, threshold=0.01)
    averages.restart(codes)
    averages.count.copy_(torch.tensor([2.0, 4.0, 2.0]))
    averages.sum.copy_(codes * averages.count[:, None])
    vectors = torch.tensor([[1.0], [3.0], [12.0]])
    usage = averages.update(codes, vectors, torch.tensor([0, 0, 1]))
    assert usage.tolist() == [2, 1, 0]
    # counts 0.5 * 2 + 0.5 * 2 = 2 and 0.5 * 4 + 0.5 * 1 = 2.5; sums 0 + 2 and 20 + 6
    assert averages.count.tolist() == [2.0, 2.5, 1.0]
    torch.testing.assert_close(
        codes, torch.tensor([[2 / 2], [26 / 2.5], [99.0]]), rtol=1e-4, atol=0
    )
    for _ in range(60):
        averages.update(codes, vectors, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(codes[:2], torch.tensor([[2.0], [12.0]]), rtol=1e-3, atol=0)
    assert codes[2] == 99  # never used, never moved


def test_laplace_smoothing_of_a_rare_code_by_hand() -> None:
    codes = torch.zeros(2, 1)
    averages = EmaCodebook(2, 1, decay=0.0, threshold=0.01)
    averages.update(codes, torch.tensor([[4.0]]), torch.tensor([0]))
    # decay 0: counts 1 and 0, N = 1, so code 0 = 4 / ((1 + e) / (1 + 2 e))
    assert codes[0] == pytest.approx(4 * (1 + 2e-5) / (1 + 1e-5), rel=1e-7)


def test_a_dead_code_is_reset_to_a_live_vector_and_lives() -> None:
    codes = torch.tensor([[0.0], [1.0], [500.0]])
    averages = EmaCodebook(3, 1, decay=0.99, threshold=0.01)
    averages.restart(codes)
    vectors = torch.tensor([0.0, 1.0, 2.0, 0.1, 0.9, 2.1])[:, None]
    jumps = []
    for step in range(1, 3 * PERIOD + 1):
        before = codes.clone()
        averages.update(codes, vectors, torch.cdist(vectors, codes).argmin(1))
        if (codes - before).abs().max() > 1:
            jumps.append(step)
    assert jumps == [PERIOD]
    assert vectors.min() <= codes[2] <= vectors.max()
    assert bool(averages.settled)


def test_after_health_no_code_ever_jumps() -> None:
    codes = torch.tensor([[0.0], [1.0]])
    averages = EmaCodebook(2, 1, decay=0.99, threshold=0.01)
    averages.restart(codes)
    both = torch.tensor([[0.0], [1.0]])
    for _ in range(PERIOD):
        averages.update(codes, both, torch.tensor([0, 1]))
    assert bool(averages.settled)
    for _ in range(10 * PERIOD):  # now the second code falls out of use
        averages.update(codes, both[:1], torch.tensor([0]))
    assert averages.count[1] < 0.01 * averages.count.mean()
    assert codes[1] == pytest.approx(1.0, abs=1e-3)


def test_resets_end_where_there_are_fewer_patterns_than_codes() -> None:
    codes = torch.arange(8.0)[:, None] * 100
    averages = EmaCodebook(8, 1, decay=0.99, threshold=0.01)
    averages.restart(codes)
    one = torch.tensor([[0.0]])
    for _ in range(CHECKS * PERIOD - 1):
        averages.update(codes, one, torch.cdist(one, codes).argmin(1))
    assert not bool(averages.settled)
    averages.update(codes, one, torch.cdist(one, codes).argmin(1))
    assert bool(averages.settled)


def test_a_reset_code_that_stays_unused_is_found_dead_again() -> None:
    codes = torch.tensor([[0.0], [50.0], [60.0]])
    averages = EmaCodebook(3, 1, decay=0.99, threshold=0.01)
    averages.restart(codes)
    for step in range(1, 2 * PERIOD + 1):
        at = 0.0 if step <= PERIOD else 7.0
        averages.update(codes, torch.full((4, 1), at), torch.zeros(4, dtype=torch.int64))
        if step == PERIOD:
            assert codes[1:].flatten().tolist() == [0.0, 0.0]
    assert codes[1:].flatten().tolist() == [7.0, 7.0]


def test_eval_mode_never_updates() -> None:
    model = ready()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    model(to_images(game(2, seed=4)))
    model.encode(game(2, seed=4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.train()
    model(to_images(game(2, seed=4)))
    assert not torch.equal(model.codes, before["codes"])


def test_the_quantizer_works_in_float32_under_autocast() -> None:
    model, frames = ready(), game(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = model.loss(frames)
    loss.backward()
    assert loss.dtype == torch.float32
    assert metrics["commitment"].dtype == torch.float32
    assert torch.isfinite(model.encoder[0].weight.grad).all()


def test_kmeans_start_puts_the_codes_among_the_latents() -> None:
    images = to_images(game(10, seed=6))
    torch.manual_seed(0)
    random = VQVAE(TINY).eval()
    with torch.no_grad():
        assert ready().eval()(images).commitment < 0.4 * random(images).commitment


def test_foreground_weight_in_the_loss_by_hand() -> None:
    model, frames = ready().eval(), game(3, seed=2)
    with torch.no_grad():
        output = model(to_images(frames))
        error = output.reconstruction_bchw - to_images(frames)
        moving = (frames.int() - model.median.int()).abs().amax(-1) > 25.5
        for extra in (0.0, 10.0):
            model.foreground_weight = extra
            weight = (1 + extra * moving)[:, None].expand_as(error)
            want = (weight * (error.abs() + error**2)).sum() / weight.sum()
            loss, metrics = model.loss(frames)
            assert float(metrics["reconstruction"]) == pytest.approx(float(want), rel=1e-4)
            assert float(loss) == pytest.approx(float(want + 0.25 * output.commitment), rel=1e-4)


def test_one_batch_can_be_overfitted() -> None:
    model, frames = ready(), game(4, seed=3)
    step = TrainStep(model, model.loss, learning_rate=3e-3, grad_clip=1.0)
    losses = [float(step(frames)["reconstruction"]) for _ in range(60)]
    assert losses[-1] < 0.25 * losses[0]
    assert tokenizer_quality(model.eval(), frames)["psnr_moving"] > 15


def test_state_dict_round_trip() -> None:
    first, frames = ready(), game(2)
    first.loss(frames)
    torch.manual_seed(1)
    second = build_tokenizer(TINY)
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        model.train()
        model.loss(frames)  # averages and counters came along: the next update is the same
    assert all(
        torch.equal(second.state_dict()[name], tensor)
        for name, tensor in first.state_dict().items()
    )


@pytest.mark.parametrize("kind", ["vqvae", "patch"])
def test_fit_is_the_same_for_a_seed_and_reports_its_steps(kind: str) -> None:
    config = TokenizerConfig(
        **{**vars(TINY), "kind": kind, "batch_size": 4}  # type: ignore[arg-type]
    )
    frames, steps, states = np.asarray(game(30)), [], []
    for seed in (5, 5, 6):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(config)
        fit_tokenizer(
            tokenizer,
            frames,
            config,
            seed=seed,
            device=torch.device("cpu"),
            on_step=lambda step, metrics: steps.append((step, sorted(metrics))),
        )
        assert not tokenizer.training
        states.append(tokenizer.state_dict())
    assert [step for step, _ in steps] == [1, 2, 3] * 3
    assert all("loss" in names for _, names in steps)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["codes"], states[2]["codes"])


def test_channels_that_do_not_fit_the_groups_are_named() -> None:
    with pytest.raises(ValueError, match="channels = 12: must be a multiple of 8"):
        VQVAE(TokenizerConfig(kind="vqvae", channels=12))
