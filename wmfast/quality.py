"""How good a world model is on segments that it never trained on, beside the copy baseline.

On most Atari frames over 95 % of the tokens do not change, so plain accuracy says little: repeating
the last frame has the same. Accuracy on the CHANGED tokens is the figure to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from wmfast.models.prediction import Prediction, WorldModel
from wmfast.types import Segments


def world_model_quality(world_model: WorldModel, batches: Iterable[Segments]) -> dict[str, float]:
    """One-step quality on the first step of each segment.

    Token figures leave out the frames of steps that ended an episode (stale copies); reward and
    done figures include those steps. Masked steps count nowhere. A ratio without cases is 0.

    Args:
        world_model: put into eval mode for the call.
        batches: held-out segments on the model's device.

    Returns:
        ``accuracy``, ``changed_accuracy`` and ``static_accuracy`` (tokens that do and do not differ
        from the last frame), ``nll`` (nats a token); ``copy_accuracy``, ``copy_changed_accuracy``,
        ``copy_static_accuracy`` and ``copy_nll`` of repeating the last frame (for the likelihood,
        with its error rate spread evenly over the other codes); ``reward_precision`` and
        ``reward_recall`` of predicting a non-zero reward, ``done_precision`` and ``done_recall`` of
        a probability over a half (models with these heads); ``tokens``, ``changed_tokens``,
        ``steps``, ``rewards``, ``ends``: how many cases there were.

    Raises:
        ValueError: there is no batch.
    """
    was_training = world_model.training
    world_model.eval()
    total: Tensor | None = None
    vocab_size, has_heads = 0, False
    with torch.no_grad():
        for batch in batches:
            history = batch.tokens_bsk.shape[1] - batch.action_bs.shape[1]
            prediction = world_model(batch.tokens_bsk[:, :history], batch.action_bs[:, 0])
            counts = torch.stack(
                _token_counts(prediction, batch) + _event_counts(prediction, batch)
            )
            total = counts if total is None else total + counts
            vocab_size = prediction.logits_bkv.shape[-1]
            has_heads = prediction.done_logit_b is not None
    world_model.train(was_training)
    if total is None:
        raise ValueError("batches is empty: at least one batch of segments is needed")
    return _quality(total.tolist(), vocab_size, has_heads)


def _token_counts(prediction: Prediction, batch: Segments) -> list[Tensor]:
    """Float64 scalars: tokens, changed, right, right and changed, summed -log p."""
    target_bk = batch.tokens_bsk[:, -batch.action_bs.shape[1]]
    row_b1 = batch.mask_bs[:, :1] & ~batch.terminated_bs[:, :1]
    counts_bk = row_b1.expand_as(target_bk)
    changed_bk = counts_bk & (target_bk != prediction.last_bk)
    right_bk = counts_bk & (prediction.tokens() == target_bk)
    nll_bk = torch.where(counts_bk, prediction.score(target_bk)[0], 0.0)
    parts = [counts_bk, changed_bk, right_bk, right_bk & changed_bk, nll_bk]
    return [part.sum(dtype=torch.float64) for part in parts]


def _event_counts(prediction: Prediction, batch: Segments) -> list[Tensor]:
    """Float64 scalars: steps, then true, predicted and both for rewards, then for ends."""
    step_b = batch.mask_bs[:, 0]
    rewarded_b = step_b & (batch.reward_bs[:, 0] != 0)
    ended_b = step_b & batch.terminated_bs[:, 0]
    reward_b, done_b = prediction.reward(), prediction.done()
    says_reward_b = step_b & (reward_b != 0) if reward_b is not None else ~step_b & step_b
    says_end_b = step_b & (done_b > 0.5) if done_b is not None else ~step_b & step_b
    parts = [step_b, rewarded_b, says_reward_b, rewarded_b & says_reward_b]
    parts += [ended_b, says_end_b, ended_b & says_end_b]
    return [part.sum(dtype=torch.float64) for part in parts]


def _quality(counts: list[float], vocab_size: int, has_heads: bool) -> dict[str, float]:
    tokens, changed, right, right_changed, nll, steps, *events = counts
    rewards, says_reward, right_reward, ends, says_end, right_end = events
    copy_accuracy = ratio(tokens - changed, tokens)
    quality = {
        "accuracy": ratio(right, tokens),
        "copy_accuracy": copy_accuracy,
        "changed_accuracy": ratio(right_changed, changed),
        "copy_changed_accuracy": 0.0,
        "static_accuracy": ratio(right - right_changed, tokens - changed),
        "copy_static_accuracy": float(tokens > changed),
        "nll": ratio(nll, tokens),
        "copy_nll": copy_nll(copy_accuracy, vocab_size),
        "tokens": tokens,
        "changed_tokens": changed,
        "steps": steps,
        "rewards": rewards,
        "ends": ends,
    }
    if has_heads:
        quality |= {
            "reward_precision": ratio(right_reward, says_reward),
            "reward_recall": ratio(right_reward, rewards),
            "done_precision": ratio(right_end, says_end),
            "done_recall": ratio(right_end, ends),
        }
    return quality


def copy_nll(right: float, vocab_size: int, confidence: float | None = None) -> float:
    """Nats a token of a distribution that copies, else says any other code alike.

    Args:
        right: share of the judged tokens that a copy has right.
        vocab_size: V.
        confidence: probability that it gives the copy; ``right`` unless given.
    """
    confidence = right if confidence is None else confidence
    nats = -right * math.log(confidence) if right > 0 else 0.0
    wrong = 1.0 - right
    return nats - wrong * math.log((1.0 - confidence) / (vocab_size - 1)) if wrong > 0 else nats


def ratio(part: float, whole: float) -> float:
    """Part of a whole; 0 where there is none."""
    return part / whole if whole > 0 else 0.0
