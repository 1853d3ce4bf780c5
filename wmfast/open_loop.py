"""How well a world model dreams: open-loop quality at several horizons, beside the copy baseline.

The model sees four real frames, then only its own likeliest tokens, under the actions that were
really taken. Against the real frame h steps on, three sets of tokens are judged:

    all       every token
    changed   those that differ from the last frame the model saw: copying it has none of them right
    moving    those that differ from the real frame before: what moves at that very step
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from wmfast.models.prediction import Prediction, WorldModel
from wmfast.quality import copy_nll, ratio
from wmfast.types import Segments

SETS = ("all", "changed", "moving")
HORIZONS = (1, 5, 10)

Quality = dict[str, dict[str, float]]


@torch.no_grad()
def open_loop_quality(
    world_model: WorldModel, batches: Iterable[Segments], horizons: Sequence[int] = HORIZONS
) -> dict[str, Quality]:
    """Accuracy and likelihood of dreams, by horizon and set of tokens.

    A row counts at horizon h if its game went on for h steps; the frame that comes with an end is
    a stale copy and counts nowhere. The likelihood at h is that of the real token under what the
    model says after dreaming h - 1 frames.

    Args:
        world_model: put into eval mode for the call.
        batches: segments of at least ``max(horizons)`` steps on the model's device.

    Returns:
        ``{"5": {"changed": {"accuracy", "nll" (nats a token), "copy_accuracy", "copy_nll",
        "tokens"}, ...}, ...}``; a ratio without cases is 0. ``copy_nll`` is that of repeating the
        last frame seen with its accuracy at that horizon as confidence.

    Raises:
        ValueError: there is no batch, or its segments are too short.
    """
    was_training = world_model.training
    world_model.eval()
    total: Tensor | None = None
    vocab_size = 0
    for batch in batches:
        counts, vocab_size = _counts(world_model, batch, horizons)
        total = counts if total is None else total + counts
    world_model.train(was_training)
    if total is None:
        raise ValueError("batches is empty: at least one batch of segments is needed")
    by_horizon = zip(horizons, total.tolist(), strict=True)
    return {str(horizon): _quality(counts, vocab_size) for horizon, counts in by_horizon}


def _counts(
    world_model: WorldModel, batch: Segments, horizons: Sequence[int]
) -> tuple[Tensor, int]:
    """Float64 (H, 3 sets, 4): tokens, right ones, summed -log p, right ones of the copy."""
    steps = batch.action_bs.shape[1]
    if steps < max(horizons):
        raise ValueError(f"segments have {steps} steps: horizon {max(horizons)} needs as many")
    frames = batch.tokens_bsk.shape[1] - steps
    history_btk = batch.tokens_bsk[:, :frames]
    seen_bk = history_btk[:, -1]
    alive_b = torch.ones_like(batch.mask_bs[:, 0])
    rows, vocab_size = [], 0
    for step in range(max(horizons)):
        prediction: Prediction = world_model(history_btk, batch.action_bs[:, step])
        vocab_size = prediction.logits_bkv.shape[-1]
        said_bk, real_bk = prediction.tokens(), batch.tokens_bsk[:, frames + step]
        history_btk = torch.cat([history_btk[:, 1:], said_bk[:, None]], dim=1)
        alive_b = alive_b & batch.mask_bs[:, step] & ~batch.terminated_bs[:, step]
        if step + 1 not in horizons:
            continue
        right_bk, copied_bk = said_bk == real_bk, seen_bk == real_bk
        nll_bk = prediction.score(real_bk)[0]
        moving_bk = real_bk != batch.tokens_bsk[:, frames + step - 1]
        for set_bk in (torch.ones_like(right_bk), ~copied_bk, moving_bk):
            counts_bk = set_bk & alive_b[:, None]
            parts = (counts_bk, counts_bk & right_bk, nll_bk * counts_bk, counts_bk & copied_bk)
            rows.append(torch.stack([part.sum(dtype=torch.float64) for part in parts]))
    return torch.stack(rows).view(len(horizons), len(SETS), -1), vocab_size


def _quality(counts: list[list[float]], vocab_size: int) -> Quality:
    tokens, _, _, copied = counts[0]
    confidence = ratio(copied, tokens)
    return {
        name: {
            "accuracy": ratio(right, tokens),
            "nll": ratio(nll, tokens),
            "copy_accuracy": ratio(copied, tokens),
            "copy_nll": copy_nll(copied / tokens, vocab_size, confidence) if tokens else 0.0,
            "tokens": tokens,
        }
        for name, (tokens, right, nll, copied) in zip(SETS, counts, strict=True)
    }


@torch.no_grad()
def action_sensitivity(
    world_model: WorldModel, batches: Iterable[Segments], num_actions: int
) -> float:
    """KL(p(. | a) || p(. | a')) of the next frame, nats a frame, a' the action after a (cyclic).

    0 for a model that ignores its action. Mean over the first steps of the segments.
    """
    was_training = world_model.training
    world_model.eval()
    nats, frames = 0.0, 0
    for batch in batches:
        history_btk = batch.tokens_bsk[:, : -batch.action_bs.shape[1]]
        action_b = batch.action_bs[:, 0]
        log_p, log_q = (
            world_model(history_btk, action).token_logits().log_softmax(-1)
            for action in (action_b, (action_b + 1) % num_actions)
        )
        nats += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
        frames += len(action_b)
    world_model.train(was_training)
    return ratio(nats, frames)


def changed_accuracy(quality: Mapping[str, Quality], horizon: int) -> float:
    """The figure that world models are compared by: of ``changed`` tokens at ``horizon``."""
    return quality[str(horizon)]["changed"]["accuracy"]
