"""The torch face of ``TokenReplay``: batches of ``wmfast.types`` on a device.

Frames travel as they are stored, uint16 or uint8, and become int64 on the device.

    ReplaySampler        draws when it is asked
    PrefetchingSampler   the same calls; one thread draws the batches of the next calls meanwhile
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import cast

import numpy as np
import torch

from wmfast._core import Batch, TokenReplay
from wmfast.replay_staging import (
    Arrays,
    Copied,
    Draw,
    Index,
    Lane,
    SegmentDraw,
    Staging,
    TransitionDraw,
    lane_to,
)
from wmfast.types import Segments, Transitions

_Tensors = Transitions | Segments
_Drawn = tuple[_Tensors | None, Index | None]  # the tensors only on a CPU, ids only of transitions


class ReplaySampler:
    """Draws from a ``TokenReplay`` to tensors on ``device``. One sampler per thread."""

    def __init__(self, replay: TokenReplay, device: torch.device | str = "cpu") -> None:
        self.replay = replay
        self.device = torch.device(device)
        self._lane = lane_to(self.device)
        # Two blocks in turn, so that a draw need not wait for the copy of the one before.
        self._turns: dict[Hashable, deque[tuple[Staging, Copied | None]]] = {}

    def transitions(
        self,
        batch_size: int,
        beta: float = 0.4,
        *,
        n_step: int | None = None,
        gamma: float | None = None,
    ) -> tuple[Transitions, Index]:
        """Prioritized n-step transitions, and the ids for ``replay.update_priorities``.

        ``n_step`` and ``gamma`` are the buffer's unless given. Raises ValueError if no row can be
        drawn; see ``TokenReplay.sample``.
        """
        draw = TransitionDraw(self.replay, batch_size, n_step, gamma)
        batch, index = self._draw("transitions", draw, beta)
        assert isinstance(batch, Transitions)
        assert index is not None
        return batch, index

    def segments(
        self, batch_size: int, length: int, recent: tuple[int, float] | None = None
    ) -> Segments:
        """Runs of ``length`` steps; ``recent=(k, fraction)`` draws that fraction from the last k.

        Raises ValueError if no row can be drawn; see ``TokenReplay.sample_sequences``.
        """
        draw = SegmentDraw(self.replay, batch_size, length, recent)
        batch, _ = self._draw("segments", draw, 0.0)
        assert isinstance(batch, Segments)
        return batch

    def _draw(self, kind: str, draw: Draw, beta: float) -> tuple[_Tensors, Index | None]:
        if self._lane is None:
            drawn = draw.into(None, beta)
            tensors = {name: torch.from_numpy(drawn[name]) for name in draw.travels}
            return draw.batch(tensors), drawn.index if "index" in drawn else None
        if (kind, draw.key) not in self._turns:
            fields = draw.travels
            self._turns[kind, draw.key] = deque((Staging(fields, self._lane), None) for _ in "ab")
        turns = self._turns[kind, draw.key]
        staging, copied = turns.popleft()
        turns.append((staging, copied))  # stays the caller's, should the draw fail
        if copied is not None:
            copied.synchronize()  # two draws ago: over long since, unless the device lags behind
        drawn = draw.into(staging.arrays, beta)
        sent, copied = self._lane.send(staging.block)
        turns[-1] = staging, copied
        self._lane.receive(sent, copied)
        return draw.batch(staging.views(sent)), drawn.index if "index" in drawn else None


@dataclass
class _Pending:
    """A draw that was asked for."""

    drawn: Future[_Drawn]
    staging: Staging | None
    sent: tuple[torch.Tensor, Copied] | None = None


@dataclass
class _Queue:
    """The draws ahead of one kind, and the blocks they go through."""

    draw: Draw
    pending: deque[_Pending] = field(default_factory=deque)
    free: list[Staging] = field(default_factory=list)
    leaving: list[tuple[Staging, Copied]] = field(default_factory=list)


class PrefetchingSampler:
    """``ReplaySampler`` whose batches one thread draws ahead: ``depth`` of each kind.

    Each batch is what ``TokenReplay.sample`` gave at one moment, whatever other threads add or
    update meanwhile, and its ids are its own. That moment was ``depth`` calls ago: the batch knows
    nothing of rows, priorities, ``beta``, ``n_step`` and ``gamma`` since then, and
    ``update_priorities`` skips those of its ids that were overwritten. The first call of a kind
    draws ``depth`` + 1 batches. A call with another batch size, length or ``recent`` than the last
    of its kind, or to or from ``n_step`` 1, throws away what was drawn ahead. An error of the
    thread is raised, as it is, by the call whose batch it was; the next call draws anew.

    With one kind of batch and a buffer that nobody changes, the batches are those of
    ``ReplaySampler``. ``reproducible`` makes more than that the same from run to run: the caller's
    own thread draws, ``depth`` calls ahead, and only widening and copies go on beside it. So a
    program that adds, samples and updates from one thread gets the same batches each time, and
    with ``restart`` before each ``replay.save`` also after a resume.

    The thread touches numpy memory only. CUDA is called by the caller's thread alone, so that a
    CUDA graph can be captured at any time. One thread at a time may call; use ``with`` or
    ``close``. It does not keep the interpreter from exiting; a forked child needs one of its own.

    Args:
        replay: other threads may add and update; they wait for a draw under way.
        device: where the tensors go.
        depth: batches of each kind drawn ahead, at least 1. Each takes its wire size in pinned
            memory (0.9 MB for 256 one-step transitions of 336 uint16 tokens), on a CPU its tensors.
        reproducible: see above.
    """

    def __init__(
        self,
        replay: TokenReplay,
        device: torch.device | str = "cpu",
        *,
        depth: int = 2,
        reproducible: bool = False,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}, must be at least 1")
        self.replay = replay
        self.device = torch.device(device)
        self.depth = depth
        self.reproducible = reproducible
        self._lane: Lane | None = lane_to(self.device)
        self._queues: dict[str, _Queue] = {}
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "replay-prefetch")
        self._process = os.getpid()

    def transitions(
        self,
        batch_size: int,
        beta: float = 0.4,
        *,
        n_step: int | None = None,
        gamma: float | None = None,
    ) -> tuple[Transitions, Index]:
        """See ``ReplaySampler.transitions``."""
        if not (math.isfinite(beta) and beta >= 0):  # here, not `depth` calls later
            raise ValueError(f"beta is {beta}, must be finite and not negative")
        if n_step is not None and not 1 <= n_step <= self.replay.n_step:
            raise ValueError(f"n_step is {n_step}, allowed are 1 to {self.replay.n_step}")
        if gamma is not None and not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}, must be within 0 to 1")
        draw = TransitionDraw(self.replay, batch_size, n_step, gamma)
        batch, index = self._next("transitions", draw, beta)
        return cast(Transitions, batch), cast(Index, index)

    def segments(
        self, batch_size: int, length: int, recent: tuple[int, float] | None = None
    ) -> Segments:
        """See ``ReplaySampler.segments``."""
        draw = SegmentDraw(self.replay, batch_size, length, recent)
        batch, _ = self._next("segments", draw, 0.0)
        return cast(Segments, batch)

    def restart(self) -> None:
        """Throw away what was drawn ahead; no draw is under way then. The next calls draw anew."""
        for kind in list(self._queues):
            self._forget(kind)

    def close(self) -> None:
        """Wait for the draw under way and end the thread; again is fine. Batches stay good."""
        self.restart()
        if self._thread is not None and self._process == os.getpid():
            self._thread.shutdown()
            self._thread = None

    def __enter__(self) -> PrefetchingSampler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _next(self, kind: str, draw: Draw, beta: float) -> tuple[_Tensors, Index | None]:
        if self._thread is None:
            raise RuntimeError("this PrefetchingSampler is closed")
        if self._process != os.getpid():
            raise RuntimeError("this PrefetchingSampler belongs to the process that forked")
        queue = self._queues.get(kind)
        if queue is None or queue.draw.key != draw.key:
            self._forget(kind)
            queue = self._queues[kind] = _Queue(draw)
        queue.draw = draw  # its returns may be others than the last call's
        while queue.leaving:  # the last call's copy: over, unless the device lags behind
            queue.leaving[0][1].synchronize()
            queue.free.append(queue.leaving.pop(0)[0])
        while len(queue.pending) <= self.depth:
            queue.pending.append(self._ask(queue, beta))
        first = queue.pending[0]
        if first.drawn.exception() is not None:
            self._forget(kind)
        batch, index = first.drawn.result()  # the error, if there was one
        queue.pending.popleft()
        return batch or self._receive(queue, first), index

    def _ask(self, queue: _Queue, beta: float) -> _Pending:
        assert self._thread is not None
        staging = None
        if self._lane is not None:
            staging = queue.free.pop() if queue.free else Staging(queue.draw.travels, self._lane)
        out = None if staging is None else staging.arrays
        if not self.reproducible:
            return _Pending(self._thread.submit(_drawn, queue.draw, out, beta), staging)
        done: Future[_Drawn] = Future()
        try:
            batch = queue.draw.into(out, beta)
        except Exception as error:
            done.set_exception(error)  # raised when its turn comes
        else:
            if out is None:
                done = self._thread.submit(_finished, queue.draw, batch, out)
            else:
                done.set_result(_finished(queue.draw, batch, out))
        return _Pending(done, staging)

    def _receive(self, queue: _Queue, first: _Pending) -> _Tensors:
        """Send what has been drawn, `first` at the latest, and take `first`."""
        assert self._lane is not None
        for pending in (first, *queue.pending):
            if pending.sent is None and pending.drawn.done() and not pending.drawn.exception():
                assert pending.staging is not None
                pending.sent = self._lane.send(pending.staging.block)
        assert first.staging is not None
        assert first.sent is not None
        sent, copied = first.sent
        queue.leaving.append((first.staging, copied))
        self._lane.receive(sent, copied)
        return queue.draw.batch(first.staging.views(sent))

    def _forget(self, kind: str) -> None:
        queue = self._queues.pop(kind, None)
        if queue is not None and self._process == os.getpid():
            for pending in queue.pending:
                pending.drawn.cancel()
            wait([pending.drawn for pending in queue.pending])  # nothing is drawn into any more


def _drawn(draw: Draw, out: Arrays | None, beta: float) -> _Drawn:
    return _finished(draw, draw.into(out, beta), out)


def _finished(draw: Draw, drawn: Batch, out: Arrays | None) -> _Drawn:
    index = drawn.index if "index" in drawn else None
    if out is not None:
        return None, index
    tensors = {}
    for name in set(drawn.keys()) - {"window"}:  # state and next_state are views of it
        array = drawn[name]
        # Frames are widened by numpy: torch would start threads here beside the caller's.
        tensors[name] = torch.from_numpy(array.astype(np.int64) if array.ndim == 3 else array)
    return draw.batch(tensors), index
