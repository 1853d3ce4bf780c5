"""What every world model answers, and the one loss that trains them all.

Copy gate. Most tokens of an Atari frame equal those of the frame before, so a model may mix "copy"
with its own distribution, p = g onehot(last) + (1 - g) softmax(z), g = sigmoid(s). Dividing by
(1 - g) / sum(exp(z)) shows that p is itself a softmax: of z with z[last] replaced by
logaddexp(z[last], logsumexp(z) + s). The likelihood of one token needs neither that nor a one-hot:

    log p[y] = (logaddexp(log_softmax(z)[y], s) if y == last else log_softmax(z)[y]) - softplus(s)

which is finite for every finite z and s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmfast.types import TOKENS_PER_FRAME, Metrics, Segments

COPY_LOGIT_INIT = 3.5  # copying starts with probability 0.97: argmax copies, the loss is finite


class Prediction(NamedTuple):
    """One step ahead: the next tokens and, with reward and done heads, what the step brings.

    The token fields cover all cells (B, K), or (M,) cells that the caller chose.
    """

    logits_bkv: Tensor  # float (B, K, V) the model's own distribution
    last_bk: Tensor  # int64 (B, K) newest frame of the history
    copy_logit_bk: (
        Tensor | None
    )  # float (B, K) log-odds of copying `last_bk`; None without the gate
    reward_sign_logits_bc: Tensor | None  # float (B, 3) negative, zero, positive
    reward_magnitude_b: Tensor | None  # float (B,) log1p |reward|, given that it is not zero
    done_logit_b: Tensor | None  # float (B,) log-odds that the episode ends with this step
    life_logit_b: Tensor | None = None  # float (B,) log-odds that this step costs a life

    def token_logits(self) -> Tensor:
        """Float (B, K, V): logits of the mixture (of ``logits_bkv`` itself without a copy gate)."""
        logits_bkv = self.logits_bkv.float()
        if self.copy_logit_bk is None:
            return logits_bkv
        index_bk1 = self.last_bk[..., None]
        copy_bk1 = logits_bkv.logsumexp(-1, keepdim=True) + self.copy_logit_bk.float()[..., None]
        own_bk1 = logits_bkv.gather(-1, index_bk1)
        return logits_bkv.scatter(-1, index_bk1, torch.logaddexp(own_bk1, copy_bk1))

    def score(self, target_bk: Tensor) -> tuple[Tensor, Tensor]:
        """Score int64 tokens (B, K) under the mixture: -log p, float32, and "is it right", bool.

        Right means that no token is likelier: ``tokens() == target_bk`` but for exact ties, which
        all count as right. It costs one maximum over the vocabulary, no argmax and no mixture.
        """
        logits_mv = self.logits_bkv.flatten(0, -2)
        own_bk = -F.cross_entropy(logits_mv, target_bk.flatten(), reduction="none").view_as(
            target_bk
        )
        logit_bk = self._logit(target_bk)
        best_bk = self.logits_bkv.detach().amax(-1).float()
        if self.copy_logit_bk is None:
            return -own_bk, logit_bk >= best_bk
        copy_bk = self.copy_logit_bk.float()
        same_bk = target_bk == self.last_bk
        nll_bk = F.softplus(copy_bk) - torch.where(
            same_bk, torch.logaddexp(own_bk, copy_bk), own_bk
        )
        # Both candidates on the scale of the logits, where logsumexp(z) = z[y] - log_softmax(z)[y]
        gate_bk = (logit_bk - own_bk + copy_bk).detach()
        last_bk = torch.logaddexp(self._logit(self.last_bk), gate_bk)
        right_bk = torch.where(same_bk, last_bk, logit_bk) >= torch.maximum(best_bk, last_bk)
        return nll_bk, right_bk

    def _logit(self, token_bk: Tensor) -> Tensor:
        return self.logits_bkv.detach().gather(-1, token_bk[..., None]).squeeze(-1).float()

    def tokens(self) -> Tensor:
        """The most likely token of each cell, int64 (B, K); the lowest index among equals."""
        return self.token_logits().argmax(-1)

    def reward(self) -> Tensor | None:
        """Likeliest sign times magnitude, in score points, float32 (B,); None without the head."""
        if self.reward_sign_logits_bc is None or self.reward_magnitude_b is None:
            return None
        sign_b = self.reward_sign_logits_bc.argmax(-1) - 1
        return sign_b * torch.expm1(self.reward_magnitude_b.float().clamp(min=0.0))

    def done(self) -> Tensor | None:
        """Probability that the episode ends with this step, float32 (B,); None without the head."""
        return None if self.done_logit_b is None else torch.sigmoid(self.done_logit_b.float())

    def life_lost(self) -> Tensor | None:
        """Probability that the step costs a life, float32 (B,); None without the head."""
        return None if self.life_logit_b is None else torch.sigmoid(self.life_logit_b.float())


class WorldModel(nn.Module):
    """Base of the world models: subclasses give ``forward``, this gives the loss.

    Attributes:
        done_weight: weight of the rare positives of the heads for ends and lost lives.
        teacher_forcing: how often a step of a rollout is followed by the real frame.
        step_discount: weight of a rollout's step over that of the step before.
        importance: weights of the target tokens from all frames (B, T + S, K) and S; None: all 1.
    """

    done_weight: float
    teacher_forcing: float = 0.1
    step_discount: float = 0.7
    importance: Callable[[Tensor, int], Tensor] | None = None

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        """Predict the frame after ``history_btk`` (int64 (B, 4, 336)) and ``action_b`` (B,)."""
        raise NotImplementedError

    def loss(self, batch: Segments) -> tuple[Tensor, Metrics]:
        """Loss over the S steps of each segment, rolled out on the model's own answers.

        The first step sees real frames. After each step the likeliest tokens (of one row in
        ``1 / teacher_forcing`` the real ones) become the newest frame of the history, so that the
        model learns to go on from its own mistakes; no gradient passes through that choice. The
        steps' losses are averaged with weights ``step_discount``^i. S = 1 is plain prediction.

        Masked rows count nowhere. Of a step that ended the episode only reward and done count:
        the frame that the emulator returns with it is a stale copy, never a target.

        Returns:
            The scalar to minimise and detached metrics, unweighted, of the first step:
            ``token_loss`` (nats a token), ``token_accuracy``, ``copy_accuracy`` (that of repeating
            the last frame), ``changed_accuracy`` (of tokens that differ from it), ``reward_loss``,
            ``done_loss``, ``life_loss``; with S > 1 also the tokens' figures of the last step as
            ``rollout_...``, against the real frame before.
        """
        assert batch.tokens_bsk.shape[-1] == TOKENS_PER_FRAME, batch.tokens_bsk.shape
        steps = batch.action_bs.shape[1]
        frames = batch.tokens_bsk.shape[1] - steps  # T
        history_btk = batch.tokens_bsk[:, :frames]
        importance_bsk = self.importance(batch.tokens_bsk, steps) if self.importance else None
        losses, discounts, metrics = [], [], {}
        for step in range(steps):
            target = Target(
                token_bk=batch.tokens_bsk[:, frames + step],
                before_bk=batch.tokens_bsk[:, frames + step - 1],
                row_b=batch.mask_bs[:, step] & ~batch.terminated_bs[:, step],
                importance_bk=None if importance_bsk is None else importance_bsk[:, step],
            )
            rolls_on = step + 1 < steps
            loss, found, prediction, token_bk = self.step_loss(
                history_btk, batch.action_bs[:, step], target, rolls_on=rolls_on
            )
            loss, found = self._add_event_losses(loss, found, prediction, batch, step)
            losses.append(loss)
            discounts.append(self.step_discount**step)
            if step == 0:
                metrics = found
            elif not rolls_on:
                metrics = metrics | _of_rollout(found)
            if token_bk is not None:
                draw_b1 = torch.rand(len(token_bk), 1, device=token_bk.device)
                token_bk = torch.where(draw_b1 < self.teacher_forcing, target.token_bk, token_bk)
                history_btk = torch.cat([history_btk[:, 1:], token_bk[:, None]], dim=1)
        total = sum(d * loss for d, loss in zip(discounts, losses, strict=True))
        return torch.as_tensor(total) / sum(discounts), metrics

    def step_loss(
        self, history_btk: Tensor, action_b: Tensor, target: Target, *, rolls_on: bool
    ) -> tuple[Tensor, Metrics, Prediction, Tensor | None]:
        """Token loss of one step, its metrics, the prediction and, if it rolls on, its tokens."""
        prediction: Prediction = self(history_btk, action_b)
        loss, metrics = token_loss(prediction, target)
        with torch.no_grad():
            return loss, metrics, prediction, prediction.tokens() if rolls_on else None

    def _add_event_losses(
        self, loss: Tensor, metrics: Metrics, prediction: Prediction, batch: Segments, step: int
    ) -> tuple[Tensor, Metrics]:
        """Add the losses of the reward and done heads, if the model has them."""
        if prediction.done_logit_b is None:
            return loss, metrics
        row_b = batch.mask_bs[:, step]
        reward = reward_loss(prediction, batch.reward_bs[:, step], row_b)
        done = end_loss(
            prediction.done_logit_b, batch.terminated_bs[:, step], row_b, self.done_weight
        )
        losses = {"reward_loss": reward, "done_loss": done}
        if prediction.life_logit_b is not None:
            lost_b = batch.life_lost_bs[:, step]
            losses["life_loss"] = end_loss(prediction.life_logit_b, lost_b, row_b, self.done_weight)
        found = {name: value.detach() for name, value in losses.items()}
        return loss + torch.stack(list(losses.values())).sum(), metrics | found


def _of_rollout(metrics: Metrics) -> Metrics:
    kept = {"token_loss": "loss", "token_accuracy": "accuracy"}
    kept |= {name: name for name in ("copy_accuracy", "changed_accuracy")}
    return {f"rollout_{name}": metrics[key] for key, name in kept.items()}


class Target(NamedTuple):
    """What a step should have given, over all cells (B, K), or (M,) cells that were chosen."""

    token_bk: Tensor  # int64 (B, K) the real next frame
    before_bk: Tensor  # int64 (B, K) the real frame before it: the copy baseline
    row_b: Tensor  # bool (B,) the step counts
    importance_bk: Tensor | None  # float32 (B, K) weights of the loss; None: all 1

    def count_bk(self) -> Tensor:
        """Float32 (B, K), 1 or 0: the cells that count."""
        return self.row_b[:, None].float().expand_as(self.token_bk)


def token_loss(
    prediction: Prediction, target: Target, cells: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Metrics]:
    """Weighted mean of the tokens' negative log-likelihood, and metrics that count them evenly.

    ``cells``: indices (M,) into the B * K cells that ``prediction`` holds, and their weights.
    """
    token_bk, before_bk, importance_bk = target.token_bk, target.before_bk, target.importance_bk
    if cells is None:
        count_bk = target.count_bk()
    else:
        cell_m, count_bk = cells
        token_bk, before_bk = token_bk.flatten()[cell_m], before_bk.flatten()[cell_m]
        importance_bk = None if importance_bk is None else importance_bk.flatten()[cell_m]
    nll_bk, right_bk = prediction.score(token_bk)
    same_bk = token_bk == before_bk
    plain = weighted_mean(nll_bk, count_bk)
    metrics = {
        "token_loss": plain.detach(),
        "token_accuracy": weighted_mean(right_bk, count_bk),
        "copy_accuracy": weighted_mean(same_bk, count_bk),
        "changed_accuracy": weighted_mean(right_bk, count_bk * ~same_bk),
    }
    if importance_bk is None:
        return plain, metrics
    return weighted_mean(nll_bk, count_bk * importance_bk), metrics


def reward_loss(prediction: Prediction, reward_b: Tensor, row_b: Tensor) -> Tensor:
    """Cross-entropy of the sign plus, on non-zero rewards, the Huber loss of log1p |reward|.

    Huber, not squared: log1p of an Atari reward is 2 to 8, and a fresh head's squared error would
    drown every other gradient.
    """
    assert prediction.reward_sign_logits_bc is not None
    assert prediction.reward_magnitude_b is not None
    sign_b = torch.sign(reward_b).long() + 1
    sign = F.cross_entropy(prediction.reward_sign_logits_bc, sign_b, reduction="none")
    magnitude_b = F.smooth_l1_loss(
        prediction.reward_magnitude_b.float(), torch.log1p(reward_b.abs()), reduction="none"
    )
    return weighted_mean(sign, row_b) + weighted_mean(magnitude_b, row_b & (reward_b != 0))


def end_loss(logit_b: Tensor, ended_b: Tensor, row_b: Tensor, weight: float) -> Tensor:
    """Binary cross-entropy of rare ends, of episodes or lives, with weighted positives.

    The weight w moves the best logit by log w; adding log w to the logit here leaves the head
    itself calibrated, so ``Prediction.done`` and ``life_lost`` are probabilities.
    """
    logit_b = logit_b.float() + math.log(weight)
    loss_b = torch.where(ended_b, weight * F.softplus(-logit_b), F.softplus(logit_b))
    return weighted_mean(loss_b, row_b)


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``value`` under ``weight`` (bool or float); 0 where all weights are. No host sync."""
    weight = weight.float()
    total = weight.sum()
    return (value * weight).sum() / torch.where(total > 0, total, 1.0)
