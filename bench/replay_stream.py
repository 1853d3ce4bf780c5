"""A stream of transitions that can be recognised: every frame says whose it is.

8 envs, 336 uint16 tokens a frame, episodes of 100 to 1500 steps of which 30 % are truncated. Env e
shows its frames number 0, 1, 2, ...; an episode of n steps shows n + 1 of them (the last is the
final frame). Tokens 0 to 2 of a frame are its number in base 512, token 3 is the env, the rest is a
pattern of both. So any transition that a buffer gives can be compared with what was put in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENVS, TOKENS, HISTORY, VOCAB = 8, 336, 4, 512
ACTIONS = 18

Ints = NDArray[np.int64]
Frames = NDArray[np.uint16]

_PATTERNS = np.random.default_rng(0).integers(0, VOCAB, (997, TOKENS), dtype=np.uint16)
_LAG = np.arange(HISTORY - 1, -1, -1)


@dataclass(slots=True)
class Step:
    """One step of every env, as an env that resets within the step ("same_step") shows it."""

    frames: Frames  # (8, 336) what the actions were chosen on
    actions: Ints  # (8,)
    rewards: NDArray[np.float32]  # (8,)
    terminated: NDArray[np.bool_]  # (8,)
    truncated: NDArray[np.bool_]  # (8,)
    final_frames: Frames | None  # (8, 336) where an episode ended, else None
    next_frames: Frames  # (8, 336) true successors, the final frame where an episode ended
    stacks: Frames  # (8, 4, 336) ready-made histories, for buffers that store them
    next_stacks: Frames  # (8, 4, 336)


def frames_of(env: Ints, number: Ints) -> Frames:
    """Frames (..., 336) of env (...) and number (...)."""
    frames = _PATTERNS[(7 * number + 13 * env) % len(_PATTERNS)]
    frames[..., 0] = number % VOCAB
    frames[..., 1] = number // VOCAB % VOCAB
    frames[..., 2] = number // VOCAB**2
    frames[..., 3] = env
    return frames


class Stream:
    """Deterministic; as long as ``steps`` vector steps."""

    def __init__(self, steps: int, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.steps = steps
        self.number = np.empty((steps, ENVS), np.int64)  # of the frame shown at a step
        self.since = np.empty((steps, ENVS), np.int64)  # steps since the episode's first
        self.terminated = np.zeros((steps, ENVS), bool)
        self.truncated = np.zeros((steps, ENVS), bool)
        self.step_of = np.full((ENVS, steps + steps // 100 + 2), -1)  # [env, number], -1: final
        for env in range(ENVS):
            step = number = 0
            # The first episodes are cut at random, so that the envs don't reset in step.
            length = int(rng.integers(2, 1500))
            while step < steps:
                kept = min(length, steps - step)
                rows = slice(step, step + kept)
                self.since[rows, env] = np.arange(kept)
                self.number[rows, env] = number + np.arange(kept)
                if kept == length:
                    kind = self.truncated if rng.random() < 0.3 else self.terminated
                    kind[step + kept - 1, env] = True
                step, number = step + kept, number + kept + 1
                length = int(rng.integers(100, 1501))
            self.step_of[env, self.number[:, env]] = np.arange(steps)

    def play(self, begin: int, end: int, stacks: bool = True) -> Iterator[Step]:
        """Steps ``begin`` to ``end - 1``; without ``stacks`` those of a Step are empty."""
        env = np.arange(ENVS)
        for first in range(begin, end, 128):
            rows = slice(first, min(first + 128, end))
            number, since = self.number[rows], self.since[rows]
            frames = frames_of(env, number)
            following = frames_of(env, number + 1)
            ended = self.terminated[rows] | self.truncated[rows]
            stack = next_stack = np.empty((len(number), 0), np.uint16)
            if stacks:
                stack, next_stack = self._histories(env, number, since)
            for i in range(len(number)):
                yield Step(
                    frames=frames[i],
                    actions=number[i] % ACTIONS,
                    rewards=reward_of(number[i]),
                    terminated=self.terminated[first + i],
                    truncated=self.truncated[first + i],
                    final_frames=following[i] if ended[i].any() else None,
                    next_frames=following[i],
                    stacks=stack[i],
                    next_stacks=next_stack[i],
                )

    def _histories(self, env: Ints, number: Ints, since: Ints) -> tuple[Frames, Frames]:
        number, since, env = number[..., None], since[..., None], env[..., None]
        state = frames_of(env, number - np.minimum(_LAG, since))
        following = frames_of(env, number + 1 - np.minimum(_LAG, since + 1))
        return state, following

    def right(
        self,
        state: Frames,
        next_state: Frames,
        action: Ints,
        reward: NDArray[np.floating],
        terminated: NDArray[np.bool_],
    ) -> dict[str, tuple[int, int]]:
        """How many of a batch (B, 4, 336) are what was put in, and how many were judged, by field.

        ``next_state`` is judged where the episode went on, ``final_frame`` where it was truncated,
        for there some buffers forget the true one. After a termination it has no meaning.
        """
        env, step = self.origin(state)
        number, since = self.number[step, env], self.since[step, env]
        want_state, want_next = self._histories(env, number, since)
        next_right = (next_state == want_next).all((1, 2))
        cut = self.truncated[step, env]
        went_on = ~(cut | self.terminated[step, env])
        right = {
            "state": (state == want_state).all((1, 2)),
            "next_state": next_right[went_on],
            "final_frame": next_right[cut],
            "action": action == number % ACTIONS,
            "reward": reward == reward_of(number),
            "terminated": terminated == self.terminated[step, env],
        }
        return {name: (int(values.sum()), len(values)) for name, values in right.items()}

    def origin(self, state: Frames) -> tuple[Ints, Ints]:
        """Env and step of the newest frames of ``state`` (B, 4, 336)."""
        newest = state[:, -1].astype(np.int64)
        number = newest[:, 0] + VOCAB * newest[:, 1] + VOCAB**2 * newest[:, 2]
        step = self.step_of[newest[:, 3], number]
        if (step < 0).any():
            raise AssertionError("a final frame was given as the start of a transition")
        return newest[:, 3], step


def reward_of(number: Ints) -> NDArray[np.float32]:
    return (number % 4093 / 64).astype(np.float32)
