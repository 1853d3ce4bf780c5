"""What moves: pixels that differ from the median frame, and losses that don't overlook them.

A few dozen pixels (ghosts, ball, bullets) decide a game. Under a plain L1 loss a tokenizer learns
the maze and drops every one of them, so pixels off the median frame weigh more.

Dimension legend: b batch, h, w pixels, c channels; frames are uint8 (B, 84, 64, 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOVING = 0.1  # of full scale, in any channel
_MEDIAN_FRAMES = 512  # enough for a median over a warm-up collection


def median_frame(frames_bhwc: Tensor) -> Tensor:
    """Median of each pixel and channel, uint8 (84, 64, 3), over frames spread evenly."""
    spread = torch.linspace(0, len(frames_bhwc) - 1, min(len(frames_bhwc), _MEDIAN_FRAMES))
    columns = frames_bhwc[spread.long()].flatten(1).t().contiguous()  # (h*w*c, b)
    return columns.median(1).values.view(frames_bhwc.shape[1:])


def moving_pixels(frames_bhwc: Tensor, median_hwc: Tensor) -> Tensor:
    """Bool (B, 84, 64): differs from the median frame by more than 0.1 in any channel."""
    difference = frames_bhwc.short() - median_hwc.short()
    return (difference.abs() > MOVING * 255).any(-1)


def foreground_weights(frames_bhwc: Tensor, median_hwc: Tensor, extra: float) -> Tensor:
    """Float32 (B, 84, 64): 1, and 1 + ``extra`` where a pixel moves."""
    return 1 + extra * moving_pixels(frames_bhwc, median_hwc).float()
