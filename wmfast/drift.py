"""How far a tokenizer has moved: which tokens of held-out frames it still gives.

Retention is the share of tokens that stay the same, over all cells and over the moving ones (cells
with a pixel off the median frame). Drift is 1 - retention, of all cells or of the moving ones,
whichever moved further: most cells are background, which stays while every sprite may be lost.

The bank also knows which rows of the replay buffer were encoded by which state of the tokenizer, so
that rows whose pixels are gone can be dropped once the drift since then is too large.

Dimension legend: n frames of the bank, k tokens of a frame.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wmfast.frame_window import Arrays
from wmfast.models.foreground import moving_pixels
from wmfast.types import FRAME_HW, GRID_HW

_CELL = FRAME_HW[0] // GRID_HW[0]
Tokens = NDArray[np.uint16]


def moving_cells(frames_nhwc: Tensor, median_hwc: Tensor) -> NDArray[np.bool_]:
    """Bool (N, K): a pixel of the cell differs from the median frame."""
    moving_nhw = moving_pixels(frames_nhwc, median_hwc)
    cells = moving_nhw.unflatten(2, (GRID_HW[1], _CELL)).unflatten(1, (GRID_HW[0], _CELL))
    moving: NDArray[np.bool_] = cells.any(4).any(2).flatten(1).cpu().numpy()
    return moving


class DriftBank:
    """Held-out frames and the tokens that they had: now, at the start, and in between.

    Attributes:
        frames: uint8 (N, 84, 64, 3); fixed by ``begin`` and never trained on.
    """

    def __init__(self) -> None:
        self.frames = np.zeros((0, *FRAME_HW, 3), np.uint8)
        self._moving_nk = np.zeros((0, 0), np.bool_)
        self._first = np.zeros((0, 0), np.uint16)
        # (id, tokens): rows from this id to the next one's were encoded when the bank had these.
        self._spans: list[tuple[int, Tokens]] = []

    def begin(
        self, frames: NDArray[np.uint8], tokens_nk: Tokens, moving_nk: NDArray[np.bool_]
    ) -> None:
        """Fix the frames (N, 84, 64, 3), their tokens and moving cells (N, K)."""
        self.frames, self._moving_nk, self._first = frames, moving_nk, tokens_nk
        self._spans = [(0, tokens_nk)]

    def moved(self, tokens_nk: Tokens, encoded_from: int, oldest_id: int) -> dict[str, float]:
        """The bank has these tokens (N, K) now, and rows from `encoded_from` on are as new.

        Args:
            oldest_id: rows before it are not stored any more.

        Returns:
            ``retention`` and ``retention_moving`` against the tokens of the last call, and
            ``retention_since_start``, ``retention_moving_since_start``.
        """
        last = self._spans[-1][1]
        self._spans = [span for span in self._spans if span[0] < encoded_from]
        self._spans.append((encoded_from, tokens_nk))
        stored = [after[0] > oldest_id for _, after in pairwise(self._spans)]
        self._spans = [s for s, kept in zip(self._spans, [*stored, True], strict=True) if kept]
        return {
            "retention": _share_kept(last, tokens_nk),
            "retention_moving": _share_kept(last, tokens_nk, self._moving_nk),
            "retention_since_start": _share_kept(self._first, tokens_nk),
            "retention_moving_since_start": _share_kept(self._first, tokens_nk, self._moving_nk),
        }

    def stale_before(self, bound: float) -> int:
        """Rows with smaller ids were encoded so long ago that the drift since then passes `bound`,
        or lie before such rows; 0: none do."""
        now = self._spans[-1][1]
        stale = 0
        for (_, tokens_nk), (end, _) in pairwise(self._spans):
            moving = _share_kept(tokens_nk, now, self._moving_nk)
            if 1 - min(_share_kept(tokens_nk, now), moving) > bound:
                stale = end
        return stale

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What ``load`` needs."""
        ids, tokens = zip(*self._spans, strict=True)
        return {
            "frames": self.frames,
            "moving": self._moving_nk,
            "first": self._first,
            "span_ids": np.array(ids),
            "span_tokens": np.stack(tokens),
        }

    def load(self, arrays: Arrays) -> None:
        """Become the bank that gave these arrays."""
        self.frames = arrays["frames"].astype(np.uint8)
        self._moving_nk = arrays["moving"].astype(np.bool_)
        self._first = arrays["first"].astype(np.uint16)
        tokens = list(arrays["span_tokens"].astype(np.uint16))
        self._spans = list(zip(arrays["span_ids"].tolist(), tokens, strict=True))


def _share_kept(
    before_nk: Tokens, now_nk: Tokens, where_nk: NDArray[np.bool_] | None = None
) -> float:
    same_nk = before_nk == now_nk
    kept = same_nk if where_nk is None else same_nk[where_nk]
    return float(kept.mean()) if kept.size else 1.0
