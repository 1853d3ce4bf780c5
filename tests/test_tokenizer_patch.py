"""The patch tokenizer: k-means codes, exact round trips, a decoder that learns; its quality."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wmfast.config import TokenizerConfig
from wmfast.models.foreground import foreground_weights, median_frame, moving_pixels
from wmfast.models.kmeans import kmeans
from wmfast.models.patch_tokenizer import (
    PatchTokenizer,
    colour_metric,
    distinct_patches,
    from_colour_metric,
    from_patches,
    to_patches,
)
from wmfast.models.tokenizer import build_tokenizer, tokenizer_quality
from wmfast.step import TrainStep

TINY = TokenizerConfig(kind="patch", codebook_size=32, channels=8, residual_blocks=1)


def game(frames: int, seed: int = 0, colours: int = 3) -> Tensor:
    """Uint8 (N, 84, 64, 3): a striped board on which a ball of one of some colours moves."""
    generator = torch.Generator().manual_seed(seed)
    board = torch.zeros(84, 64, 3, dtype=torch.uint8)
    board[::6], board[1::6, :, 2] = 90, 200
    film = board.repeat(frames, 1, 1, 1)
    palette = torch.tensor([[255, 60, 0], [0, 255, 80], [240, 240, 30]])[:colours]
    for frame in film:
        y, x, colour = (
            int(torch.randint(high, (), generator=generator)) for high in (80, 60, colours)
        )
        frame[y : y + 4, x : x + 4] = palette[colour].to(torch.uint8)
    return film


def ready(config: TokenizerConfig = TINY, frames: int = 60) -> PatchTokenizer:
    torch.manual_seed(0)
    tokenizer = PatchTokenizer(config)
    tokenizer.initialise(game(frames), torch.Generator().manual_seed(0))
    return tokenizer


def test_patches_are_the_grid_row_by_row() -> None:
    frames = torch.arange(2 * 84 * 64 * 3).view(2, 84, 64, 3)
    patches = to_patches(frames)
    assert patches.shape == (2, 336, 48)
    assert torch.equal(patches[1, 16 * 2 + 3].view(4, 4, 3), frames[1, 8:12, 12:16])
    assert torch.equal(from_patches(patches), frames)


def test_a_frame_made_of_codes_comes_back_exactly() -> None:
    tokenizer = ready()
    tokens = torch.randint(32, (2, 336), generator=torch.Generator().manual_seed(1))
    pasted = (tokenizer.codes[tokens] * 255).round().to(torch.uint8)
    again = tokenizer.encode(from_patches(pasted))
    assert torch.equal((tokenizer.codes[again] * 255).round().to(torch.uint8), pasted)
    # an untrained decoder adds nothing, and decoding is deterministic
    assert torch.equal(tokenizer.decode(again), from_patches(pasted))


def test_few_distinct_patches_are_all_codes() -> None:
    frames = game(40, colours=1)
    patches, counts = distinct_patches(frames)
    config = TokenizerConfig(kind="patch", codebook_size=len(patches) + 3, channels=8)
    tokenizer = PatchTokenizer(config)
    tokenizer.initialise(frames, torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.decode(tokenizer.encode(frames)), frames)
    assert counts.sum() == 40 * 336


def test_distinct_patches_and_counts_equal_unique() -> None:
    frames = game(20)
    patches, counts = distinct_patches(frames)
    want, want_counts = to_patches(frames).view(-1, 48).unique(dim=0, return_counts=True)
    assert len(patches) == len(want)
    assert (counts[:-1] >= counts[1:]).all()
    found = {tuple(p.tolist()): int(c) for p, c in zip(patches, counts, strict=True)}
    assert found == {tuple(p.tolist()): int(c) for p, c in zip(want, want_counts, strict=True)}


def test_colour_counts_twice_and_the_metric_can_be_undone() -> None:
    black = torch.zeros(48)
    grey, red = black.clone(), black.clone()
    grey[:3] = 10.0
    red[0] = 10.0
    # |3 g|^2 with g = 10 in three channels; 6 r - r and twice -r
    assert colour_metric(grey).square().sum() == 3 * 30**2
    assert colour_metric(red).square().sum() == 50**2 + 2 * 10**2
    patches = to_patches(game(1)).float()
    torch.testing.assert_close(from_colour_metric(colour_metric(patches)), patches)


def test_encode_next_equals_encode() -> None:
    tokenizer = ready()
    before, after = game(8, seed=1), game(8, seed=2)
    tokens = tokenizer.encode(before)
    kept = tokens.clone()
    assert torch.equal(tokenizer.encode_next(after, before, tokens), tokenizer.encode(after))
    assert torch.equal(tokens, kept)
    # and where nothing changed, the given tokens are trusted
    assert torch.equal(tokenizer.encode_next(before, before, kept + 1), kept + 1)


def test_the_decoder_learns_and_the_codes_stay() -> None:
    config = TokenizerConfig(kind="patch", codebook_size=12, channels=16, residual_blocks=1)
    tokenizer, frames = ready(config), game(8, seed=3)
    codes, before = tokenizer.codes.clone(), tokenizer_quality(tokenizer, frames)
    step = TrainStep(tokenizer, tokenizer.loss, learning_rate=1e-2, grad_clip=1.0)
    losses = [float(step(frames)["loss"]) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    after = tokenizer_quality(tokenizer, frames)
    assert after["psnr"] > before["psnr"] + 3
    assert after["psnr_moving"] > before["psnr_moving"] + 3
    assert torch.equal(tokenizer.codes, codes)
    assert all(p.grad is not None and p.grad.any() for p in tokenizer.parameters())


def test_loss_by_hand_and_the_foreground_weight_in_it() -> None:
    tokenizer, frames = ready(), game(4, seed=5)
    error = tokenizer.decode(tokenizer.encode(frames)).double() / 255 - frames.double() / 255
    moving = (frames.int() - tokenizer.median.int()).abs().amax(-1) > 25.5
    assert 0 < moving.sum() < moving.numel() / 10
    losses = []
    for extra in (0.0, 10.0):
        tokenizer.foreground_weight = extra
        weight = (1 + extra * moving.double())[..., None].expand_as(error)
        want = (weight * error.square()).sum() / weight.sum()
        losses.append(float(tokenizer.loss(frames)[0].detach()))
        assert losses[-1] == pytest.approx(float(want), rel=1e-4)
    assert losses[1] > 2 * losses[0]  # the errors of this tokenizer are on the ball


def test_foreground_of_a_single_pixel() -> None:
    background = torch.full((84, 64, 3), 100, dtype=torch.uint8)
    frame = background[None].clone()
    frame[0, 5, 6, 1] = 100 + 26  # just above 0.1 of 255, in one channel
    frame[0, 5, 7] = 100 - 25  # just below
    mask = moving_pixels(frame, background)
    assert mask.nonzero().tolist() == [[0, 5, 6]]
    weights = foreground_weights(frame, background, 10.0)
    assert weights[0, 5, 6] == 11
    assert weights.sum() == 84 * 64 + 10


def test_median_frame_drops_what_moves() -> None:
    film = game(31)
    board = game(1, seed=9)
    unmoved = (film == film[0]).all(0)
    assert torch.equal(median_frame(film)[unmoved], film[0][unmoved])
    assert moving_pixels(board, median_frame(film)).sum() <= 16


def test_quality_by_hand() -> None:
    tokenizer, frames = ready(), game(3, seed=7)
    decoded = tokenizer.decode(tokenizer.encode(frames))
    square = (decoded.double() - frames.double()).square()
    moving = moving_pixels(frames, tokenizer.median)
    quality = tokenizer_quality(tokenizer, frames)
    assert quality["psnr"] == pytest.approx(10 * math.log10(255**2 / square.mean()))
    assert quality["psnr_moving"] == pytest.approx(10 * math.log10(255**2 / square[moving].mean()))
    counts = tokenizer.encode(frames).flatten().bincount().double()
    share = counts[counts > 0] / counts.sum()
    assert quality["live_codes"] == len(share)
    assert quality["perplexity"] == pytest.approx(float((-share * share.log()).sum().exp()))


def test_state_dict_round_trip() -> None:
    first, frames = ready(), game(2, seed=8)
    torch.nn.init.normal_(first.residual.weight, std=0.05)
    torch.manual_seed(1)
    second = build_tokenizer(TINY)
    second.load_state_dict(first.state_dict())
    tokens = first.encode(frames)
    assert torch.equal(second.encode(frames), tokens)
    assert torch.equal(second.decode(tokens), first.decode(tokens))
    assert torch.equal(second.median, first.median)


def test_kmeans_finds_separate_clusters_and_weighs_points() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    generator = torch.Generator().manual_seed(0)
    points = centres.repeat(25, 1) + 0.1 * torch.randn(100, 2, generator=generator)
    weight = torch.ones(100)
    found = kmeans(points, weight, 4, generator, rounds=5)
    assert torch.cdist(centres, found).amin(1).max() < 0.1
    # two points in one cluster: the centre is their weighted mean
    pair = torch.tensor([[0.0], [1.0], [100.0]])
    found = kmeans(pair, torch.tensor([3.0, 1.0, 1.0]), 2, generator, rounds=5)
    assert sorted(found.flatten().tolist()) == pytest.approx([0.25, 100.0])


def test_kmeans_uses_every_cluster_when_points_repeat() -> None:
    # three far points among many copies: an empty cluster must move to one of them
    points = torch.cat([torch.zeros(50, 1), torch.tensor([[1.0], [50.0], [60.0]])])
    found = kmeans(points, torch.ones(53), 4, torch.Generator().manual_seed(0), rounds=10)
    assert sorted(found.flatten().tolist()) == pytest.approx([0.0, 1.0, 50.0, 60.0])
