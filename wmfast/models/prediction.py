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
    """One step ahead: the next tokens and, with reward and done heads, what the step brings."""

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

    def token_nll(self, target_bk: Tensor) -> Tensor:
        """-log p of int64 tokens (B, K) under the mixture, float32 (B, K)."""
        logits = self.logits_bkv.flatten(0, 1)
        own_bk = -F.cross_entropy(logits, target_bk.flatten(), reduction="none").view_as(target_bk)
        if self.copy_logit_bk is None:
            return -own_bk
        copy_bk = self.copy_logit_bk.float()
        same_bk = target_bk == self.last_bk
        return F.softplus(copy_bk) - torch.where(same_bk, torch.logaddexp(own_bk, copy_bk), own_bk)

    def tokens(self) -> Tensor:
        """The most likely token of each cell, int64 (B, K); the lowest index among equals."""
        return self.token_logits().argmax(-1)

    def reward(self) -> Tensor | None:
        """Expected sign times magnitude in score points, float32 (B,); None without the head."""
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
        history = batch.tokens_bsk.shape[1] - batch.action_bs.shape[1]
        history_btk, target_bk = batch.tokens_bsk[:, :history], batch.tokens_bsk[:, history]
        assert target_bk.shape[-1] == TOKENS_PER_FRAME, target_bk.shape
        prediction: Prediction = self(history_btk, batch.action_bs[:, 0])
        step_b = batch.mask_bs[:, 0]
        loss, metrics = token_loss(prediction, target_bk, step_b & ~batch.terminated_bs[:, 0])
        if prediction.done_logit_b is not None:
            reward = reward_loss(prediction, batch.reward_bs[:, 0], step_b)
            done = done_loss(prediction, batch.terminated_bs[:, 0], step_b, self.done_weight)
            loss = loss + reward + done
            metrics |= {"reward_loss": reward.detach(), "done_loss": done.detach()}
        return loss, metrics


def token_loss(prediction: Prediction, target_bk: Tensor, row_b: Tensor) -> tuple[Tensor, Metrics]:
    """Mean negative log-likelihood of the tokens of the rows where ``row_b`` holds, and metrics."""
    counts_bk = row_b[:, None].expand_as(target_bk)
    loss = masked_mean(prediction.token_nll(target_bk), counts_bk)
    with torch.no_grad():
        right_bk = (prediction.tokens() == target_bk).float()
        same_bk = target_bk == prediction.last_bk
        metrics = {
            "token_loss": loss.detach(),
            "token_accuracy": masked_mean(right_bk, counts_bk),
            "copy_accuracy": masked_mean(same_bk.float(), counts_bk),
            "changed_accuracy": masked_mean(right_bk, counts_bk & ~same_bk),
        }
    return loss, metrics


def reward_loss(prediction: Prediction, reward_b: Tensor, row_b: Tensor) -> Tensor:
    """Cross-entropy of the sign plus, on non-zero rewards, the squared error of log1p |reward|."""
    assert prediction.reward_sign_logits_bc is not None
    assert prediction.reward_magnitude_b is not None
    sign_b = torch.sign(reward_b).long() + 1
    sign = F.cross_entropy(prediction.reward_sign_logits_bc, sign_b, reduction="none")
    error_b = prediction.reward_magnitude_b.float() - torch.log1p(reward_b.abs())
    return masked_mean(sign, row_b) + masked_mean(error_b.square(), row_b & (reward_b != 0))


def done_loss(prediction: Prediction, terminated_b: Tensor, row_b: Tensor, weight: float) -> Tensor:
    """Binary cross-entropy with weighted positives.

    The weight w moves the best logit by log w; adding log w to the logit here leaves the head
    itself calibrated, so ``Prediction.done`` is a probability.
    """
    assert prediction.done_logit_b is not None
    logit_b = prediction.done_logit_b.float() + math.log(weight)
    loss_b = torch.where(terminated_b, weight * F.softplus(-logit_b), F.softplus(logit_b))
    return masked_mean(loss_b, row_b)


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``value`` where the bool ``mask`` holds; 0 where it never does. No host sync."""
    return torch.where(mask, value, 0.0).sum() / mask.sum().clamp(min=1)
