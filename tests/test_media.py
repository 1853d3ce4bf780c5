"""Pictures show the pixels they were given, at the right place and in the right shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wmfast import media
from wmfast.errors import UserError
from wmfast.media import save_curves, save_dream_gif, save_reconstructions

BLACK, RED, GREEN, BLUE = (0, 0, 0), (200, 30, 30), (40, 180, 60), (30, 40, 220)


def film(background: tuple[int, int, int], ball: tuple[int, int, int], length: int) -> media.Frames:
    """A 2x2 ball that moves one pixel a frame along row 40."""
    frames = np.full((length, 84, 64, 3), background, np.uint8)
    for t in range(length):
        frames[t, 40:42, 10 + t : 12 + t] = ball
    return frames


def panes(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right frame of a GIF's picture at their first size."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    top, gap, width = 22, 8, 64 * 3
    left = pixels[top : top + 84 * 3, gap : gap + width]
    right = pixels[top : top + 84 * 3, 2 * gap + width : 2 * gap + 2 * width]
    return left[1::3, 1::3], right[1::3, 1::3]


def test_gif_shows_the_real_on_the_left_and_the_dream_on_the_right(tmp_path: Path) -> None:
    real, dreamed = film(BLACK, RED, 12), film(BLUE, GREEN, 12)
    save_dream_gif(tmp_path / "dream.gif", real, dreamed, fps=10)
    with Image.open(tmp_path / "dream.gif") as gif:
        assert gif.n_frames == 12
        assert gif.info["duration"] == 100
        for t in range(12):
            gif.seek(t)
            left, right = panes(gif)
            assert np.abs(left - real[t]).max() <= 12, t
            assert np.abs(right - dreamed[t]).max() <= 12, t


def test_gif_keeps_every_frame_where_nothing_moves(tmp_path: Path) -> None:
    still = np.zeros((5, 84, 64, 3), np.uint8)
    save_dream_gif(tmp_path / "still.gif", still, still)
    with Image.open(tmp_path / "still.gif") as gif:
        assert gif.n_frames == 5


def test_small_rare_objects_keep_their_colour_in_the_palette(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noisy = random.integers(0, 60, (8, 84, 64, 3)).astype(np.uint8)  # many colours of background
    noisy[:, 40:42, 10:12] = (250, 200, 20)
    save_dream_gif(tmp_path / "dream.gif", noisy, noisy)
    with Image.open(tmp_path / "dream.gif") as gif:
        left, _ = panes(gif)
    assert np.abs(left[40:42, 10:12] - np.array((250, 200, 20))).max() < 20


def test_reconstructions_stand_under_their_frames_with_their_psnr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []
    monkeypatch.setattr(media, "_caption", lambda draw, corner, text: captions.append(text))
    real, again = film(BLACK, RED, 10), film(BLACK, RED, 10)
    again[:, 0, 0] = GREEN
    save_reconstructions(tmp_path / "picture.png", real, again)
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    frame, again_of_0 = pixels[30 : 30 + 252, 8 : 8 + 192], pixels[304 : 304 + 252, 8 : 8 + 192]
    assert np.array_equal(frame, real[0].repeat(3, axis=0).repeat(3, axis=1))
    assert np.array_equal(again_of_0, again[0].repeat(3, axis=0).repeat(3, axis=1))
    error = (40**2 + 180**2 + 60**2) / (84 * 64 * 3)
    assert captions[:2] == ["real", f"reconstructed, {10 * np.log10(255**2 / error):.1f} dB"]
    assert len(captions) == 20
    ninth = pixels[30 + 556 :, 8 : 8 + 192][:252]  # below the first eight
    assert np.array_equal(ninth, real[8].repeat(3, axis=0).repeat(3, axis=1))


def test_curves_are_drawn_where_there_are_points(tmp_path: Path) -> None:
    drawn = {}
    rows = [{"env_step": 0, "train_step": 50, "tokenizer/train/loss": 0.5}]
    rows += [
        {"env_step": 100 * n, "train_step": 25 * n, "collect/return": 5.0 * n} for n in range(1, 9)
    ]
    for name, given in (
        ("none", []),
        ("some", rows),
        ("gaps", [*rows, {**rows[-1], "collect/return": None}]),
    ):
        save_curves(tmp_path / f"{name}.png", given)
        with Image.open(tmp_path / f"{name}.png") as picture:
            drawn[name] = np.asarray(picture.convert("L"))
    height, width = (size // 2 for size in drawn["none"].shape)
    changed = drawn["none"] != drawn["some"]
    assert changed[:height, : width // 2].sum() > 1000  # the score's panel
    assert np.array_equal(drawn["some"], drawn["gaps"])


def test_wrong_frames_and_unwritable_files_are_refused(tmp_path: Path) -> None:
    frames = film(BLACK, RED, 2)
    with pytest.raises(ValueError, match=r"frames are float64 .*, not uint8 \(N, 84, 64, 3\)"):
        save_dream_gif(tmp_path / "x.gif", frames / 255.0, frames)
    with pytest.raises(ValueError, match="2 frames beside 1"):
        save_dream_gif(tmp_path / "x.gif", frames, frames[:1])
    with pytest.raises(UserError, match=r"cannot write .*absent/x\.png"):
        save_reconstructions(tmp_path / "absent" / "x.png", frames, frames)
    assert not list(tmp_path.iterdir())
