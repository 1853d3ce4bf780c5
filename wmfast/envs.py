"""Atari games in lock-step: the protocol that scores depend on, and the step record.

The emulator is ``ale_py.vector_env.AtariVectorEnv`` (Arcade Learning Environment: Bellemare et al.
2013, Machado et al. 2018). The protocol: RGB, 84 x 64 by area interpolation, 4 raw frames a step
with the maximum over the last two, the minimal action set, up to ``noop_max`` no-ops (after FIRE,
where the game has it) at the start, rewards as the game gives them, a game over only when the game
says so. Autoreset is "next_step": the step after an end ignores its action and brings the first
frame of the next game.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal, NamedTuple

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from wmfast.config import EnvConfig
from wmfast.games import game_name

FRAME_SKIP = 4
FRAME_HEIGHT, FRAME_WIDTH = 84, 64
_STREAMS = {"train": 0, "eval": 1}

Stream = Literal["train", "eval"]


def env_seeds(seed: int, stream: Stream, num_envs: int) -> NDArray[np.int64]:
    """The emulator's seed of each game, int64 (E,); game e's does not depend on their number.

    Hashed, not ``seed + e``: else runs with neighbouring seeds would share most of their games.
    """
    words = np.random.SeedSequence([seed, _STREAMS[stream]]).generate_state(num_envs)
    return (words & 0x7FFF_FFFF).astype(np.int64)


class FinishedGame(NamedTuple):
    """A full game: its true score and length."""

    env: int
    score: float  # sum of the unclipped rewards
    length: int  # agent steps


class EnvStep(NamedTuple):
    """What one action in each of E games brought. Arrays are fresh: the caller may keep them."""

    frames: NDArray[np.uint8]  # (E, 84, 64, 3); where a game was terminated, usually a stale copy
    rewards: NDArray[np.float32]  # (E,) raw, unclipped
    terminated: NDArray[np.bool_]  # (E,) game over
    truncated: NDArray[np.bool_]  # (E,) cut off at `max_frames`
    life_lost: NDArray[np.bool_]  # (E,) fewer lives than before, and the game goes on
    is_reset: NDArray[np.bool_]  # (E,) this frame begins a new game; the action was ignored
    finished: list[FinishedGame]  # the games that ended in this step


class AtariEnvs:
    """E games of one kind, stepped together by the emulator's own threads.

    ``reset()`` begins; then ``send(actions)`` starts a step, ``recv()`` waits for it, and whatever
    is computed between the two overlaps with the emulator; ``step`` is both. Row e of every array
    is game e. The same (seed, stream) gives the same games, whatever the number of threads;
    `stream` keeps evaluation apart from training. Not thread-safe.
    """

    def __init__(
        self,
        game: str,
        config: EnvConfig | None = None,
        *,
        num_envs: int | None = None,
        seed: int,
        stream: Stream = "train",
        num_threads: int = 0,
    ) -> None:
        """Open `num_envs` games (default: the config's) on `num_threads` threads (0: all cores).

        Raises ValueError for an unknown game, or a number outside its range.
        """
        config = EnvConfig() if config is None else config
        self.config = config
        self.game = game_name(game)
        self.num_envs = config.num_envs if num_envs is None else num_envs
        _require(self.num_envs >= 1, "num_envs", self.num_envs, "at least 1")
        _require(0.0 <= config.sticky <= 1.0, "sticky", config.sticky, "within 0..1")
        _require(config.noop_max >= 0, "noop_max", config.noop_max, "at least 0")
        _require(config.max_frames >= FRAME_SKIP, "max_frames", config.max_frames, "at least 4")
        _require(seed >= 0, "seed", seed, "at least 0")
        self.seeds = env_seeds(seed, stream, self.num_envs)

        # The emulator's banner, once per environment, is all that this silences.
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._vector = AtariVectorEnv(
            self.game,
            num_envs=self.num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=config.max_frames,
            repeat_action_probability=config.sticky,
            autoreset_mode="NextStep",
            img_height=FRAME_HEIGHT,
            img_width=FRAME_WIDTH,
            grayscale=False,
            stack_num=1,
            frameskip=FRAME_SKIP,
            maxpool=True,
            noop_max=config.noop_max,
            episodic_life=False,  # True would start a new game at each lost life
            reward_clipping=False,  # the default clips, and no info field has the true reward
        )
        self.action_meanings: tuple[str, ...] = tuple(
            action.name for action in self._vector.ale.get_action_set()
        )
        self._in_flight = False
        self._begun = False

    @property
    def num_actions(self) -> int:
        """Size of the game's minimal action set."""
        return len(self.action_meanings)

    def reset(self) -> NDArray[np.uint8]:
        """Begin every game from its seed; the first frames, uint8 (E, 84, 64, 3)."""
        self._drain()
        frames: NDArray[np.uint8]
        frames, info = self._vector.reset(seed=self.seeds)
        self._begun = True
        self._lives = info["lives"]
        self._scores = np.zeros(self.num_envs, np.int64)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._ended = np.zeros(self.num_envs, np.bool_)
        return frames[:, 0]

    def send(self, actions: NDArray[np.integer[Any]]) -> None:
        """Start one step; integer `actions` (E,) index `action_meanings`.

        Raises ValueError for a wrong shape, type or action (the emulator would crash the process),
        RuntimeError before `reset()` or while a step is under way.
        """
        if not self._begun or self._in_flight:
            raise RuntimeError("send() follows reset() or recv()")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape ({self.num_envs},), "
                f"not {actions.dtype} {actions.shape}"
            )
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(f"actions must be within 0..{self.num_actions - 1}, not {actions}")
        self._vector.send(actions.astype(np.int64))
        self._in_flight = True

    def recv(self) -> EnvStep:
        """Wait for the step that `send` started. RuntimeError if none is under way."""
        if not self._in_flight:
            raise RuntimeError("recv() follows send()")
        # Row e is game e (as info["env_id"] says): whole batches come back in the games' order.
        frames, rewards, terminated, truncated, info = self._vector.recv()
        self._in_flight = False
        lives = info["lives"]

        is_reset = self._ended
        ended = terminated | truncated
        life_lost = (lives < self._lives) & ~ended & ~is_reset
        self._scores[is_reset] = 0
        self._lengths[is_reset] = 0
        self._scores += rewards
        self._lengths += ~is_reset
        finished = [
            FinishedGame(int(env), float(self._scores[env]), int(self._lengths[env]))
            for env in np.flatnonzero(ended)
        ]
        self._lives, self._ended = lives, ended
        return EnvStep(
            frames=frames[:, 0],
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            life_lost=life_lost,
            is_reset=is_reset,
            finished=finished,
        )

    def step(self, actions: NDArray[np.integer[Any]]) -> EnvStep:
        """`send(actions)`, then `recv()`."""
        self.send(actions)
        return self.recv()

    def close(self) -> None:
        """Wait for the step under way, if any, and free the emulators. May be called twice."""
        self._drain()
        self._begun = False
        self._vector.ale = None  # frees the emulators and joins their threads

    def _drain(self) -> None:
        if self._in_flight:
            self._vector.recv()
            self._in_flight = False

    def __enter__(self) -> AtariEnvs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _require(holds: bool, name: str, value: float, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, not {value}")
