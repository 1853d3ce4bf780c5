"""What evaluation games leave behind: held-out steps for the world model, the film of a game."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from wmfast import TokenReplay
from wmfast.evaluate import RecordedStep
from wmfast.gold_bank import GoldBank, choose_tiers, codes_checksum
from wmfast.imagine import imagine
from wmfast.models.prediction import WorldModel
from wmfast.models.tokenizer import Tokenizer
from wmfast.replay import ReplaySampler
from wmfast.types import HISTORY, Segments

Frames = NDArray[np.uint8]


class Recording:
    """The steps of evaluation games as tokens; nothing trains on them.

    Args:
        games: played at once.
        max_steps: of each game.
        vocab_size: of the tokens.
        seed: of the draws.
    """

    def __init__(self, games: int, max_steps: int, *, vocab_size: int, seed: int) -> None:
        self.max_steps = max_steps
        self._replay = TokenReplay(
            games * (max_steps + 1),
            games,
            vocab_size=vocab_size,
            history=HISTORY,
            prioritized=False,
            seed=seed,
        )
        self._tokens: list[NDArray[np.uint16]] = []  # of game 0: a frame, and the action on it
        self._actions: list[int] = []
        self._over = False

    def add(self, step: RecordedStep) -> None:
        """Keep a step of every game."""
        self._replay.add(
            step.tokens,
            step.actions,
            step.rewards,
            step.terminated,
            step.truncated,
        )
        if not self._over:
            self._tokens.append(step.tokens[0])
            self._actions.append(int(step.actions[0]))
            self._over = bool(step.terminated[0] or step.truncated[0])

    def bank(self, game: str, codes_vd: torch.Tensor, num_actions: int, seed: int) -> GoldBank:
        """The games as a frozen bank: to be kept, the recording must not go on."""
        tiers = choose_tiers(self._replay, num_actions, seed)
        return GoldBank(self._replay, game, codes_checksum(codes_vd), tiers)

    def segments(self, batches: int, batch_size: int, device: torch.device) -> Iterator[Segments]:
        """One-step segments, drawn evenly."""
        sampler = ReplaySampler(self._replay, device)
        return (sampler.segments(batch_size, 1) for _ in range(batches))

    def dream(
        self,
        world_model: WorldModel,
        tokenizer: Tokenizer,
        film: Frames,
        *,
        start: int,
        steps: int,
        refresh: int,
        temperature: float,
        top_k: int | None,
        seed: int,
        device: torch.device,
    ) -> tuple[Frames, Frames]:
        """Game 0 from step `start`, and the model's dream of it under the same actions.

        The model sees four real frames and then only its own, for `refresh` steps; then it gets
        real ones again. In a shorter game the dream begins earlier, then is cut.

        Args:
            refresh: steps of one dream; 0 dreams on to the end.
            temperature, top_k, seed: of the dream's tokens, as for `imagine`.
            film: game 0's frames (T, 84, 64, 3), film[i] being the one that action i was chosen on.

        Returns:
            Real and dreamed frames uint8 (S, 84, 64, 3), S <= steps; the first pair is the last
            real frame and its reconstruction.
        """
        last = min(len(film), len(self._tokens)) - 1
        start = max(0, min(start, last - steps))
        steps = min(steps, last - start)
        dreamed = [self._history(start, device)[:, -1]]
        luck = torch.Generator(device).manual_seed(seed)
        end, stride = start + steps, refresh or max(1, steps)
        for begin in range(start, end, stride):
            actions = np.array(self._actions[begin : min(begin + stride, end)])
            history_1tk, actions_1s = self._history(begin, device), _int64(actions, device)
            dream = imagine(
                world_model,
                history_1tk,
                actions_1s,
                len(actions),
                temperature=temperature,
                top_k=top_k,
                generator=luck,
            )
            dreamed.append(dream.tokens_bsk[0])
        with torch.no_grad():
            frames = tokenizer.decode(torch.cat(dreamed)).cpu().numpy()
        return film[start : start + steps + 1], frames

    def _history(self, step: int, device: torch.device) -> torch.Tensor:
        """Int64 (1, T, K): game 0's frames up to `step`, its first one for those before it."""
        rows = [self._tokens[max(0, step - back)] for back in reversed(range(HISTORY))]
        return _int64(np.stack(rows), device)


def _int64(array: NDArray[np.integer], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)[None]
