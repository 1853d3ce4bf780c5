"""Codes that go on learning: averages to the digit, who may move, and new looks get codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wmfast.config import TokenizerConfig
from wmfast.models.moving_codes import MovingCodes
from wmfast.models.patch_tokenizer import PatchTokenizer, from_patches, to_patches
from wmfast.models.tokenizer import StreamEncoder, build_tokenizer

TINY = TokenizerConfig(kind="patch", codebook_size=8, channels=8, residual_blocks=1)


def flat(*greys: int) -> Tensor:
    """A frame for each row of ... : patches of one grey each, repeated over the frame."""
    levels = torch.tensor(greys, dtype=torch.uint8).repeat(336 // len(greys) + 1)[:336]
    return from_patches(levels[None, :, None].expand(1, -1, 48).contiguous())


def patches_at(*greys: int) -> PatchTokenizer:
    """A tokenizer whose codes are these greys."""
    torch.manual_seed(0)
    tokenizer = PatchTokenizer(TINY).eval()
    levels = torch.tensor(greys).float()[:, None].expand(-1, 48) / 255
    tokenizer.codes.copy_(levels)
    return tokenizer


GREYS = (0, 30, 60, 90, 120, 150, 180, 210)


def greys(tokenizer: PatchTokenizer) -> list[int]:
    levels = (tokenizer.codes * 255).round()
    assert (levels == levels[:, :1]).all()
    return levels[:, 0].int().tolist()


def test_a_code_moves_toward_its_patches_by_a_moving_average_and_others_stay() -> None:
    tokenizer = patches_at(*GREYS)
    moving = MovingCodes(tokenizer, decay=0.75, autocast=False)
    moving.begin(torch.full((8,), 42.0), 336)  # 42 patches a batch each
    before = tokenizer.version
    moving.follow(flat(66))  # all 336 patches, nearest to 60
    weight = 0.25 * 336 / (0.75 * 42 + 0.25 * 336)
    assert greys(tokenizer) == [0, 30, round(60 + weight * 6), 90, 120, 150, 180, 210]
    assert tokenizer.version > before


def test_small_steps_add_up_though_codes_are_whole_numbers() -> None:
    tokenizer = patches_at(*GREYS)
    moving = MovingCodes(tokenizer, decay=0.99, autocast=False)
    moving.begin(torch.full((8,), 1.0), 336 * 8)
    for _ in range(400):
        moving.follow(flat(70))
    assert greys(tokenizer)[2] == 70


def test_what_fits_worst_gets_the_code_that_would_be_missed_least() -> None:
    tokenizer = patches_at(0, 30, 60, 62, 120, 150, 180, 210)
    moving = MovingCodes(tokenizer, decay=0.99, autocast=False)
    share = torch.full((8,), 1 / 8)
    moving.begin(share, 336)
    ghost = flat(0, 30, 60)
    to_ghost = to_patches(ghost.clone())
    to_ghost[0, :4] = torch.tensor([20, 20, 250], dtype=torch.uint8).repeat(16)  # a blue patch
    sample = from_patches(to_ghost)
    assert moving.reseed(sample, share, 1) == 1
    blue = (tokenizer.codes * 255).round().view(8, 16, 3)[:, 0].tolist()
    assert [20, 20, 250] in blue
    assert blue.index([20, 20, 250]) in (2, 3)  # 60 and 62 are nearly one
    assert (tokenizer.decode(tokenizer.encode(sample))[0, :4, :16] == sample[0, :4, :16]).all()


def test_a_code_that_rehearsed_frames_need_is_not_taken_and_an_unused_one_is() -> None:
    tokenizer = patches_at(*GREYS)
    moving = MovingCodes(tokenizer, decay=0.99, autocast=False)
    sample = flat(0, 36)  # 36 almost fits 30
    needed = torch.full((8,), 0.1)
    moving.begin(needed, 336)
    assert moving.reseed(sample, needed, 4) == 0
    assert greys(tokenizer) == list(GREYS)
    unused = needed.clone()
    unused[5] = 0.0
    assert moving.reseed(sample, unused, 4) == 1
    assert greys(tokenizer) == [0, 30, 60, 90, 120, 36, 180, 210]


def test_a_look_that_is_seen_once_is_chance_and_gets_no_code() -> None:
    unused = torch.full((8,), 0.1)
    unused[5] = 0.0
    for times in (1, 2):
        tokenizer = patches_at(*GREYS)
        moving = MovingCodes(tokenizer, decay=0.99, autocast=False)
        moving.begin(unused, 336)
        patches = to_patches(flat(0).clone())
        patches[0, :times] = 250
        assert moving.reseed(from_patches(patches), unused, 4) == times - 1


def test_of_twins_the_one_in_use_keeps_its_place() -> None:
    tokenizer = patches_at(0, 0, 0, 90, 120, 150, 180, 210)
    moving = MovingCodes(tokenizer, decay=0.99, autocast=False)
    share = torch.tensor([0.9, 0.0, 0.0, 0.02, 0.02, 0.02, 0.02, 0.02])
    moving.begin(share, 336)
    assert moving.reseed(flat(0, 0, 0, 0, 0, 0, 0, 45), share, 4) == 1
    assert greys(tokenizer)[0] == 0
    assert 45 in greys(tokenizer)[1:3]


def test_once_a_twin_has_moved_the_other_is_needed() -> None:
    tokenizer = patches_at(0, 30, 60, 62, 120, 150, 180, 210)
    moving = MovingCodes(tokenizer, decay=0.99, autocast=False)
    share = torch.full((8,), 1 / 8)
    moving.begin(share, 336)
    assert moving.reseed(flat(0, 30, 61, 245, 97), share, 4) == 1  # two looks, one place
    left = greys(tokenizer)
    assert (60 in left) != (62 in left)
    assert 245 in left


def test_a_stream_encoder_looks_at_every_patch_again_once_codes_have_moved() -> None:
    tokenizer = patches_at(*GREYS)
    encode = StreamEncoder(tokenizer)
    assert (encode(flat(40)) == 1).all()
    points = tokenizer.points().clone()
    points[5] = points[1] + 10 / 30 * (points[2] - points[1])  # grey 40
    tokenizer.move_codes(points, torch.arange(8) == 5)
    assert (encode(flat(40)) == 5).all()


def test_a_vqvaes_codes_follow_its_encoder() -> None:
    torch.manual_seed(0)
    config = TokenizerConfig(kind="vqvae", codebook_size=16, code_dim=8, channels=8)
    tokenizer = build_tokenizer(config).eval()
    frames = torch.randint(256, (4, 84, 64, 3), dtype=torch.uint8)
    tokenizer.initialise(frames, torch.Generator().manual_seed(0))
    moving = MovingCodes(tokenizer, decay=0.5, autocast=False)
    moving.begin(torch.ones(16), 4 * 336)
    tokens = tokenizer.encode(frames)
    vectors = tokenizer.vectors(frames)
    assert vectors.shape == (4 * 336, 8)
    code = int(tokens.flatten().mode().values)
    before = tokenizer.codes[code].clone()
    moving.follow(frames)
    mine = vectors[tokens.flatten() == code]
    count = 0.5 * 4 * 336 / 16
    want = (count * before + 0.5 * mine.sum(0)) / (count + 0.5 * len(mine))
    assert tokenizer.codes[code].tolist() == pytest.approx(want.tolist(), abs=1e-5)
