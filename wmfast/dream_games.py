"""Imagined games, one a row of the batch, stepped one action at a time.

What `wmfast.dream_env` shows through Gymnasium's interface. Dimension legend: e games (the batch),
t frames of a history (4), k tokens of a frame (336), c signs of a reward (-, 0, +).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmfast import TokenReplay
from wmfast.build import pick_device
from wmfast.checkpoint import load_checkpoint
from wmfast.config import Device
from wmfast.errors import UserError
from wmfast.imagine import imagined_step
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.models.tokenizer import Tokenizer
from wmfast.rundir import load_config
from wmfast.trained import load_trained
from wmfast.types import HISTORY, TOKENS_PER_FRAME

Rewards = Literal["sampled", "expected", "likeliest"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_DRAWN_AT_ONCE = 256


@dataclass(frozen=True)
class DreamParts:
    """What dreams are made of: models on one device, and real histories to begin in."""

    world_model: WorldModel
    tokenizer: Tokenizer
    starts: NDArray[np.uint16]  # (N, 4, 336)
    num_actions: int


class DreamGames:
    """E imagined games side by side; all luck comes from the generator of `seed`.

    Args:
        parts: the models, and where games begin.
        num_games: E.
        temperature: of the tokens; 0 takes the likeliest.
        top_k: sample among the so many likeliest tokens of a cell; None: among all.
        rewards: how the reward head is read, see `DreamVectorEnv`.
    """

    def __init__(
        self,
        parts: DreamParts,
        num_games: int,
        *,
        temperature: float,
        top_k: int | None,
        rewards: Rewards,
    ) -> None:
        self._parts = parts
        self._starts = _checked_starts(parts.starts, parts.tokenizer.vocab_size)
        self._num_games = num_games
        self._temperature, self._top_k, self._rewards = temperature, top_k, rewards
        self._device = parts.tokenizer.codes.device
        self._rng = np.random.default_rng()
        self._begins: list[np.random.Generator] = []  # by game: of where its dreams begin
        self._noise = torch.Generator(self._device)  # of the tokens
        shape = (num_games, HISTORY, TOKENS_PER_FRAME)
        self.history_etk = torch.zeros(shape, dtype=torch.int64, device=self._device)
        """What each game shows, int64 (E, 4, 336), oldest frame first."""

    def seed(self, rng: np.random.Generator) -> None:
        """Take all luck from `rng` from now on."""
        self._rng = rng
        self._noise.manual_seed(int(rng.integers(2**63)))
        # Steps draw for every game at once; beginnings come at each game's own times.
        seeds = rng.integers(2**63, size=self._num_games)
        self._begins = [np.random.default_rng(seed) for seed in seeds]

    def begin(self, rows_e: Bools) -> None:
        """Put the games of `rows_e` (E,) at the beginning of a new dream."""
        if rows_e.any():
            rows = np.flatnonzero(rows_e)
            drawn = [self._begins[row].integers(len(self._starts)) for row in rows]
            starts_mtk = torch.from_numpy(self._starts[drawn].astype(np.int64)).to(self._device)
            self.history_etk[torch.from_numpy(rows).to(self._device)] = starts_mtk

    @torch.no_grad()
    def step(self, action_e: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
        """One imagined step of every game.

        Returns:
            Rewards in game points, probabilities of the end, and an even draw of [0, 1) for each
            game to decide the end by; float64 (E,).
        """
        world_model = self._parts.world_model
        was_training = world_model.training
        world_model.eval()
        prediction, self.history_etk = imagined_step(
            world_model,
            self.history_etk,
            torch.from_numpy(action_e).to(self._device),
            temperature=self._temperature,
            top_k=self._top_k,
            generator=self._noise,
        )
        world_model.train(was_training)
        reward_luck_e, end_luck_e = self._rng.random((2, self._num_games))
        reward_e, done_e = self._events(prediction, reward_luck_e)
        return reward_e, done_e, end_luck_e

    @torch.no_grad()
    def frames(self, rows_e: Bools | None = None) -> NDArray[np.uint8]:
        """The newest frames uint8 (M, 84, 64, 3) of the games in `rows_e` (E,), or of all."""
        frames_bhwc = self._parts.tokenizer.decode(self._rows(rows_e)[:, -1])
        shown: NDArray[np.uint8] = frames_bhwc.cpu().numpy()
        return shown

    def histories(self, rows_e: Bools | None = None) -> NDArray[np.uint16]:
        """The token histories uint16 (M, 4, 336) of the games in `rows_e` (E,), or of all."""
        return self._rows(rows_e).cpu().numpy().astype(np.uint16)

    def _rows(self, rows_e: Bools | None) -> Tensor:
        if rows_e is None:
            return self.history_etk
        return self.history_etk[torch.from_numpy(rows_e).to(self._device)]

    def _events(self, prediction: Prediction, luck_e: Floats) -> tuple[Floats, Floats]:
        logits_ec, magnitude_e = prediction.reward_sign_logits_bc, prediction.reward_magnitude_b
        likeliest_e, done_e = prediction.reward(), prediction.done()
        if logits_ec is None or magnitude_e is None or likeliest_e is None or done_e is None:
            raise ValueError("world_model has no reward and done heads: an env needs both")
        sign_ec = logits_ec.float().softmax(-1)
        size_e = torch.expm1(magnitude_e.float().clamp(min=0.0))
        on_device = torch.stack([sign_ec[:, 0], sign_ec[:, 2], size_e, likeliest_e, done_e])
        loss_e, gain_e, size_e, likeliest_e, done_e = on_device.double().cpu().numpy()  # one copy
        if self._rewards == "likeliest":
            return likeliest_e, done_e
        if self._rewards == "expected":
            return (gain_e - loss_e) * size_e, done_e
        sign_e = (luck_e >= 1 - gain_e).astype(np.float64) - (luck_e < loss_e)
        return sign_e * size_e, done_e


def dream_parts(run: Path, *, starts: int, device: Device) -> DreamParts:
    """A run's models, as `load_trained` gives them, and `starts` histories of its replay buffer.

    Raises:
        UserError: no run or no whole checkpoint is there, its world model is untrained or has no
            reward and done heads.
        ValueError: no start is asked for; a GPU that is not there.
    """
    if starts < 1:
        raise ValueError(f"starts = {starts}: must be at least 1")
    where = pick_device(device)
    config = load_config(run)
    if not config.world_model.reward_done_heads:
        raise UserError(f"{run}: its world model has no reward and done heads: an env needs both")
    trained, checkpoint = load_trained(run), load_checkpoint(run)
    updates = checkpoint.state.get("counters", {}).get("world_model_updates")
    if updates == 0 and config.wm is None:
        raise UserError(
            f"{run}: its world model is untrained at env step {checkpoint.env_step} "
            f"(mode {config.loop.mode}): let the run go on first"
        )
    replay = TokenReplay.load(str(checkpoint.file("replay.bin")))
    return DreamParts(
        trained.world_model.to(where),
        trained.tokenizer.to(where),
        starts_of(replay, starts),
        trained.agent.num_actions,
    )


def starts_of(replay: TokenReplay, count: int) -> NDArray[np.uint16]:
    """Real histories uint16 (`count`, 4, 336), drawn evenly from what `replay` holds.

    Raises:
        ValueError: nothing can be drawn.
    """
    draws = []
    for begin in range(0, count, _DRAWN_AT_ONCE):
        batch = replay.sample_sequences(min(_DRAWN_AT_ONCE, count - begin), 1)
        draws.append(batch.tokens[:, : replay.history].copy())
    return np.concatenate(draws)


def _checked_starts(starts: NDArray[Any], vocab_size: int) -> NDArray[np.uint16]:
    array = np.asarray(starts)
    shape = (HISTORY, TOKENS_PER_FRAME)
    if array.shape[1:] != shape or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(f"starts are {array.dtype} {array.shape}: must be integers (N, 4, 336)")
    if array.min() < 0 or array.max() >= vocab_size:
        raise ValueError(
            f"starts hold tokens {array.min()} to {array.max()}: must be 0 to {vocab_size - 1}"
        )
    return array.astype(np.uint16)
