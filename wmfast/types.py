"""Words shared by every part: the dimension legend and the batches that travel between parts.

Dimension legend (lower-case suffixes of tensor names, e.g. ``tokens_btk``):

    b  batch                        k  tokens per frame (21 * 16 = 336)
    t  frames in a history (4)      v  codebook size (vocabulary)
    s  steps of a segment           d  model width
    l  sequence positions           n  attention heads
    a  actions                      e  environments
    c, h, w  image channels, height, width (84 x 64) or token grid (21 x 16)

Frames are uint8 (B, 84, 64, 3), as the emulator gives them. Tokens are stored as uint16 and enter a
model as int64 (B, ..., K), row-major over the 21 x 16 grid.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

FRAME_HW = (84, 64)
GRID_HW = (21, 16)
TOKENS_PER_FRAME = GRID_HW[0] * GRID_HW[1]
HISTORY = 4

Metrics = dict[str, Tensor]
"""Scalars by short name (``token_loss``); they stay on the device until the log interval."""


class Transitions(NamedTuple):
    """What the agent learns from; one n-step transition a row."""

    state_btk: Tensor  # int64 (B, T, K) oldest frame first
    action_b: Tensor  # int64 (B,)
    reward_b: Tensor  # float32 (B,) n-step, discounted
    next_state_btk: Tensor  # int64 (B, T, K)
    discount_b: Tensor  # float32 (B,) gamma^m, 0 where the bootstrap ends
    weight_b: Tensor  # float32 (B,) importance weights, at most 1


class Segments(NamedTuple):
    """What the world model learns from: T history frames, then S steps.

    ``action_bs[:, i]`` was chosen on frame ``tokens_bsk[:, T - 1 + i]`` and led to frame ``T + i``.
    """

    tokens_bsk: Tensor  # int64 (B, T + S, K)
    action_bs: Tensor  # int64 (B, S)
    reward_bs: Tensor  # float32 (B, S) raw, unclipped
    terminated_bs: Tensor  # bool (B, S); the frame after a termination is stale: never a target
    mask_bs: Tensor  # bool (B, S); False past the end of the episode
    life_lost_bs: Tensor  # bool (B, S); the agent's returns stop here, the episode goes on
