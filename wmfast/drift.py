"""How far a tokenizer has moved: which tokens of held-out frames it still gives.

Retention is the share of tokens that stay the same, over all cells and over the moving ones (cells
with a pixel off the median frame). Drift is 1 - retention, of all cells or of the moving ones,
whichever moved further: most cells are background, which stays while every sprite may be lost.

The bank also knows which rows of the replay buffer were encoded by which state of the tokenizer, so
that rows whose pixels are gone can be dropped once the drift since then is too large. A stretch of
rows is judged by the frames of the bank that were played within it, and the nearest beyond it: the
bank grows with the run, because a look that came later drifts unseen by frames of the warm-up.

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
_JUDGES = 32  # frames at least by which rows are judged, where the bank has them
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
        frames: uint8 (N, 84, 64, 3), never trained on: those of ``begin``, then later ones.
        ids: int64 (N,), the row of each frame; those of ``begin`` and the later ones rise.
    """

    def __init__(self) -> None:
        self.frames = np.zeros((0, *FRAME_HW, 3), np.uint8)
        self.ids = np.zeros(0, np.int64)
        self._moving_nk = np.zeros((0, 0), np.bool_)
        self._first = np.zeros((0, 0), np.uint16)  # of the frames of `begin`
        # (id, tokens): rows from this id to the next one's were encoded when the bank had these.
        # Later frames come last, so that an old span has the tokens of the first n frames.
        self._spans: list[tuple[int, Tokens]] = []

    def begin(
        self,
        frames: NDArray[np.uint8],
        ids: NDArray[np.int64],
        tokens_nk: Tokens,
        moving_nk: NDArray[np.bool_],
    ) -> None:
        """Take the warm-up's frames (N, 84, 64, 3), which stay, their tokens and moving cells."""
        self.frames, self.ids = frames, ids
        self._moving_nk, self._first = moving_nk, tokens_nk
        self._spans = [(0, tokens_nk)]

    @property
    def frames_of_start(self) -> NDArray[np.uint8]:
        """The frames of ``begin``."""
        return self.frames[: len(self._first)]

    def grow(
        self,
        frames: NDArray[np.uint8],
        ids: NDArray[np.int64],
        tokens_nk: Tokens,
        moving_nk: NDArray[np.bool_],
        *,
        oldest_id: int,
        most: int,
    ) -> None:
        """Take later frames too, with the tokens that they have now (after ``moved``).

        Of all later frames, at most `most` stay: none whose row is not stored any more (before
        `oldest_id`), and where they lie densest one after another goes.
        """
        self.frames, self.ids = np.concatenate([self.frames, frames]), np.append(self.ids, ids)
        self._moving_nk = np.concatenate([self._moving_nk, moving_nk])
        first, now_nk = self._spans[-1]
        self._spans[-1] = first, np.concatenate([now_nk, tokens_nk])
        start = len(self._first)
        later = start + np.flatnonzero(self.ids[start:] >= oldest_id)
        kept = np.append(np.arange(start), later[_spread(self.ids[later], most)])
        self._spans = [(first, known[kept[kept < len(known)]]) for first, known in self._spans]
        self.frames, self.ids = self.frames[kept], self.ids[kept]
        self._moving_nk = self._moving_nk[kept]

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
        start = slice(len(self._first))
        since = (self._first, tokens_nk[start])
        return {
            "retention": _share_kept(last, tokens_nk),
            "retention_moving": _share_kept(last, tokens_nk, self._moving_nk),
            "retention_since_start": _share_kept(*since),
            "retention_moving_since_start": _share_kept(*since, self._moving_nk[start]),
        }

    def stale_before(self, bound: float) -> int:
        """Rows with smaller ids were encoded so long ago that the drift since then passes `bound`,
        or lie before such rows; 0: none do."""
        now_nk = self._spans[-1][1]
        stale = 0
        for (first, then_nk), (end, _) in pairwise(self._spans):
            judges = self._judges(first, end, len(then_nk))
            then_jk, now_jk = then_nk[judges], now_nk[judges]
            moving = _share_kept(then_jk, now_jk, self._moving_nk[judges])
            if 1 - min(_share_kept(then_jk, now_jk), moving) > bound:
                stale = end
        return stale

    def _judges(self, first: int, end: int, known: int) -> NDArray[np.intp]:
        """Of the first `known` frames those of rows `first` to `end`, and the nearest beyond."""
        ids = self.ids[:known]
        apart = np.maximum(0, np.maximum(first - ids, ids - end + 1))
        return np.argsort(apart, kind="stable")[: max(_JUDGES, np.count_nonzero(apart == 0))]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What ``load`` needs."""
        span_ids, tokens = zip(*self._spans, strict=True)
        return {
            "frames": self.frames,
            "ids": self.ids,
            "moving": self._moving_nk,
            "first": self._first,
            "span_ids": np.array(span_ids),
            "span_sizes": np.array([len(known) for known in tokens]),
            "span_tokens": np.concatenate(tokens),
        }

    def load(self, arrays: Arrays) -> None:
        """Become the bank that gave these arrays."""
        self.frames, self.ids = arrays["frames"].astype(np.uint8), arrays["ids"].astype(np.int64)
        self._moving_nk = arrays["moving"].astype(np.bool_)
        self._first = arrays["first"].astype(np.uint16)
        ends = np.cumsum(arrays["span_sizes"].astype(np.int64))
        tokens = np.split(arrays["span_tokens"].astype(np.uint16), ends[:-1])
        self._spans = list(zip(arrays["span_ids"].tolist(), tokens, strict=True))


def _spread(ids: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Which of these rising ids stay when they are thinned to `most` where they lie densest."""
    kept = np.arange(len(ids))
    while len(kept) > most:
        around = np.full(len(kept), np.inf)
        around[1:-1] = ids[kept[2:]] - ids[kept[:-2]]
        kept = np.delete(kept, around.argmin())
    return kept


def _share_kept(
    before_nk: Tokens, now_nk: Tokens, where_nk: NDArray[np.bool_] | None = None
) -> float:
    same_nk = before_nk == now_nk
    kept = same_nk if where_nk is None else same_nk[where_nk]
    return float(kept.mean()) if kept.size else 1.0
