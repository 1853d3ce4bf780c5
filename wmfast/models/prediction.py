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


class RewardDoneHeads(nn.Module):
    """Sign (3 classes), magnitude and done from pooled features."""

    def __init__(self, d_model: int, done_weight: float) -> None:
        super().__init__()
        if done_weight <= 0:
            raise ValueError(f"done_weight = {done_weight}: must be positive")
        self.sign = nn.Linear(d_model, 3)
        self.magnitude = nn.Linear(d_model, 1)
        self.done = nn.Linear(d_model, 1)
        nn.init.constant_(self.done.bias, -math.log(done_weight))  # even odds under the weights

    def forward(self, pooled_bd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D) to sign logits (B, 3), magnitude (B,) and done logit (B,)."""
        magnitude_b1, done_b1 = self.magnitude(pooled_bd), self.done(pooled_bd)
        return self.sign(pooled_bd), magnitude_b1.squeeze(-1), done_b1.squeeze(-1)


class WorldModel(nn.Module):
    """Base of the world models: subclasses give ``forward``, this gives the loss.

    Attributes:
        done_weight: weight of the rare positives of the done head.
    """

    done_weight: float

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        """Predict the frame after ``history_btk`` (int64 (B, 4, 336)) and ``action_b`` (B,)."""
        raise NotImplementedError

    def loss(self, batch: Segments) -> tuple[Tensor, Metrics]:
        """One-step loss on the first step of each segment.

        Masked rows count nowhere. Of a step that ended the episode only reward and done count:
        the frame that the emulator returns with it is a stale copy, never a target.

        Returns:
            The scalar to minimise and detached metrics: ``token_loss`` (nats a token),
            ``token_accuracy``, ``copy_accuracy`` (that of repeating the last frame),
            ``changed_accuracy`` (of tokens that differ from it), ``reward_loss``, ``done_loss``.
        """
        history_btk, action_b, target_bk, weight_bk = one_step(batch)
        prediction: Prediction = self(history_btk, action_b)
        loss, metrics = token_loss(prediction, target_bk, weight_bk)
        return self.add_event_losses(loss, metrics, prediction, batch)

    def add_event_losses(
        self, loss: Tensor, metrics: Metrics, prediction: Prediction, batch: Segments
    ) -> tuple[Tensor, Metrics]:
        """Add the losses of the reward and done heads, if the model has them."""
        if prediction.done_logit_b is None:
            return loss, metrics
        step_b = batch.mask_bs[:, 0]
        reward = reward_loss(prediction, batch.reward_bs[:, 0], step_b)
        done = done_loss(prediction, batch.terminated_bs[:, 0], step_b, self.done_weight)
        metrics = metrics | {"reward_loss": reward.detach(), "done_loss": done.detach()}
        return loss + reward + done, metrics


def one_step(batch: Segments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """History (B, T, K), action (B,), target tokens (B, K) and their weights (B, K), 1.0 or 0.0."""
    assert batch.tokens_bsk.shape[-1] == TOKENS_PER_FRAME, batch.tokens_bsk.shape
    history = batch.tokens_bsk.shape[1] - batch.action_bs.shape[1]
    target_bk = batch.tokens_bsk[:, history]
    row_b1 = batch.mask_bs[:, :1] & ~batch.terminated_bs[:, :1]
    weight_bk = row_b1.float().expand_as(target_bk)
    return batch.tokens_bsk[:, :history], batch.action_bs[:, 0], target_bk, weight_bk


def token_loss(
    prediction: Prediction, target_bk: Tensor, weight_bk: Tensor
) -> tuple[Tensor, Metrics]:
    """Weighted mean of the tokens' negative log-likelihood, and metrics under the same weights."""
    nll_bk, right_bk = prediction.score(target_bk)
    same_bk = target_bk == prediction.last_bk
    loss = weighted_mean(nll_bk, weight_bk)
    metrics = {
        "token_loss": loss.detach(),
        "token_accuracy": weighted_mean(right_bk, weight_bk),
        "copy_accuracy": weighted_mean(same_bk, weight_bk),
        "changed_accuracy": weighted_mean(right_bk, weight_bk * ~same_bk),
    }
    return loss, metrics


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


def done_loss(prediction: Prediction, terminated_b: Tensor, row_b: Tensor, weight: float) -> Tensor:
    """Binary cross-entropy with weighted positives.

    The weight w moves the best logit by log w; adding log w to the logit here leaves the head
    itself calibrated, so ``Prediction.done`` is a probability.
    """
    assert prediction.done_logit_b is not None
    logit_b = prediction.done_logit_b.float() + math.log(weight)
    loss_b = torch.where(terminated_b, weight * F.softplus(-logit_b), F.softplus(logit_b))
    return weighted_mean(loss_b, row_b)


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``value`` under ``weight`` (bool or float); 0 where all weights are. No host sync."""
    weight = weight.float()
    total = weight.sum()
    return (value * weight).sum() / torch.where(total > 0, total, 1.0)
