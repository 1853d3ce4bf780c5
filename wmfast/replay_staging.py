"""How a draw from ``TokenReplay`` becomes tensors: its arrays, the memory they cross in, the copy.

    draw                 staging (pinned, one block)               device
    TokenReplay ----->  [ window | action | reward | ... ]  ----->  the same block, cut in views
                  out=                                    one copy      frames become int64 there

One block, because a batch of 32 has six arrays and each copy costs microseconds of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wmfast._core import Batch, TokenReplay
from wmfast.types import Segments, Transitions

Arrays = dict[str, npt.NDArray[Any]]
Index = npt.NDArray[np.int64]
Fields = dict[str, tuple[tuple[int, ...], type[np.generic]]]

_TORCH_DTYPES: dict[type[np.generic], torch.dtype] = {
    np.uint8: torch.uint8,
    np.uint16: torch.uint16,
    np.int64: torch.int64,
    np.float32: torch.float32,
    np.bool_: torch.bool,
}
_LINE = 64  # each array starts on a cache line, which also aligns the views of the block


class Draw(Protocol):
    """A kind of batch: what its arrays are, how they are drawn, what they become."""

    @property
    def key(self) -> Hashable:
        """Equal for draws that are alike in all but ``beta`` and their returns."""

    @property
    def travels(self) -> Fields:
        """Shapes and dtypes of what goes to the device."""

    def into(self, out: Arrays | None, beta: float) -> Batch:
        """Draw, into ``out`` (the arrays of ``travels``) if given."""

    def batch(self, tensors: Mapping[str, Tensor]) -> Transitions | Segments:
        """The arrays as tensors, frames made int64 where they are."""


class TransitionDraw:
    """``TokenReplay.sample``. One-step states overlap in all but one frame: there the window
    travels in place of both."""

    def __init__(
        self,
        replay: TokenReplay,
        batch_size: int,
        n_step: int | None = None,
        gamma: float | None = None,
    ) -> None:
        self._replay, self._size = replay, batch_size
        self._n_step, self._gamma = n_step, gamma
        self._window = (replay.n_step if n_step is None else n_step) == 1

    @property
    def key(self) -> Hashable:
        return self._size, self._window

    @property
    def travels(self) -> Fields:
        size, history = self._size, self._replay.history
        tokens = int(np.prod(self._replay.frame_shape))
        frames = {"window": history + 1} if self._window else dict.fromkeys(_STATES, history)
        return {
            **{
                name: ((size, count, tokens), self._replay.dtype.type)
                for name, count in frames.items()
            },
            "action": ((size,), np.int64),
            "reward": ((size,), np.float32),
            "discount": ((size,), np.float32),
            "weight": ((size,), np.float32),
        }

    def into(self, out: Arrays | None, beta: float) -> Batch:
        if out is not None:  # ids stay on the host and outlive the block: new memory each time
            out = {**out, "index": np.empty(self._size, np.int64)}
        return self._replay.sample(
            self._size,
            beta=beta,
            window=self._window,
            n_step=self._n_step,
            gamma=self._gamma,
            out=out,
        )

    def batch(self, tensors: Mapping[str, Tensor]) -> Transitions:
        if "state" in tensors:
            state, next_state = tensors["state"], tensors["next_state"]
        else:
            state, next_state = tensors["window"][:, :-1], tensors["window"][:, 1:]
        return Transitions(
            state_btk=state.long(),
            action_b=tensors["action"],
            reward_b=tensors["reward"],
            next_state_btk=next_state.long(),
            discount_b=tensors["discount"],
            weight_b=tensors["weight"],
        )


_STATES = ("state", "next_state")


class SegmentDraw:
    """``TokenReplay.sample_sequences``."""

    def __init__(
        self, replay: TokenReplay, batch_size: int, length: int, recent: tuple[int, float] | None
    ) -> None:
        self._replay, self._size, self._length = replay, batch_size, length
        self._recent = recent

    @property
    def key(self) -> Hashable:
        return self._size, self._length, self._recent

    @property
    def travels(self) -> Fields:
        steps = (self._size, self._length)
        tokens = int(np.prod(self._replay.frame_shape))
        return {
            "tokens": (
                (self._size, self._replay.history + self._length, tokens),
                self._replay.dtype.type,
            ),
            "action": (steps, np.int64),
            "reward": (steps, np.float32),
            "terminated": (steps, np.bool_),
            "mask": (steps, np.bool_),
            "life_lost": (steps, np.bool_),
        }

    def into(self, out: Arrays | None, beta: float) -> Batch:
        return self._replay.sample_sequences(self._size, self._length, recent=self._recent, out=out)

    def batch(self, tensors: Mapping[str, Tensor]) -> Segments:
        return Segments(
            tokens_bsk=tensors["tokens"].long(),
            action_bs=tensors["action"],
            reward_bs=tensors["reward"],
            terminated_bs=tensors["terminated"],
            mask_bs=tensors["mask"],
            life_lost_bs=tensors["life_lost"],
        )


class Copied(Protocol):
    """Knows when a copy is done, as ``torch.cuda.Event`` does."""

    def synchronize(self) -> None: ...


class Lane(Protocol):
    """A way to the device: the one place that knows CUDA, and what tests put a fake in for."""

    def memory(self, nbytes: int) -> Tensor:
        """uint8 (nbytes,) on the host, fit for copies that do not wait."""

    def send(self, block: Tensor) -> tuple[Tensor, Copied]:
        """Begin to copy ``block`` to the device; it must not change until the copy is done."""

    def receive(self, sent: Tensor, copied: Copied) -> None:
        """Let what is done with ``sent`` from here on wait for its copy, without the host."""


class CudaLane:
    """Pinned memory, and a stream of its own, so that a copy passes the kernels that are queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def memory(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def send(self, block: Tensor) -> tuple[Tensor, Copied]:
        with torch.cuda.stream(self._stream):
            sent = block.to(self._device, non_blocking=True)
            return sent, self._stream.record_event()

    def receive(self, sent: Tensor, copied: Copied) -> None:
        stream = torch.cuda.current_stream(self._device)
        assert isinstance(copied, torch.cuda.Event)
        stream.wait_event(copied)
        sent.record_stream(stream)  # its memory belongs to the lane's stream


def lane_to(device: torch.device) -> Lane | None:
    """None on a CPU: there numpy's own memory serves."""
    return CudaLane(device) if device.type == "cuda" else None


class Staging:
    """One block of a lane's memory, and the arrays of a draw in it."""

    def __init__(self, fields: Fields, lane: Lane) -> None:
        self._fields = fields
        self._begin: dict[str, int] = {}
        nbytes = 0
        for name, (shape, dtype) in fields.items():
            self._begin[name] = nbytes
            nbytes += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _LINE) * _LINE
        self.block = lane.memory(nbytes)
        self.arrays: Arrays = {name: part.numpy() for name, part in self.views(self.block).items()}

    def views(self, block: Tensor) -> dict[str, Tensor]:
        """The arrays in a block of this layout, on any device."""
        views = {}
        for name, (shape, dtype) in self._fields.items():
            begin = self._begin[name]
            end = begin + int(np.prod(shape)) * np.dtype(dtype).itemsize
            views[name] = block[begin:end].view(_TORCH_DTYPES[dtype]).view(shape)
        return views
