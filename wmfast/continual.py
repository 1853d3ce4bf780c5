"""Mode ``full``: the tokenizer goes on learning, and the tokens in use keep up with it.

Every `tokenizer_every` env steps:

    train      some updates on newest frames and rehearsal frames, half and half; codes follow what
               is assigned to them, a few that are not worth their place move (``moving_codes``)
    encode     every frame whose pixels are kept is encoded again and its row rewritten
    measure    token-id retention on a held-out bank (``drift``), which then takes frames of now
    forget     rows without pixels, once the drift since they were encoded passes a bound
    file       rehearsal frames, then the frames played since the last training, under the rarest
               code in them AS THE CODES ARE NOW; rarity is the codes' use in both stores

A code is in use if a frame of the window or of the rehearsal has it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmfast import TokenReplay
from wmfast.config import Config
from wmfast.drift import DriftBank, moving_cells
from wmfast.errors import UserError
from wmfast.frame_window import FrameWindow, restore
from wmfast.models.moving_codes import MovingCodes
from wmfast.models.tokenizer import Tokenizer
from wmfast.rehearsal import CodebookRehearsal
from wmfast.step import TrainStep
from wmfast.types import TOKENS_PER_FRAME

FRAMES_FILE = "frames.safetensors"
_GRAD_CLIP = 1.0
_CHUNK = 256  # frames encoded at once
_STRETCH, _EVERY_STRETCH = 8, 8  # steps held out of the last env's play, one stretch in so many


class ContinualTokenizer:
    """The stores of frames, and the training of the tokenizer on them.

    Args:
        config: of the run.
        tokenizer: trained in place, on its device; always in eval mode.
        replay: whose rows are rewritten.
        autocast: train and encode under bfloat16 autocast.
    """

    def __init__(
        self, config: Config, tokenizer: Tokenizer, replay: TokenReplay, *, autocast: bool
    ) -> None:
        self._config, self._seed, self._envs = config.continual, config.seed, config.env.num_envs
        self._batch_size = config.tokenizer.batch_size
        self._tokenizer, self._replay = tokenizer, replay
        self._device = tokenizer.codes.device
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=autocast)
        self.window = FrameWindow(self._config.window_frames)
        self.rehearsal = CodebookRehearsal(tokenizer.vocab_size, self._config.frames_per_code)
        self.bank = DriftBank()
        self.codes = MovingCodes(tokenizer, decay=self._config.ema_decay, autocast=autocast)
        self.step = TrainStep(
            tokenizer,
            tokenizer.loss,
            learning_rate=self._config.learning_rate,
            grad_clip=_GRAD_CLIP,
            autocast=autocast,
        )
        self._trainings = 0
        self._filed_to = 0  # ids from here on have not been filed
        self._warmup_end = 0  # ids below are of random play, part of which is held out
        self._window_use = np.zeros(tokenizer.vocab_size)  # tokens of each code, at the last count
        self._rehearsal_use = np.zeros(tokenizer.vocab_size)

    def begin(self, frames_held_out: NDArray[np.uint8]) -> None:
        """After the warm-up, whose rows are all there is: begin the bank, file the first frames.

        Args:
            frames_held_out: uint8 (N, 84, 64, 3), those that the tokenizer was not fitted to.
        """
        self._warmup_end = self.window.next_id
        held_out = np.flatnonzero(self.is_held_out(np.arange(self._warmup_end)))
        count = len(frames_held_out)
        ids = held_out[np.linspace(0, len(held_out) - 1, count).astype(int)]
        chosen = np.unique(np.linspace(0, count - 1, self._config.bank_frames).astype(int))
        frames = frames_held_out[chosen]
        self.bank.begin(frames, ids[chosen], self._encode(frames), self._moving(frames))
        self._file(self._encode_window())
        use_v = torch.from_numpy(self._window_use).to(self._device)
        self.codes.begin(use_v, self._batch_size * TOKENS_PER_FRAME)

    def train(self) -> dict[str, float]:
        """One training, and all that follows from it. Nothing else may use the replay meanwhile.

        Returns:
            Metrics by name below ``tokenizer``: ``train/...`` and ``drift/...``.
        """
        config = self._config
        rng = np.random.default_rng((self._seed, self._trainings))
        reseeded = 0
        if config.reseed_codes:
            sample = self._frames(config.sample_frames, rng)
            reseeded = self.codes.reseed(sample, self._shares(), config.reseed_codes)
        sums: dict[str, Tensor] = {}
        for _ in range(config.tokenizer_updates):
            batch = self._frames(self._batch_size, rng)
            for name, value in {**self.step(batch), **self.codes.follow(batch)}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        metrics = {f"train/{k}": float(v) / config.tokenizer_updates for k, v in sums.items()}
        tokens_bk = self._encode_window()
        stats = self._replay.stats()
        oldest = int(stats["added"] - stats["stored"])
        drift = self.bank.moved(self._encode(self.bank.frames), self.window.oldest_id, oldest)
        forgotten = self._replay.forget(self.bank.stale_before(config.drift_bound))
        self._grow_bank(tokens_bk, oldest)
        self._file(tokens_bk)
        self._trainings += 1
        metrics |= {f"drift/{name}": value for name, value in drift.items()}
        return metrics | {
            "drift/forgotten": float(forgotten),
            "drift/bank_frames": float(len(self.bank.frames)),
            "train/reseeded": float(reseeded),
            "train/codes_in_use": float(np.count_nonzero(self._window_use + self._rehearsal_use)),
            "train/rehearsal_frames": float(len(self.rehearsal)),
        }

    @property
    def is_behind(self) -> bool:
        """Whether frames came since the last training."""
        return self._filed_to < self.window.next_id

    def is_held_out(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the rows' frames may not be trained on: as ``warmup.split_frames`` splits the
        warm-up, and short stretches of the last env's later play."""
        steps, of_last = ids // self._envs, ids % self._envs == self._envs - 1
        if self._envs > 1:
            of_part = of_last
        else:
            of_part = ids >= self._warmup_end - max(1, self._warmup_end // 10)
        stretches = steps // _STRETCH % _EVERY_STRETCH == _EVERY_STRETCH - 1
        held_out: NDArray[np.bool_] = np.where(ids < self._warmup_end, of_part, of_last & stretches)
        return held_out

    def save(self, path: Path) -> None:
        """Write the frames and what is known of them. OSError where that can't be."""
        arrays = {
            f"{name}.{key}": np.ascontiguousarray(value)
            for name, store in self._stores().items()
            for key, value in store.arrays().items()
        }
        places = [self._trainings, self._filed_to, self._warmup_end]
        safetensors.numpy.save_file(
            arrays
            | {
                "places": np.array(places),
                "window_use": self._window_use,
                "rehearsal_use": self._rehearsal_use,
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Go on where ``save`` was called. UserError: an earlier version was."""
        arrays = safetensors.numpy.load_file(path)
        for name, store in self._stores().items():
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in arrays.items() if prefix in k}
            try:
                store.load(own)
            except KeyError as error:
                raise UserError(
                    f"{path}: of an earlier version, its {name} has no {error}"
                ) from error
        self._trainings, self._filed_to, self._warmup_end = arrays["places"].tolist()
        self._window_use, self._rehearsal_use = arrays["window_use"], arrays["rehearsal_use"]

    def _stores(self) -> dict[str, FrameWindow | CodebookRehearsal | DriftBank]:
        return {"window": self.window, "rehearsal": self.rehearsal, "bank": self.bank}

    def _frames(self, count: int, rng: np.random.Generator) -> Tensor:
        """A mix of window frames and rehearsal frames, uint8 (count, 84, 64, 3)."""
        rehearsed = round(count * self._config.rehearsal_fraction) if len(self.rehearsal) else 0
        newest = self.window.frames(self._draw_ids(count - rehearsed, rng))
        frames = np.concatenate([newest, self.rehearsal.draw(rehearsed, rng)])
        return torch.from_numpy(frames).to(self._device)

    def _draw_ids(self, count: int, rng: np.random.Generator) -> list[int]:
        ids = np.arange(self.window.oldest_id, self.window.next_id)
        may_be = ids[~self.is_held_out(ids)]
        # A window of a few frames, of one env, can be held out as a whole.
        drawn: list[int] = rng.choice(may_be if len(may_be) else ids, size=count).tolist()
        return drawn

    def _shares(self) -> Tensor:
        """Of each code, its share of the tokens that are trained on, float32 (V,)."""
        rehearsed = self._config.rehearsal_fraction
        mix = ((1 - rehearsed, self._window_use), (rehearsed, self._rehearsal_use))
        share_v = np.zeros(len(self._window_use))
        for part, use_v in mix:
            share_v += part * use_v / max(1.0, use_v.sum())
        return torch.from_numpy(share_v.astype(np.float32)).to(self._device)

    def _encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Tokens (N, K). The background's are looked up: most patches are its."""
        median_1hwc = self._tokenizer.median[None]
        parts = []
        with torch.no_grad(), self._autocast:
            median_1k = self._tokenizer.encode(median_1hwc)
            for chunk in torch.from_numpy(frames).split(_CHUNK):
                batch = chunk.to(self._device)
                size = len(batch)
                tokens_bk = self._tokenizer.encode_next(
                    batch,
                    median_1hwc.expand_as(batch),
                    median_1k.expand(size, -1),
                )
                parts.append(tokens_bk.cpu().numpy().astype(np.uint16))
        return np.concatenate(parts) if parts else np.zeros((0, TOKENS_PER_FRAME), np.uint16)

    def _encode_window(self) -> NDArray[np.uint16]:
        """Rewrite the rows of the window's frames; the tokens of those not filed yet, (N, K)."""
        unfiled = []
        self._window_use = np.zeros(self._tokenizer.vocab_size)
        self._filed_to = max(self._filed_to, self.window.oldest_id)
        for first in range(self.window.oldest_id, self.window.next_id, _CHUNK):
            ids = np.arange(first, min(first + _CHUNK, self.window.next_id))
            tokens_bk = self._encode(self.window.frames(ids.tolist()))
            self._replay.rewrite(ids, tokens_bk)
            self._window_use += self._use_in(tokens_bk)
            unfiled.append(tokens_bk[ids >= self._filed_to])
        return np.concatenate(unfiled)

    def _moving(self, frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return moving_cells(torch.from_numpy(frames).to(self._device), self._tokenizer.median)

    def _grow_bank(self, tokens_nk: NDArray[np.uint16], oldest_id: int) -> None:
        """Offer the bank what is held out of the window's frames not filed yet."""
        ids = np.arange(self._filed_to, self.window.next_id)
        held_out = self.is_held_out(ids)
        frames = self.window.frames(ids[held_out].tolist())
        self.bank.grow(
            frames,
            ids[held_out],
            tokens_nk[held_out],
            self._moving(frames),
            oldest_id=oldest_id,
            most=self._config.bank_frames,
        )

    def _file(self, tokens_nk: NDArray[np.uint16]) -> None:
        """File the rehearsal anew, then the window's frames not filed yet, of these tokens."""
        rng = np.random.default_rng((self._seed, self._trainings, 1))
        blobs = self.rehearsal.blobs()
        chunks = [blobs[at : at + _CHUNK] for at in range(0, len(blobs), _CHUNK)]
        tokens = [self._encode(restore(chunk)) for chunk in chunks]
        rehearsed_nk = np.concatenate([np.zeros((0, TOKENS_PER_FRAME), np.uint16), *tokens])
        use_v = self._window_use + self._use_in(rehearsed_nk)
        self.rehearsal.file_again(rehearsed_nk, use_v, rng)
        ids = np.arange(self._filed_to, self.window.next_id)
        trained_n = ~self.is_held_out(ids)
        new = [self.window.blob(row) for row in ids[trained_n].tolist()]
        self.rehearsal.file(new, tokens_nk[trained_n], use_v, rng)
        self._filed_to = self.window.next_id
        # What the rehearsal has now: the same objects, so their tokens are known.
        all_nk = np.concatenate([rehearsed_nk, tokens_nk[trained_n]])
        places = {id(blob): place for place, blob in enumerate([*blobs, *new])}
        kept = [places[id(blob)] for blob in self.rehearsal.blobs()]
        counts_v = self.rehearsal.counts_v
        chances = np.repeat(1 / np.maximum(1, counts_v), counts_v)  # of a draw, but for a factor
        self._rehearsal_use = self._use_in(all_nk[kept], chances)

    def _use_in(
        self, tokens_nk: NDArray[np.uint16], weight_n: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """How often each code occurs, (V,), frames weighted."""
        weight_n = np.ones(len(tokens_nk)) if weight_n is None else weight_n
        weights = np.repeat(weight_n, TOKENS_PER_FRAME)
        use_v = np.bincount(tokens_nk.ravel(), weights, minlength=self._tokenizer.vocab_size)
        return use_v.astype(np.float64)
