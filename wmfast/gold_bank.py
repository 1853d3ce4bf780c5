"""The frozen evaluation of world models: games that nothing trained on, and fixed indices.

A run leaves two files in its folder:

    gold.replay         games of its agent, a little exploring, on seeds of their own: the bank
    gold_indices.json   which of the bank's steps each tier judges, and the bank's checksum

    canary   500 steps, balanced over actions: seconds        fast   6000, balanced: a minute
    gold     every step of the bank

The two smaller tiers judge dreams of `HORIZON` steps, so the last steps of a game, its end among
them, are in ``gold`` only; `gold.gold_evaluation` counts rewards and ends over the whole bank.

The bank holds games of their own, from their first step (of long ones the first 800 steps), so no
frame of it was ever trained on or is the neighbour of one that was. The same files and weights give
the same figures on the same machine, with as many threads, to the digit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from wmfast import TokenReplay
from wmfast.disk import one_line_errors, write_atomic
from wmfast.errors import UserError
from wmfast.types import Segments

Tier = Literal["canary", "fast", "gold"]
TIERS: tuple[Tier, ...] = get_args(Tier)
BANK_FILE, INDEX_FILE = "gold.replay", "gold_indices.json"
HORIZON = 10
_SIZES = {"canary": 500, "fast": 6000}
_FORMAT = "wmfast-gold-1"


@dataclass(frozen=True)
class GoldBank:
    """The bank and its indices.

    Attributes:
        replay: the games, ids as ``TokenReplay`` gives them.
        game: the emulator's name for it.
        tokenizer: checksum of the codes that the tokens stand for.
        tiers: ids of the steps that a tier judges, int64, sorted.
    """

    replay: TokenReplay
    game: str
    tokenizer: str
    tiers: dict[str, NDArray[np.int64]]

    def segments(
        self,
        tier: Tier,
        *,
        batch_size: int = 64,
        horizon: int = HORIZON,
        most: int | None = None,
    ) -> Iterator[Segments]:
        """The tier's steps in order and ``horizon`` steps from each, masked past its game's end.

        With ``most`` only so many of them, evenly spread: steps are in the order of play, and the
        first ones are openings.
        """
        left = steps_left(self.replay)
        ids = self.tiers[tier]
        if most is not None and most < len(ids):
            ids = ids[np.linspace(0, len(ids) - 1, most).round().astype(np.int64)]
        for begin in range(0, len(ids), batch_size):
            yield self._gather(ids[begin : begin + batch_size], left, horizon)

    def _gather(self, ids: NDArray[np.int64], left: NDArray[np.int64], horizon: int) -> Segments:
        first = self.replay[ids]
        frames, actions, rewards, ended, masks = [first.state], [], [], [], []
        for step in range(horizon):
            mask = step < left[ids]
            at = np.where(mask, ids + step * self.replay.num_envs, ids)
            rows = self.replay[at]
            frames.append(rows.next_state[:, -1:])
            actions.append(rows.action)
            rewards.append(np.where(mask, rows.reward, 0.0).astype(np.float32))
            ended.append(mask & (rows.discount == 0.0))
            masks.append(mask)
        return Segments(
            tokens_bsk=torch.from_numpy(np.concatenate(frames, axis=1).astype(np.int64)),
            action_bs=torch.from_numpy(np.stack(actions, axis=1)),
            reward_bs=torch.from_numpy(np.stack(rewards, axis=1)),
            terminated_bs=torch.from_numpy(np.stack(ended, axis=1)),
            mask_bs=torch.from_numpy(np.stack(masks, axis=1)),
            life_lost_bs=torch.zeros(len(ids), horizon, dtype=torch.bool),  # recordings have none
        )


def steps_left(replay: TokenReplay) -> NDArray[np.int64]:
    """By id: steps from it on, itself included, whose next frame is stored; 0: not such a step."""
    envs = replay.num_envs
    left = np.zeros(len(replay), dtype=np.int64)
    newest = len(replay) - envs  # what these steps brought is not stored yet
    for episode in replay.episodes():
        ids = int(episode["first_id"]) + envs * np.arange(int(episode["length"]))
        ids = ids[ids < newest]
        left[ids] = np.arange(len(ids), 0, -1)
    return left


def choose_tiers(replay: TokenReplay, num_actions: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Ids for every tier: all steps that can be drawn, and balanced draws from those of them whose
    game goes on for `HORIZON` steps (from all, if none does). The smaller tier is part of the
    larger."""
    left = steps_left(replay)
    every = np.flatnonzero(left)
    actions = replay[every].action
    rng = np.random.default_rng(seed)
    long = left[every] >= HORIZON
    if not long.any():  # games cut off sooner: they are judged as far as they go
        long[:] = True
    by_action = [
        rng.permutation(every[long & (actions == action)]) for action in range(num_actions)
    ]
    order = _round_robin(by_action)
    tiers = {name: np.sort(order[:size]) for name, size in _SIZES.items()}
    return {**tiers, "gold": every}


def _round_robin(piles: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One of each pile in turn, until all are empty."""
    depth = [np.arange(len(pile)) for pile in piles]
    order = np.argsort(np.concatenate(depth), kind="stable")
    return np.concatenate(piles)[order]


def save_bank(folder: Path, bank: GoldBank) -> None:
    """Write the bank's two files; the indices last, with the checksum of the games.

    Raises:
        UserError: the disk is full or not writable.
    """
    path = folder / BANK_FILE
    with one_line_errors("write", path):
        bank.replay.save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {
        "format": _FORMAT,
        "game": bank.game,
        "tokenizer": bank.tokenizer,
        "bank_sha256": digest,
        "horizon": HORIZON,
        "tiers": {name: ids.tolist() for name, ids in bank.tiers.items()},
    }
    with one_line_errors("write", folder / INDEX_FILE):
        write_atomic(folder / INDEX_FILE, json.dumps(facts).encode())


def open_bank(indices: Path) -> GoldBank:
    """Read `gold_indices.json` and the bank beside it.

    Raises:
        UserError: a file is absent, damaged or of another version, or the two don't belong
            together.
    """
    facts = _read_indices(indices)
    path = indices.parent / BANK_FILE
    with one_line_errors("read", path):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != facts["bank_sha256"]:
        raise UserError(f"{path}: not the games that {indices.name} was made for (or damaged)")
    replay = TokenReplay.load(path)
    left = steps_left(replay)
    tiers: dict[str, NDArray[np.int64]] = {}
    for name in TIERS:
        ids = facts["tiers"][name]
        if not all(0 <= i < len(left) and left[i] for i in ids):
            raise UserError(f"{indices}: tier {name} names steps that {path.name} lacks")
        tiers[name] = np.array(ids, dtype=np.int64)
    return GoldBank(replay, facts["game"], facts["tokenizer"], tiers)


def _read_indices(path: Path) -> dict[str, Any]:
    with one_line_errors("read", path):
        text = path.read_bytes()
    try:
        facts = json.loads(text)
        tiers = [facts["tiers"][name] for name in TIERS]
        whole = (
            facts["format"] == _FORMAT
            and facts["horizon"] == HORIZON
            and all(isinstance(facts[key], str) for key in ("game", "tokenizer", "bank_sha256"))
            and all(map(_is_tier, tiers))
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged, or not frozen indices of this version ({_FORMAT})")
    return dict(facts)


def _is_tier(ids: Any) -> bool:
    """Whether ids as JSON gives them are whole numbers, one or more, each larger than the last."""
    return (
        type(ids) is list
        and len(ids) > 0
        and all(type(i) is int for i in ids)
        and all(one < other for one, other in pairwise(ids))
    )


def codes_checksum(codes_vd: torch.Tensor) -> str:
    """What the tokens stand for: two tokenizers with the same codes give the same."""
    return hashlib.sha256(codes_vd.detach().cpu().numpy().tobytes()).hexdigest()
