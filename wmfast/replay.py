"""The torch face of ``TokenReplay``: batches of ``wmfast.types`` on a device.

Frames travel as uint16 (a quarter of the bytes of int64) and become int64 on the device. On CUDA
they go through pinned memory that is used in turn, so that a copy overlaps with the next draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wmfast._core import Batch, TokenReplay
from wmfast.types import Segments, Transitions

_Arrays = dict[str, npt.NDArray[Any]]


class _PinnedArrays:
    """Pinned arrays by name and shape, two sets in turn; a set is reused when its copy is done."""

    def __init__(self, spec: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._sets = [
            {
                name: torch.empty(shape, dtype=dtype, pin_memory=True)
                for name, (shape, dtype) in spec.items()
            }
            for _ in range(2)
        ]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def next_set(self) -> _Arrays:
        self._turn ^= 1
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()  # two draws ago: over long since, unless the device lags behind
        return {name: tensor.numpy() for name, tensor in self._sets[self._turn].items()}

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in self._sets[self._turn].items()
        }
        self._copied[self._turn] = torch.cuda.current_stream(device).record_event()
        return moved


class ReplaySampler:
    """Draws from a ``TokenReplay`` to tensors on ``device``. One sampler per thread."""

    def __init__(self, replay: TokenReplay, device: torch.device | str = "cpu") -> None:
        self.replay = replay
        self.device = torch.device(device)
        self._pinned: dict[tuple[int, ...], _PinnedArrays] = {}

    def transitions(
        self, batch_size: int, beta: float = 0.4
    ) -> tuple[Transitions, npt.NDArray[np.int64]]:
        """Prioritized n-step transitions, and the ids for ``replay.update_priorities``.

        Raises ValueError if no row can be drawn; see ``TokenReplay.sample``.
        """
        history, tokens = self.replay.history, int(np.prod(self.replay.frame_shape))
        # One-step states overlap in all but one frame: the window is moved once and split there.
        window = self.replay.n_step == 1
        stack = {"window": history + 1} if window else {"state": history, "next_state": history}
        spec: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            name: ((batch_size, frames, tokens), torch.uint16) for name, frames in stack.items()
        }
        spec["action"] = spec["index"] = ((batch_size,), torch.int64)
        spec["reward"] = spec["discount"] = spec["weight"] = ((batch_size,), torch.float32)
        out = self._out((0, batch_size), spec)
        batch = self.replay.sample(batch_size, beta=beta, window=window, out=out)
        index = batch.index.copy() if out else batch.index
        moved = self._move((0, batch_size), batch, list(spec))
        if window:
            state, next_state = moved["window"][:, :-1], moved["window"][:, 1:]
        else:
            state, next_state = moved["state"], moved["next_state"]
        transitions = Transitions(
            state_btk=state.long(),
            action_b=moved["action"],
            reward_b=moved["reward"],
            next_state_btk=next_state.long(),
            discount_b=moved["discount"],
            weight_b=moved["weight"],
        )
        return transitions, index

    def segments(
        self, batch_size: int, length: int, recent: tuple[int, float] | None = None
    ) -> Segments:
        """Runs of ``length`` steps; ``recent=(k, fraction)`` draws that fraction from the last k.

        Raises ValueError if no row can be drawn; see ``TokenReplay.sample_sequences``.
        """
        history, tokens = self.replay.history, int(np.prod(self.replay.frame_shape))
        steps = (batch_size, length)
        spec: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "tokens": ((batch_size, history + length, tokens), torch.uint16),
            "action": (steps, torch.int64),
            "reward": (steps, torch.float32),
            "terminated": (steps, torch.bool),
            "mask": (steps, torch.bool),
        }
        out = self._out((1, *steps), spec)
        batch = self.replay.sample_sequences(batch_size, length, recent=recent, out=out)
        moved = self._move((1, *steps), batch, list(spec))
        return Segments(
            tokens_bsk=moved["tokens"].long(),
            action_bs=moved["action"],
            reward_bs=moved["reward"],
            terminated_bs=moved["terminated"],
            mask_bs=moved["mask"],
        )

    def _out(
        self, key: tuple[int, ...], spec: dict[str, tuple[tuple[int, ...], torch.dtype]]
    ) -> _Arrays | None:
        """Pinned arrays to draw into, or None on a CPU: there numpy's own memory serves."""
        if self.device.type != "cuda":
            return None
        if key not in self._pinned:
            self._pinned[key] = _PinnedArrays(spec)
        return self._pinned[key].next_set()

    def _move(
        self, key: tuple[int, ...], batch: Batch, names: list[str]
    ) -> dict[str, torch.Tensor]:
        if key in self._pinned:
            return self._pinned[key].to(self.device)
        return {name: torch.from_numpy(batch[name]) for name in names}
