"""Codebook rehearsal: frames kept for each code, so that a rare code is not forgotten.

A frame is filed under the RAREST code that it contains (its first token would always be background)
and the codes that have frames are drawn evenly (idea: CUCL, arXiv 2311.14911). A full code keeps an
even sample of all frames ever filed under it (reservoir: Vitter 1985).

Dimension legend: n frames, k tokens of a frame, v codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wmfast.frame_window import Arrays, from_arrays, restore, to_arrays


def rarest_codes(tokens_nk: NDArray[np.integer], usage_v: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of each frame, int64 (N,): which of its codes has the least usage; of equals the lowest."""
    least_n1 = usage_v[tokens_nk].min(axis=1, keepdims=True)
    rarest_nk = np.where(usage_v[tokens_nk] == least_n1, tokens_nk, len(usage_v))
    codes_n: NDArray[np.int64] = rarest_nk.min(axis=1).astype(np.int64)
    return codes_n


class CodebookRehearsal:
    """Up to `frames_per_code` compressed frames for each of `codes` codes."""

    def __init__(self, codes: int, frames_per_code: int) -> None:
        self._per_code = frames_per_code
        self._files: list[list[bytes]] = [[] for _ in range(codes)]
        self._filed_v = np.zeros(codes, np.int64)  # frames ever filed under a code

    def __len__(self) -> int:
        return sum(map(len, self._files))

    @property
    def counts_v(self) -> NDArray[np.int64]:
        """Frames kept for each code."""
        return np.array([len(file) for file in self._files])

    def blobs(self) -> list[bytes]:
        """All frames, compressed, by code."""
        return [blob for file in self._files for blob in file]

    def file(
        self,
        blobs: list[bytes],
        tokens_nk: NDArray[np.integer],
        usage_v: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> None:
        """File compressed frames with these tokens; `usage_v` says how common each code is."""
        draws = rng.random(len(blobs))
        codes = rarest_codes(tokens_nk, usage_v).tolist()
        for blob, code, draw in zip(blobs, codes, draws.tolist(), strict=True):
            self._filed_v[code] += 1
            file = self._files[code]
            if len(file) < self._per_code:
                file.append(blob)
                continue
            place = int(draw * self._filed_v[code])
            if place < self._per_code:
                file[place] = blob

    def file_again(
        self,
        tokens_nk: NDArray[np.integer],
        usage_v: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> None:
        """The tokenizer moved: file every frame anew, given the tokens of ``blobs()`` as they are
        now, in random order. Where the rarest code is full, the next rarest of the frame's codes
        that has room takes it: moving codes must not lose frames. How many frames a code has seen
        is remembered, so that new ones don't crowd it out."""
        blobs = self.blobs()
        self._files = [[] for _ in self._files]
        codes = rarest_codes(tokens_nk, usage_v).tolist() if blobs else []
        for place in rng.permutation(len(blobs)).tolist():
            file = self._files[codes[place]]
            if len(file) >= self._per_code:
                present = np.unique(tokens_nk[place])
                rarer = present[np.argsort(usage_v[present], kind="stable")]
                room = (self._files[code] for code in rarer.tolist())
                file = next((f for f in room if len(f) < self._per_code), file)
            if len(file) < self._per_code:
                file.append(blobs[place])
        self._filed_v = np.maximum(self._filed_v, self.counts_v)

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Frames uint8 (count, 84, 64, 3): a code, evenly among those with frames, then a frame.

        Raises:
            ValueError: nothing was filed yet.
        """
        codes = np.flatnonzero(self.counts_v)
        if not len(codes):
            raise ValueError(f"draw({count}): no frame was filed yet")
        drawn = []
        for code in rng.choice(codes, size=count).tolist():
            file = self._files[code]
            drawn.append(file[int(rng.integers(len(file)))])
        return restore(drawn)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What ``load`` needs."""
        return {**to_arrays(self.blobs()), "counts": self.counts_v, "filed": self._filed_v}

    def load(self, arrays: Arrays) -> None:
        """Become the store that gave these arrays."""
        blobs = iter(from_arrays(arrays))
        self._files = [[next(blobs) for _ in range(int(count))] for count in arrays["counts"]]
        self._filed_v = arrays["filed"].astype(np.int64)
