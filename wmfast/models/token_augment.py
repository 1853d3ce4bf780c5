"""Token histories seen a little differently at each update.

    shift      the whole history moved by up to ``shift`` cells each way, the edge repeated: what
               DrQ's random shift of 4 pixels (Yarats et al. 2021) is on a grid of 4 x 4 patches
    dropout    single tokens replaced by a mask token

The randomness is counter-based (Salmon et al. 2011): a hash of seed, call and place. So there is no
generator to save beside the counter, which is a buffer and travels with the weights, nothing waits
for the device, and a replayed CUDA graph goes on with new numbers.

Dimension legend in ``wmfast.types``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmfast.types import GRID_HW

# SplitMix64 (Steele et al. 2014), as signed numbers of 64 bits, which wrap around alike.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_SIDE = 31  # bits of a number that is made of a hash: its upper ones


class TokenAugment(nn.Module):
    """Moves and masks histories; every call draws anew.

    Args:
        shift: largest move, in cells; 0: none.
        dropout: probability that a token becomes ``mask_token``; 0: never.
        mask_token: its number.
        seed: of the draws.
    """

    calls: Tensor  # int64 ()

    def __init__(self, *, shift: int, dropout: float, mask_token: int, seed: int) -> None:
        super().__init__()
        self._shift, self._dropout, self._mask_token = shift, dropout, mask_token
        self._seed = seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, history_btk: Tensor) -> Tensor:
        """Int64 (B, T, 336) to the same shape; all frames of a history move alike."""
        self.calls.add_(1)
        if self._shift:
            history_btk = self._shifted(history_btk)
        if self._dropout:
            dropped_btk = self._draw(history_btk.shape, 2) < round(self._dropout * 2**_SIDE)
            history_btk = history_btk.masked_fill(dropped_btk, self._mask_token)
        return history_btk

    def _shifted(self, history_btk: Tensor) -> Tensor:
        batch, (height, width), device = len(history_btk), GRID_HW, history_btk.device
        move_b2 = self._draw(torch.Size([batch, 2]), 1) % (2 * self._shift + 1) - self._shift
        row_bh = (torch.arange(height, device=device) + move_b2[:, :1]).clamp(0, height - 1)
        column_bw = (torch.arange(width, device=device) + move_b2[:, 1:]).clamp(0, width - 1)
        cell_bk = (row_bh[:, :, None] * width + column_bw[:, None]).flatten(1)
        return history_btk.gather(2, cell_bk[:, None].expand_as(history_btk))

    def _draw(self, shape: torch.Size, stream: int) -> Tensor:
        """Even numbers of `_SIDE` bits, int64; another `stream`, other numbers."""
        key = _hashed(_hashed(_hashed(self.calls) + self._seed) + stream)
        place = torch.arange(shape.numel(), device=self.calls.device)
        hashed = _hashed(key + place * _GOLDEN)
        return _upper(hashed, 64 - _SIDE).view(shape)


def _hashed(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _upper(x, 30)) * _FIRST
    x = (x ^ _upper(x, 27)) * _SECOND
    return x ^ _upper(x, 31)


def _upper(x: Tensor, bits: int) -> Tensor:
    """x >> bits, zeros coming in."""
    upper: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return upper
