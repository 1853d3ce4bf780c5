"""The gold evaluation: every figure of a world model on a tier of a frozen bank.

one_step             accuracy and likelihood of the next frame (``quality.py``)
events               precision and recall of rewards and ends, over every step of the bank: the
                     smaller tiers have no ends; None in ``canary``, which takes seconds
horizons             dreams of 1, 5 and 10 steps beside the copy baseline (``open_loop.py``)
action_sensitivity   KL between the answers to two actions, nats a frame
mirror_consistency   in games that look alike in a mirror: tokens on which "predict, then mirror"
                     and "mirror, then predict" agree, where one of them says that they change
psnr_moving          dB between decoded dreams and decoded real frames, on the pixels that
                     differ from the last frame seen, at 5 and 10 steps; beside the copy's
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from wmfast.gold_bank import HORIZON, GoldBank, Tier
from wmfast.imagine import imagine
from wmfast.models.prediction import WorldModel
from wmfast.models.tokenizer import Tokenizer
from wmfast.open_loop import SETS, action_sensitivity, open_loop_quality
from wmfast.quality import ratio, world_model_quality
from wmfast.types import HISTORY, Segments

# Where left and right differ by name only: walls, paddles and shots, but for score and colours.
MIRROR_GAMES = frozenset(
    {"breakout", "space_invaders", "demon_attack", "assault", "carnival", "phoenix", "galaxian"}
)
# Steps asked under two actions, and decoded: pixels cost more than tokens. Spread over the tier.
_COMPARED, _SHOWN = 512, 128
_PSNR_HORIZONS = (5, 10)
_EVENTS = (
    "steps",
    *("rewards", "reward_precision", "reward_recall"),
    *("ends", "done_precision", "done_recall"),
)


def gold_evaluation(
    world_model: WorldModel,
    tokenizer: Tokenizer,
    bank: GoldBank,
    tier: Tier,
    action_meanings: Sequence[str],
) -> dict[str, Any]:
    """All figures of a tier, to the digit the same for the same weights, files and threads.

    Args:
        world_model, tokenizer: on one device; the world model is in eval mode for the call.
        bank: whose tokens are this tokenizer's.
        action_meanings: the emulator's names of the model's actions (``LEFT``).

    Returns:
        The figures of the module's docstring, ``tier`` and ``steps`` (how many are judged);
        ``mirror_consistency`` is None in games without a mirror.
    """
    device = tokenizer.codes.device
    was_training = world_model.training
    world_model.eval()

    def batches(
        most: int | None = None, *, of: Tier = tier, horizon: int = HORIZON
    ) -> Iterable[Segments]:
        for batch in bank.segments(of, most=most, horizon=horizon):
            yield Segments(*(field.to(device) for field in batch))

    result: dict[str, Any] = {"tier": tier, "steps": len(bank.tiers[tier])}
    one_step = world_model_quality(world_model, batches(horizon=1))
    result["one_step"] = {key: one_step[key] for key in one_step if key not in _EVENTS}
    result["events"] = None
    if tier != "canary":
        everywhere = world_model_quality(world_model, batches(of="gold", horizon=1))
        result["events"] = {key: everywhere[key] for key in _EVENTS if key in everywhere}
    result["horizons"] = open_loop_quality(world_model, batches())
    actions = len(action_meanings)
    result["action_sensitivity"] = action_sensitivity(world_model, batches(_COMPARED), actions)
    mirror = mirrored_actions(action_meanings) if bank.game in MIRROR_GAMES else None
    result["mirror_consistency"] = (
        mirror_consistency(world_model, mirror_tokens(tokenizer), batches(_SHOWN), mirror)
        if mirror is not None
        else None
    )
    result["psnr_moving"] = psnr_moving(world_model, tokenizer, batches(_SHOWN))
    world_model.train(was_training)
    return result


def as_text(result: dict[str, Any]) -> str:
    """The figures as lines for a terminal."""
    events, horizons = result["events"] or {}, result["horizons"]
    lines = [f"{result['tier']}: {result['steps']} held-out steps; the copy baseline in brackets"]
    lines.append(f"{'tokens right':<14}" + "".join(f"{name:>18}" for name in SETS))
    for horizon, quality in horizons.items():
        cells = (
            f"{100 * of['accuracy']:.1f} ({100 * of['copy_accuracy']:.1f}) %"
            for of in (quality[name] for name in SETS)
        )
        lines.append(f"after {horizon:>2} steps" + " " + "".join(f"{cell:>18}" for cell in cells))
    for event in ("reward", "done"):
        if f"{event}_recall" in events:
            precision, recall = (events[f"{event}_{name}"] for name in ("precision", "recall"))
            cases = events["rewards" if event == "reward" else "ends"]
            share = f"{100 * recall:.0f} % of {cases:.0f}" if cases else "there were none"
            lines.append(
                f"{event}: precision {100 * precision:.0f} %, recall {share}, "
                f"in {events['steps']:.0f} steps"
            )
    for horizon, psnr in result["psnr_moving"].items():
        dream, copied = ("-" if x is None else f"{x:.1f}" for x in (psnr["dream"], psnr["copy"]))
        lines.append(f"moving pixels after {horizon} steps: {dream} ({copied}) dB")
    lines.append(f"action sensitivity: {result['action_sensitivity']:.2f} nats a frame")
    if result["mirror_consistency"] is not None:
        lines.append(f"mirror consistency: {100 * result['mirror_consistency']:.1f} %")
    return "\n".join(lines)


def mirrored_actions(meanings: Sequence[str]) -> list[int] | None:
    """For each action the one with left and right exchanged; None where the game lacks one."""
    names = [
        name.replace("LEFT", "?").replace("RIGHT", "LEFT").replace("?", "RIGHT")
        for name in meanings
    ]
    return [meanings.index(name) for name in names] if set(names) == set(meanings) else None


def mirror_tokens(tokenizer: Tokenizer) -> Callable[[Tensor], Tensor]:
    """Tokens int64 (B, K) to those of the same picture in a mirror."""
    return lambda tokens_bk: tokenizer.encode(tokenizer.decode(tokens_bk).flip(2))


@torch.no_grad()
def mirror_consistency(
    world_model: WorldModel,
    mirror: Callable[[Tensor], Tensor],
    batches: Iterable[Segments],
    mirrored_action: Sequence[int],
) -> float:
    """Share of the tokens that either answer changes on which both answers agree."""
    agree = judged = 0.0
    for batch in batches:
        history_btk = batch.tokens_bsk[:, :HISTORY]
        action_b = batch.action_bs[:, 0]
        swapped_b = torch.tensor(mirrored_action, device=action_b.device)[action_b]
        flipped_btk = mirror(history_btk.flatten(0, 1)).view_as(history_btk)
        after_bk = mirror(world_model(history_btk, action_b).tokens())
        before_bk = world_model(flipped_btk, swapped_b).tokens()
        last_bk = flipped_btk[:, -1]
        judged_bk = (after_bk != last_bk) | (before_bk != last_bk)
        agree += float((judged_bk & (after_bk == before_bk)).sum())
        judged += float(judged_bk.sum())
    return ratio(agree, judged)


@torch.no_grad()
def psnr_moving(
    world_model: WorldModel, tokenizer: Tokenizer, batches: Iterable[Segments]
) -> dict[str, dict[str, float | None]]:
    """By horizon ``{"dream": dB, "copy": dB}``; None where nothing moves or nothing differs."""
    error = {horizon: [0.0, 0.0, 0.0] for horizon in _PSNR_HORIZONS}
    for batch in batches:
        history_btk = batch.tokens_bsk[:, :HISTORY]
        dream = imagine(world_model, history_btk, batch.action_bs, HORIZON)
        alive_bs = (batch.mask_bs & ~batch.terminated_bs).cumprod(dim=1).bool()
        seen = tokenizer.decode(history_btk[:, -1]).float()
        for horizon in _PSNR_HORIZONS:
            alive_b = alive_bs[:, horizon - 1]
            real_bk, said_bk = batch.tokens_bsk[:, HISTORY + horizon - 1], dream.tokens_bsk
            real = tokenizer.decode(real_bk[alive_b]).float()
            said = tokenizer.decode(said_bk[alive_b, horizon - 1]).float()
            before = seen[alive_b]
            moved = (real != before).any(dim=-1, keepdim=True)
            values = (
                ((said - real).square() * moved).sum(),
                ((before - real).square() * moved).sum(),
                moved.sum() * real.shape[-1],
            )
            sums = error[horizon]
            error[horizon] = [old + float(new) for old, new in zip(sums, values, strict=True)]
    return {
        str(horizon): {"dream": _psnr(said, pixels), "copy": _psnr(copied, pixels)}
        for horizon, (said, copied, pixels) in error.items()
    }


def _psnr(squared_error: float, pixels: float) -> float | None:
    if squared_error == 0 or pixels == 0:
        return None
    return 10 * math.log10(255**2 / (squared_error / pixels))
