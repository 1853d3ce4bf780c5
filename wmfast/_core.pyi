"""The C++ core of wmfast."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint8]
Out: TypeAlias = Mapping[str, npt.NDArray[Any]] | Batch

class Batch:
    """Named arrays of a draw, as attributes and by key; which ones: see the call that made it."""

    state: Tokens
    next_state: Tokens
    window: Tokens
    tokens: Tokens
    action: npt.NDArray[np.int64]
    reward: npt.NDArray[np.float32]
    discount: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    mask: npt.NDArray[np.bool_]
    life_lost: npt.NDArray[np.bool_]
    def __getitem__(self, name: str) -> npt.NDArray[Any]: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: str) -> bool: ...
    def keys(self) -> list[str]: ...

class TokenReplay:
    """Prioritized replay of token frames from a vector of envs; any thread may call anything.

    A step of every env is one row; E envs, K tokens a frame, H = ``history``. A history is put
    together when it is drawn: frames before an episode's first repeat the first, nothing crosses
    an episode. A row can be drawn once its ``n_step`` successors are stored or its episode has
    ended (final frame included), while its whole history is stored. A call that raises has
    changed nothing.

    Args:
        capacity: env steps kept, over all envs; rounded down to a multiple of ``num_envs``.
        num_envs: E.
        frame_shape: 1 to 4 axes; their product is K.
        vocab_size: tokens are 0 to ``vocab_size - 1``; at most 65536. A token takes 8 bits of the
            store for a vocabulary of 256, one more for each doubling up to 4096, then 16.
        dtype: of frames given and drawn. ``uint8`` frames (images, say) are stored as they are.
        history: H, 1 to 255.
        n_step: steps of the return; it stops at ``terminated`` and at a lost life (discount 0) and
            at ``truncated`` (bootstraps from the true final frame).
        gamma: discount of a step.
        prioritized: draw by priority^alpha (Schaul et al. 2016), otherwise evenly.
        alpha: exponent of the priorities.
        seed: of the draws.
        autoreset: Gymnasium's convention. ``next_step``: the row after an end holds the final
            frame, its action and reward are ignored, it is never drawn as a start.
            ``same_step``: the final frame comes as ``final_frames``.
        reward_transform: ``sign`` sums sign(reward) in ``sample``; what is stored stays raw.
        path: file of a memory-mapped store that survives a kill at any instruction; made, or taken
            over where it stands (``n_step``, ``gamma``, ``history``, ``seed`` and
            ``reward_transform`` may differ from last time). Call ``cut`` after taking it over
            unless the streams really go on. Survives the process, not a power failure. A zero
            priority becomes the largest seen, as does one that can't be right; a damaged
            row is refused. One buffer at a time: others, and forked children, are refused.

    Raises:
        ValueError: an option out of range; a damaged file, one in use or of other geometry.
        MemoryError: more than the machine has.
        OSError: the file can't be made (no space, no right).
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        *,
        frame_shape: Sequence[int] = (21, 16),
        vocab_size: int = 512,
        dtype: Literal["uint16", "uint8"] = "uint16",
        history: int = 4,
        n_step: int = 1,
        gamma: float = 0.99,
        prioritized: bool = True,
        alpha: float = 0.6,
        seed: int = 0,
        autoreset: Literal["next_step", "same_step"] = "next_step",
        reward_transform: Literal["none", "sign"] = "none",
        path: str | os.PathLike[str] | None = None,
    ) -> None: ...
    def add(
        self,
        frames: Tokens,
        actions: npt.ArrayLike,
        rewards: npt.ArrayLike,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
        *,
        final_frames: Tokens | None = None,
        life_lost: npt.ArrayLike | None = None,
    ) -> None:
        """Adds one step of every env, overwriting the oldest.

        Args:
            frames: (E, K) or (E, *frame_shape) uint16, C-contiguous: the actions were
                chosen on them.
            actions: (E,) integers of 32 bits.
            rewards: (E,) finite; kept as float32.
            terminated: (E,) bool.
            truncated: (E,) bool; with ``terminated`` too, ``terminated`` counts.
            final_frames: as ``frames``; read where an episode ended (``same_step`` only).
            life_lost: (E,) bool; the return stops here with discount 0, the episode goes on.

        Raises:
            TypeError: a dtype. ValueError: a shape, layout or value, with field and env.
        """

    def cut(self) -> None:
        """Says that the streams broke off: the next ``add`` begins an episode in every env.

        The newest frame of each env then counts as the final frame of a truncated episode. Until
        that ``add`` nothing changes, neither what is drawn nor what is saved beside this mark.
        """

    def sample(
        self,
        batch_size: int,
        *,
        beta: float = 0.4,
        window: bool = False,
        n_step: int | None = None,
        gamma: float | None = None,
        out: Out | None = None,
    ) -> Batch:
        """Draws transitions: stratified by priority^alpha, or independently and evenly.

        Returns a batch of ``state`` and ``next_state`` (B, H, K) uint16, oldest frame first;
        ``action`` (B,) int64; ``reward`` (B,) float32, the sum of gamma^k r over the m <= n_step
        steps; ``discount`` (B,) float32, gamma^m or 0; ``weight`` (B,) float32, (N P)^-beta over
        the largest of the batch; ``index`` (B,) int64, ids that never repeat. With ``window``
        (``n_step`` 1) also ``window`` (B, H + 1, K), of which state and next_state are views.
        ``n_step`` (1 to the buffer's) and ``gamma``: of this draw's returns, in place of the
        buffer's; the rows that are drawn are the same.
        ``out``: arrays of exactly these shapes and dtypes to write into, in place of new ones.

        Raises:
            ValueError: no row can be drawn, or a bad argument.
        """

    def sample_sequences(
        self,
        batch_size: int,
        length: int,
        *,
        recent: tuple[int, float] | None = None,
        out: Out | None = None,
    ) -> Batch:
        """Draws runs of S = ``length`` steps, evenly among the rows that can be drawn.

        Returns a batch of ``tokens`` (B, H + S, K) uint16; ``action`` (B, S) int64, chosen on
        frame H - 1 + i of ``tokens``; ``reward`` (B, S) float32, raw; ``terminated`` (B, S) bool;
        ``mask`` (B, S) bool, False past the end of the episode or of what is stored: there the
        last frame is repeated and the rest is 0; ``life_lost`` (B, S) bool, as it was given (with
        ``out`` only if it is one of its arrays). The frame after a terminated step is the final
        frame as it was given; emulators may return a stale one there. ``recent=(k, fraction)``: the
        first round(fraction * B) rows are drawn from the last k env steps (over all envs).

        Raises:
            ValueError: no row can be drawn, or a bad argument.
        """

    def update_priorities(self, index: npt.ArrayLike, priority: npt.ArrayLike) -> int:
        """Sets priorities, as one after another: the last of equal ids wins.

        Ids that were overwritten (or can't be drawn any more) are skipped; returns how many ids
        were applied. New rows get the largest priority ever applied (1 at the start).

        Raises:
            IndexError: an id never issued. ValueError: NaN, inf, negative. Then nothing is applied.
        """

    def rewrite(self, index: npt.ArrayLike, frames: Tokens) -> int:
        """Replaces stored frames, say because the tokenizer that made them has moved.

        Args:
            index: (B,) ids; a final frame has one too. Of equal ids the last wins; ids that were
                overwritten or forgotten are skipped.
            frames: (B, K) or (B, *frame_shape) of the buffer's dtype, C-contiguous.

        Returns:
            How many were written. Actions, rewards, flags and priorities stay as they are. In a
            mapped store a kill at any instruction leaves each row old or new.

        Raises:
            IndexError: an id never issued. TypeError: a dtype. ValueError: a shape or token, or
            ``autoreset`` is ``same_step`` (its final frames have no id). Then nothing is written.
        """

    def forget(self, before_id: int) -> int:
        """Counts every step with an id below ``before_id`` as overwritten.

        Their rows are not stored any more (``len`` and ``stats`` say so), never drawn, and in no
        history: a row that needs one of them can't be drawn either. The episodes that go on lose
        their beginning. Forgets whole steps of all envs; what is forgotten stays so.

        Returns:
            Env steps forgotten now; 0 where they were gone already.

        Raises:
            IndexError: ``before_id`` is negative or more than the ids issued.
        """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checksummed snapshot: rows, priorities, random state.

        Written beside (``path`` + ``.tmp``), synced and renamed: a kill leaves the old or the new.
        One process at a time saves to a path. Calls of other threads wait.
        """

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TokenReplay:
        """The buffer that ``save`` wrote, in memory; goes on bit for bit.

        Raises:
            ValueError: a damaged file or another format version. OSError: can't be read.
        """

    def __getitem__(self, index: int | npt.NDArray[np.int64] | Sequence[int]) -> Batch:
        """The transition of an id, or those of an array of ids: no draw, no random number used.

        The fields of ``sample`` without ``weight``: for an id without the batch axis, ``state``
        (H, K) and scalars; for B ids with it. Ids are no positions: a buffer isn't iterable.

        Raises:
            IndexError: names the id that was never issued, is overwritten, or can't be drawn (a
                final frame, or a row whose successors or history are not stored).
            TypeError: no integer, no array of integers (slices included).
        """

    def episodes(self) -> npt.NDArray[np.void]:
        """The stored episodes, oldest first, also those that go on: a structured array.

        Fields: ``env``, ``first_id`` (of its first stored step), ``length`` (stored steps; a final
        frame is none), ``reward`` (raw, summed over them; float64), ``terminated``, ``truncated``
        (and not terminated), ``open`` (not ended yet), ``whole`` (its first step is stored).
        Reads every stored row's fields: 200k rows take some milliseconds.
        """

    def stats(self) -> dict[str, float]:
        """What is stored and what was done. O(1).

        Stored: ``fill`` (0 to 1), ``stored``, ``drawable`` (env steps), ``episodes`` (ends stored),
        ``max_priority``, ``priority_sum`` (of priority^alpha), ``added`` (env steps ever).
        Since this object was made: ``inserts`` (env steps added), ``rewritten`` (frames),
        ``forgotten`` (env steps), ``samples`` (rows drawn; also as
        ``sampled``), ``mean_sample_age`` (env steps added between a row and its draw), ``updated``
        and ``skipped`` (priorities), ``stale_update_share`` (skipped of both together).
        """

    def __len__(self) -> int:
        """Env steps stored, over all envs."""

    @property
    def nbytes(self) -> int:
        """Bytes of rows and trees."""
    @property
    def capacity(self) -> int: ...
    @property
    def num_envs(self) -> int: ...
    @property
    def frame_shape(self) -> tuple[int, ...]: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.uint8]: ...
    @property
    def isa(self) -> Literal["avx512", "avx2", "scalar"]:
        """The instructions in use; ``WMFAST_CPU`` in the environment chooses at construction."""
    @property
    def history(self) -> int: ...
    @property
    def n_step(self) -> int: ...
    @property
    def gamma(self) -> float: ...
    @property
    def prioritized(self) -> bool: ...
    @property
    def alpha(self) -> float: ...

def nearest_code(
    x: int,
    x_dtype: str,
    rows: int,
    row_stride: int,
    codebook: int,
    codebook_dtype: str,
    codes: int,
    dim: int,
    index: int,
    threads: int,
    path: str | None = None,
) -> None:
    """``index[i]``, int64, = the code nearest to row i of x; all by address.

    ``codebook`` (codes, dim) and the elements of a row of x are contiguous, rows of x lie
    ``row_stride`` elements apart. Dtypes are float32, bfloat16 or float16. See
    ``wmfast.kernels.nearest_code`` for a call that checks what it is given.
    """

def nearest_code_paths() -> list[str]:
    """The paths of this machine, best first: of amx, avx512_bf16, avx512, avx2, scalar."""

def nearest_code_packs() -> int:
    """How many codebooks have been packed so far in this process."""
