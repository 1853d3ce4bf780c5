"""One rollout for every use of a dream: play, Dyna, open-loop evaluation, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wmfast.models.prediction import Prediction, WorldModel

_COLDEST = torch.finfo(torch.float32).tiny
Policy = Callable[[Tensor], Tensor]
"""From a history int64 (B, T, K) to actions int64 (B,)."""


class Dream(NamedTuple):
    """An imagined segment; step i is what ``action_bs[:, i]`` brought."""

    tokens_bsk: Tensor  # int64 (B, S, K)
    action_bs: Tensor  # int64 (B, S)
    reward_bs: Tensor | None  # float32 (B, S) game points; None without a reward head
    done_bs: Tensor | None  # float32 (B, S) probability of the end; None without a done head


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    history_btk: Tensor,
    policy: Policy | Tensor,
    horizon: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Dream:
    """Roll the world model out from its own predictions; no host sync, no gradient.

    Args:
        world_model: in eval mode for the call.
        history_btk: int64 (B, T, K), oldest frame first; not changed.
        policy: from the imagined history to actions, or fixed actions int64 (B, >= horizon).
        horizon: steps to imagine, at least 1.
        temperature: 0 takes each cell's most likely token, above 0 samples the cells one by one.
        top_k: sample among the `top_k` likeliest tokens of a cell only (ties with the last of
            them included); None: among all.
        generator: of the sampling, on the model's device.

    Returns:
        The dream. It goes on past a predicted end: the reader weighs or cuts by ``done_bs``.

    Raises:
        ValueError: horizon or top_k below 1, temperature below 0, or fewer fixed actions than
            steps.
    """
    if horizon < 1:
        raise ValueError(f"horizon = {horizon}: must be at least 1")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature = {temperature}: must be 0 (most likely) or above")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k = {top_k}: must be at least 1")
    if isinstance(policy, Tensor) and policy.shape[1] < horizon:
        raise ValueError(f"policy has {policy.shape[1]} fixed actions: must have {horizon}")
    was_training = world_model.training
    world_model.eval()
    tokens, actions, predictions = [], [], []
    for step in range(horizon):
        action_b = policy[:, step] if isinstance(policy, Tensor) else policy(history_btk)
        prediction, history_btk = imagined_step(
            world_model,
            history_btk,
            action_b,
            temperature=temperature,
            top_k=top_k,
            generator=generator,
        )
        tokens.append(history_btk[:, -1])
        actions.append(action_b)
        predictions.append((prediction.reward(), prediction.done()))
    world_model.train(was_training)
    rewards = [reward for reward, _ in predictions if reward is not None]
    dones = [done for _, done in predictions if done is not None]
    return Dream(
        tokens_bsk=torch.stack(tokens, dim=1),
        action_bs=torch.stack(actions, dim=1),
        reward_bs=torch.stack(rewards, dim=1) if rewards else None,
        done_bs=torch.stack(dones, dim=1) if dones else None,
    )


def imagined_step(
    world_model: WorldModel,
    history_btk: Tensor,
    action_b: Tensor,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Prediction, Tensor]:
    """One step of `imagine`, for who chooses the next action elsewhere.

    Returns:
        The prediction, and the history (B, T, K) after it.
    """
    prediction: Prediction = world_model(history_btk, action_b)
    token_bk = _choose(prediction, temperature, top_k, generator)
    return prediction, torch.cat([history_btk[:, 1:], token_bk[:, None]], dim=1)


def _choose(
    prediction: Prediction,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Tokens int64 (B, K): the most likely ones, or a sample."""
    if temperature == 0:
        return prediction.tokens()
    # By the inverse of the distribution function: one uniform number a cell, not one a code.
    logits_bkv = prediction.token_logits()
    # The largest is 0: however small the temperature, it stays one.
    logits_bkv = (logits_bkv - logits_bkv.amax(-1, keepdim=True)) / max(temperature, _COLDEST)
    if top_k is not None and top_k < logits_bkv.shape[-1]:
        least_bk1 = logits_bkv.topk(top_k, dim=-1).values[..., -1:]
        logits_bkv = logits_bkv.masked_fill(logits_bkv < least_bk1, -torch.inf)
    shares_bkv = logits_bkv.softmax(-1).cumsum(-1)
    whole_bk1 = shares_bkv[..., -1:]
    luck_bk1 = torch.empty_like(whole_bk1).uniform_(generator=generator) * whole_bk1
    # Rounded up to the whole it would fall behind the last code.
    luck_bk1 = torch.minimum(luck_bk1, torch.nextafter(whole_bk1, torch.zeros_like(whole_bk1)))
    return torch.searchsorted(shares_bkv, luck_bk1, right=True).squeeze(-1)
