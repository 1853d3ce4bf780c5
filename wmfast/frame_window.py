"""The newest frames as pixels, compressed, each with its row's id in the replay buffer.

An MsPacman frame of 16,128 bytes takes about 1.9 kB, a Breakout frame 0.6 kB (the mean of 26 games
is 1.2 kB, the most, of Up'n Down, 2.8): 100k frames of MsPacman are 190 MB. Compressing takes about
110 and 60 us a frame (one Zen 4 core), restoring half.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from wmfast.types import FRAME_HW

FRAME_BYTES = 3_000
"""Of a compressed frame; only few games reach it."""
_SHAPE = (*FRAME_HW, 3)
Arrays = Mapping[str, NDArray[np.generic]]


def compress(frame: NDArray[np.uint8]) -> bytes:
    """A frame, uint8 (84, 64, 3), losslessly."""
    return zlib.compress(frame.tobytes(), 1)


def restore(blobs: Iterable[bytes]) -> NDArray[np.uint8]:
    """The frames uint8 (N, 84, 64, 3) that ``compress`` was given."""
    pixels = b"".join(map(zlib.decompress, blobs))
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(-1, *_SHAPE)


def to_arrays(blobs: list[bytes]) -> dict[str, NDArray[np.generic]]:
    """Blobs as two arrays for a file: their sizes and their bytes, one after another."""
    sizes = np.array([len(blob) for blob in blobs], dtype=np.int64)
    return {"sizes": sizes, "bytes": np.frombuffer(b"".join(blobs), np.uint8)}


def from_arrays(arrays: Arrays) -> list[bytes]:
    """The inverse of ``to_arrays``."""
    sizes, whole = arrays["sizes"].astype(np.int64), arrays["bytes"].tobytes()
    ends = np.cumsum(sizes)
    starts = ends - sizes
    return [whole[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


class FrameWindow:
    """The newest `capacity` frames. Ids follow one another without a gap.

    Memory grows with the frames that are here, whatever the capacity.

    Attributes:
        next_id: id of the frame that comes next.
    """

    def __init__(self, capacity: int) -> None:
        self._blobs: deque[bytes] = deque(maxlen=capacity)
        self.next_id = 0

    def __len__(self) -> int:
        return len(self._blobs)

    @property
    def oldest_id(self) -> int:
        """Id of the oldest frame that is still here."""
        return self.next_id - len(self._blobs)

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed frames."""
        return sum(map(len, self._blobs))

    def push(self, first_id: int, frames: NDArray[np.uint8]) -> None:
        """Add frames uint8 (E, 84, 64, 3) of the rows `first_id`, `first_id` + 1, ...

        Raises:
            ValueError: `first_id` is not `next_id` (the first frame's id is free).
        """
        if not self._blobs:
            self.next_id = first_id
        if first_id != self.next_id:
            raise ValueError(f"first_id is {first_id}, the next frame's id is {self.next_id}")
        self._blobs.extend(map(compress, frames))
        self.next_id += len(frames)

    def blob(self, row: int) -> bytes:
        """The compressed frame of a row. IndexError where it is not here."""
        if not self.oldest_id <= row < self.next_id:
            raise IndexError(f"id {row}: frames {self.oldest_id} to {self.next_id - 1} are here")
        return self._blobs[row - self.oldest_id]

    def frames(self, rows: Iterable[int]) -> NDArray[np.uint8]:
        """Frames uint8 (N, 84, 64, 3) of these rows."""
        return restore([self.blob(row) for row in rows])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What ``load`` needs."""
        return {**to_arrays(list(self._blobs)), "next_id": np.array([self.next_id])}

    def load(self, arrays: Arrays) -> None:
        """Become the window that gave these arrays, as far as this one's capacity goes."""
        self._blobs.clear()
        self._blobs.extend(from_arrays(arrays))
        self.next_id = int(arrays["next_id"][0])
