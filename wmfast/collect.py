"""Collecting: act, step the games, tokenise, store; the emulators work while the networks train."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wmfast import TokenReplay
from wmfast.envs import AtariEnvs, EnvStep, FinishedGame
from wmfast.stopwatch import Stopwatch
from wmfast.token_history import Encode, Policy, TokenHistory
from wmfast.types import HISTORY


class RawStep(NamedTuple):
    """One random step of the warm-up: a frame is kept as pixels, the tokenizer comes later."""

    frames: NDArray[np.uint8]  # (E, 84, 64, 3) on which `actions` were chosen
    actions: NDArray[np.int64]  # (E,)
    result: EnvStep


def collect_random(
    envs: AtariEnvs,
    env_steps: int,
    rng: np.random.Generator,
    on_step: Callable[[int], None] = lambda env_step: None,
) -> list[RawStep]:
    """At least `env_steps` random steps from freshly reset games, as pixels.

    `on_step` is called with the env steps so far after each vector step.
    """
    frames = envs.reset()
    steps: list[RawStep] = []
    while len(steps) * envs.num_envs < env_steps:
        actions = rng.integers(envs.num_actions, size=envs.num_envs)
        result = envs.step(actions)
        steps.append(RawStep(frames, actions, result))
        frames = result.frames
        on_step(len(steps) * envs.num_envs)
    return steps


class Collector:
    """Epsilon-greedy play into the replay buffer, one vector step a call.

    Between two calls a step of the emulators is under way. The row stored for a step is the frame
    on which the action was chosen, with what the action brought.
    """

    def __init__(
        self,
        envs: AtariEnvs,
        replay: TokenReplay,
        encode: Encode,
        policy: Policy,
        *,
        device: torch.device,
        rng: np.random.Generator,
        clock: Stopwatch,
        on_frames: Callable[[int, NDArray[np.uint8]], None] | None = None,
    ) -> None:
        """`on_frames(first_id, frames)` is told of each row stored: its id, its pixels."""
        self._on_frames = on_frames
        self._envs, self._replay = envs, replay
        self._encode, self._policy = encode, policy
        self._device, self._rng, self._clock = device, rng, clock
        self._seen: deque[tuple[NDArray[np.uint8], NDArray[np.bool_]]] = deque(maxlen=HISTORY)

    def begin(self, frames: NDArray[np.uint8]) -> None:
        """Start from the games' first frames, uint8 (E, 84, 64, 3), with a random action."""
        self._observe(frames, np.ones(self._envs.num_envs, np.bool_))
        self._act(epsilon=1.0)

    def begin_after(self, warmup: Sequence[RawStep]) -> None:
        """Store the warm-up as tokens and go on from its last frame."""
        is_reset = np.ones(self._envs.num_envs, np.bool_)
        for frames, actions, result in warmup:
            self._observe(frames, is_reset)
            self._store(actions, result)
            is_reset = result.is_reset
        self._observe(warmup[-1].result.frames, is_reset)
        self._act(epsilon=1.0)

    def step(self, epsilon: float) -> list[FinishedGame]:
        """Receive the step under way, store it, choose and send the next actions.

        Returns the games that ended, with their true scores.
        """
        with self._clock("env"):
            result = self._envs.recv()
        with self._clock("replay"):
            self._store(self._actions, result)
        with self._clock("encode"):
            self._observe(result.frames, result.is_reset)
        with self._clock("acting"):
            self._act(epsilon)
        return result.finished

    def encode_again(self) -> None:
        """The tokenizer has moved: the histories and the current tokens, anew from their pixels."""
        for number, (frames, is_reset) in enumerate(self._seen):
            self._remember(frames, is_reset if number else np.ones_like(is_reset))

    def _store(self, actions: NDArray[np.int64], result: EnvStep) -> None:
        if self._on_frames is not None:
            self._on_frames(int(self._replay.stats()["added"]), self._seen[-1][0])
        self._replay.add(
            self._tokens,
            actions,
            result.rewards,
            result.terminated,
            result.truncated,
            life_lost=result.life_lost,
        )

    def _observe(self, frames: NDArray[np.uint8], is_reset: NDArray[np.bool_]) -> None:
        self._seen.append((frames, is_reset))
        self._remember(frames, is_reset)

    def _remember(self, frames: NDArray[np.uint8], is_reset: NDArray[np.bool_]) -> None:
        tokens_ek = self._encode(torch.from_numpy(frames).to(self._device))
        if is_reset.all():
            self._history = TokenHistory(tokens_ek)
        else:
            self._history.push(tokens_ek, is_reset)
        self._tokens = tokens_ek.cpu().numpy().astype(np.uint16)

    def _act(self, epsilon: float) -> None:
        num_envs, num_actions = self._envs.num_envs, self._envs.num_actions
        actions = self._rng.integers(num_actions, size=num_envs)
        greedy = self._rng.random(num_envs) >= epsilon
        if greedy.any():
            actions = np.where(greedy, self._policy(self._history.btk).cpu().numpy(), actions)
        self._actions = actions
        self._envs.send(actions)
