"""Pictures of a run: reconstructions, training curves, and a dream beside the real thing.

Frames are uint8 (N, 84, 64, 3). Pixels are enlarged evenly, which keeps the 84 : 64 shape that the
emulator's 210 x 160 picture has. Every file is written whole or not at all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wmfast.disk import one_line_errors, write_atomic
from wmfast.types import FRAME_HW

Frames = NDArray[np.uint8]
"""Frames (N, 84, 64, 3)."""

_SCALE = 3
_GAP = 8
_CAPTION = 22
_COLUMNS = 8
_UNCHANGED = 255  # colour index of a GIF's transparent pixels
_PAPER, _INK = (24, 24, 28), (235, 235, 235)


def save_reconstructions(path: Path, real: Frames, reconstructed: Frames) -> None:
    """PNG: each real frame above its reconstruction, with its PSNR in dB.

    Raises:
        UserError: the file can't be written.
    """
    _check_frames(real, reconstructed)
    height, width = FRAME_HW[0] * _SCALE, FRAME_HW[1] * _SCALE
    columns = min(_COLUMNS, len(real))
    bands = -(-len(real) // columns)
    band_height = 2 * (height + _CAPTION) + _GAP
    size = (columns * (width + _GAP) + _GAP, bands * band_height + _GAP)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (frame, again) in enumerate(zip(real, reconstructed, strict=True)):
        x = _GAP + number % columns * (width + _GAP)
        y = _GAP + number // columns * band_height
        _caption(draw, (x, y), "real")
        picture.paste(_enlarged(frame), (x, y + _CAPTION))
        y += height + _CAPTION
        _caption(draw, (x, y), f"reconstructed, {_psnr(frame, again):.1f} dB")
        picture.paste(_enlarged(again), (x, y + _CAPTION))
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    _write(path, data)


def save_dream_gif(
    path: Path, real: Frames, dreamed: Frames, *, fps: float = 15, refresh: int = 0
) -> None:
    """GIF: the real sequence on the left, the dream of it on the right, and a frame counter.

    One palette serves all frames, so that still pixels stay still and cost nothing.

    Args:
        fps: frames a second; GIF rounds a frame's time to 10 ms.
        refresh: steps after which the dream got real frames again, for the caption; 0: never.

    Raises:
        UserError: the file can't be written.
    """
    _check_frames(real, dreamed)
    height, width = FRAME_HW[0] * _SCALE, FRAME_HW[1] * _SCALE
    kind = f"{refresh}-step dreams" if refresh else "dream"
    pictures = []
    for number, (left, right) in enumerate(zip(real, dreamed, strict=True), 1):
        picture = Image.new("RGB", (2 * width + 3 * _GAP, height + _CAPTION + _GAP), _PAPER)
        draw = ImageDraw.Draw(picture)
        _caption(draw, (_GAP, 0), "real")
        _caption(draw, (2 * _GAP + width, 0), f"{kind}  {number}/{len(real)}")
        picture.paste(_enlarged(left), (_GAP, _CAPTION))
        picture.paste(_enlarged(right), (2 * _GAP + width, _CAPTION))
        pictures.append(picture)
    palette = _shared_palette(np.concatenate([real, dreamed]), pictures[0])
    indexed = [np.asarray(p.quantize(palette=palette, dither=Image.Dither.NONE)) for p in pictures]
    # What did not change is left transparent: long runs of one colour, a quarter of the bytes.
    changes = [indexed[0]]
    changes += [
        np.where(now == before, _UNCHANGED, now).astype(np.uint8)
        for before, now in pairwise(indexed)
    ]
    first, *others = [_paletted(change, palette) for change in changes]
    data = io.BytesIO()
    first.save(
        data,
        "GIF",
        save_all=True,
        append_images=others,
        duration=max(20, round(100 / fps) * 10),
        loop=0,
        transparency=_UNCHANGED,
        disposal=1,
        optimize=False,
    )
    _write(path, data)


@dataclass(frozen=True)
class _Panel:
    """One plot: the metrics that it shows, by key, and what the legend calls them."""

    title: str
    curves: Mapping[str, str]
    log: bool = False
    over: str = "env step"


_PANELS = (
    _Panel(
        "score",
        {
            "collect/return": "recent training games",
            "eval/greedy/return": "greedy",
            "eval/epsilon_0.01/return": "epsilon 0.01",
        },
    ),
    _Panel("agent loss", {"agent/train/loss": "Huber", "agent/train/td_error": "TD error"}),
    _Panel("tokenizer loss", {"tokenizer/train/loss": "loss"}, log=True, over="tokenizer step"),
    _Panel("world-model loss", {"world_model/train/token_loss": "nats a token"}, log=True),
    _Panel(
        "world-model accuracy",
        {
            "world_model/train/token_accuracy": "all tokens",
            "world_model/train/copy_accuracy": "all tokens, copying the last frame",
            "world_model/train/changed_accuracy": "changed tokens (copying: 0)",
        },
    ),
    _Panel("speed", {"speed/env_steps_per_s": "env steps/s"}),
)


def save_curves(path: Path, rows: Sequence[Mapping[str, float | None]]) -> None:
    """PNG of the training curves over env steps, from the rows of metrics.jsonl.

    Before the first env step is counted (the tokenizer's fit) the train step is the abscissa. A
    curve without points yet is left out, a panel without any says so.

    Raises:
        UserError: the file can't be written.
    """
    # Not pyplot: it keeps figures and a backend for the whole process.
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, axes in zip(_PANELS, figure.subplots(2, 3).flat, strict=True):
        axes.set_title(panel.title)
        axes.set_xlabel(panel.over)
        axes.grid(alpha=0.3)
        any_points = False
        for key, label in panel.curves.items():
            points = [
                (row["env_step"] or row["train_step"], row[key])
                for row in rows
                if row.get(key) is not None
            ]
            if points:
                any_points = True
                marker = "o" if len(points) < 30 else ""
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
        if any_points:
            axes.legend(fontsize=8)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            if panel.log:
                axes.set_yscale("log")
            elif panel.title == "speed":
                axes.set_ylim(bottom=0)
        else:
            axes.text(0.5, 0.5, "no points yet", ha="center", transform=axes.transAxes)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    _write(path, data)


def _check_frames(first: Frames, second: Frames) -> None:
    for frames in (first, second):
        if frames.dtype != np.uint8 or frames.shape[1:] != (*FRAME_HW, 3) or not len(frames):
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 (N, 84, 64, 3)")
    if len(first) != len(second):
        raise ValueError(f"{len(first)} frames beside {len(second)}")


def _enlarged(frame: Frames) -> Image.Image:
    return Image.fromarray(frame.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1))


def _caption(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    draw.text((corner[0], corner[1] + 3), text, fill=_INK, font=ImageFont.load_default(14))


def _psnr(frame: Frames, again: Frames) -> float:
    error = np.square(frame.astype(np.float64) - again).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _shared_palette(frames: Frames, captioned: Image.Image) -> Image.Image:
    """Colours 0 to 254 for all frames, small objects' included, and those of the captions."""
    # By plain counts the background would take the palette (a ghost is some dozens of pixels):
    # similar colours are counted as one, and a count weighs by its square root.
    pixels = frames.reshape(-1, 3)
    red, green, blue = (pixels >> 3).astype(np.int32).T
    _, first, counts = np.unique(
        red << 10 | green << 5 | blue, return_index=True, return_counts=True
    )
    captions = np.unique(np.asarray(captioned)[:_CAPTION].reshape(-1, 3), axis=0)
    swatch = np.concatenate(
        [np.repeat(pixels[first], np.sqrt(counts).astype(np.int64), axis=0), captions]
    )
    side = math.ceil(math.sqrt(len(swatch)))
    square = Image.fromarray(np.resize(swatch, (side, side, 3)))
    # Octree, not median cut: measured on MsPacman, a third of the error on what moves.
    return square.quantize(_UNCHANGED, method=Image.Quantize.FASTOCTREE)


def _paletted(indices: NDArray[np.uint8], palette: Image.Image) -> Image.Image:
    picture = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    picture.putpalette(palette.getpalette() or [])
    return picture


def _write(path: Path, data: io.BytesIO) -> None:
    with one_line_errors("write", path):
        write_atomic(path, data.getvalue())
