"""Evaluation by full games: all at once, one forward pass a step, the game's own unclipped score.

Each game is played from its own seed to its end and counts once, whatever follows in its emulator;
a mean over "the first N games that end" would favour short games. The protocol that a score depends
on travels with it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmfast.config import EnvConfig
from wmfast.envs import FRAME_SKIP, AtariEnvs
from wmfast.games import human_normalised
from wmfast.token_history import Encode, Policy, TokenHistory


@dataclass(frozen=True)
class Protocol:
    """What a score depends on beside the policy."""

    game: str
    episodes: int
    seed: int
    env_seeds: tuple[int, ...]  # of the emulators
    epsilon: float  # probability of a random action
    sticky: float
    noop_max: int
    max_steps: int  # agent steps after which a game is cut off
    frame_skip: int = FRAME_SKIP
    full_games: bool = True  # not one life
    reward_clipping: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One full game an episode."""

    scores: tuple[float, ...]  # unclipped
    lengths: tuple[int, ...]  # agent steps
    cut_off: tuple[bool, ...]  # not over after `max_steps`: the score so far
    protocol: Protocol
    frames: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    """Frames (T, 84, 64, 3) of game 0, where asked for."""

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        """Sample standard deviation of the scores (n - 1); 0 for one episode."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    @property
    def human_normalised(self) -> float | None:
        """The mean score between random play (0) and a human (1), in the games with figures."""
        return human_normalised(self.protocol.game, self.mean)

    def as_json(self) -> dict[str, Any]:
        """All but the frames, for a result file."""
        return {
            "mean": self.mean,
            "std": self.std,
            "human_normalised": self.human_normalised,
            "scores": list(self.scores),
            "lengths": list(self.lengths),
            "cut_off": list(self.cut_off),
            "protocol": asdict(self.protocol),
        }


class RecordedStep(NamedTuple):
    """One step of every game; the first five are what ``TokenReplay.add`` wants ("next_step").

    Where `is_reset`, `tokens` is the last frame of the game before and the action was ignored.
    """

    tokens: NDArray[np.uint16]  # (E, K) on which `actions` were chosen
    actions: NDArray[np.int64]  # (E,)
    rewards: NDArray[np.float32]  # (E,) raw
    terminated: NDArray[np.bool_]  # (E,)
    truncated: NDArray[np.bool_]  # (E,)
    life_lost: NDArray[np.bool_]  # (E,)
    is_reset: NDArray[np.bool_]  # (E,)


def random_policy(num_actions: int, seed: int) -> Policy:
    """Uniformly random actions, from a stream of its own."""
    rng = np.random.default_rng(seed)

    def policy(history_btk: Tensor) -> Tensor:
        return torch.from_numpy(rng.integers(num_actions, size=len(history_btk)))

    return policy


def play(
    policy: Policy,
    game: str,
    config: EnvConfig | None = None,
    *,
    encode: Encode,
    seed: int,
    episodes: int = 10,
    epsilon: float = 0.0,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
    on_step: Callable[[RecordedStep], None] | None = None,
    record_steps: int | None = None,
    record_frames: int = 0,
) -> Evaluation:
    """Play `episodes` full games at once and score them.

    The games are the same for the same `seed`, and others than those of training. Networks must be
    in eval mode already; gradients are off here.

    Args:
        policy: token histories int64 (E, 4, K) on `device` to actions int64 (E,).
        game: any spelling that `games.game_name` knows.
        config: sticky actions, no-op starts, longest game; its `num_envs` is not used.
        encode: frames uint8 (E, 84, 64, 3) on `device` to tokens int64 (E, K).
        seed: of the games, and of the random actions where `epsilon` > 0.
        episodes: games, each in its own emulator.
        epsilon: probability of a uniformly random action; 0 is greedy.
        device: where `encode` and `policy` work. On a CPU, E shrinks as games end; elsewhere it
            stays `episodes`, so that compiled and captured graphs see one shape.
        max_steps: agent steps after which a game is cut off; at most, and unless given, the
            config's `max_frames` / 4.
        on_step: called with every step of all games up to `record_steps` (None: to the end); a
            game that ended is played on, as a new one, until the recording is over.
        record_frames: keep this many of the first frames of game 0.

    Raises:
        ValueError: unknown game, a number outside its range, an action that the game lacks.
    """
    config = EnvConfig() if config is None else config
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must be within 0..1, not {epsilon}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, not {max_steps}")
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {episodes}")
    cap = config.max_frames // FRAME_SKIP
    cap = cap if max_steps is None else min(cap, max_steps)
    recorded = 0 if on_step is None else cap if record_steps is None else record_steps
    shrinks = torch.device(device).type == "cpu"
    rng = np.random.default_rng([seed, 1])

    scores = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
    ended = np.zeros(episodes, np.bool_)
    cut_off = np.ones(episodes, np.bool_)
    playing = np.arange(episodes)  # the games that `history` has rows for
    film: list[NDArray[np.uint8]] = []
    history: TokenHistory | None = None
    is_reset = np.zeros(episodes, np.bool_)
    with AtariEnvs(game, config, num_envs=episodes, seed=seed, stream="eval") as envs:
        frames = envs.reset()
        for step in range(cap):
            if len(film) < record_frames and not ended[0]:
                film.append(frames[0].copy())
            with torch.no_grad():
                tokens = encode(torch.from_numpy(frames[playing]).to(device))
                if history is None:
                    history = TokenHistory(tokens)
                else:
                    history.push(tokens, is_reset[playing])
                chosen = policy(history.btk)
            actions = np.zeros(episodes, np.int64)
            actions[playing] = chosen.cpu().numpy()
            # Drawn for every game at every step: one game's luck does not depend on another's end.
            explores = rng.random(episodes) < epsilon
            actions = np.where(explores, rng.integers(envs.num_actions, size=episodes), actions)

            result = envs.step(actions)
            scores += np.where(ended, 0, result.rewards)
            lengths += ~ended
            cut_off &= ended | ~result.terminated  # only a game's own end counts
            ended |= result.terminated | result.truncated
            if on_step is not None and step < recorded:
                on_step(
                    RecordedStep(
                        tokens.cpu().numpy().astype(np.uint16),
                        actions,
                        result.rewards,
                        result.terminated,
                        result.truncated,
                        result.life_lost,
                        result.is_reset,
                    )
                )
            if ended.all():
                break
            frames, is_reset = result.frames, result.is_reset
            if shrinks and step + 1 >= recorded and ended[playing].any():
                history.keep(~ended[playing])
                playing = np.flatnonzero(~ended)
        protocol = Protocol(
            game=envs.game,
            episodes=episodes,
            seed=seed,
            env_seeds=tuple(envs.seeds.tolist()),
            epsilon=epsilon,
            sticky=config.sticky,
            noop_max=config.noop_max,
            max_steps=cap,
        )
    return Evaluation(
        scores=tuple(scores.tolist()),
        lengths=tuple(lengths.tolist()),
        cut_off=tuple(cut_off.tolist()),
        protocol=protocol,
        frames=np.stack(film) if film else None,
    )
