"""Curiosity: a bonus for transitions that the world model did not foresee.

The world model's error on the frame that an action brought, -log p a token, is an intrinsic reward
(Pathak et al. 2017, with tokens for features). Errors shrink by orders of magnitude over a run, so
they are measured against their running mean: the bonus is `scale` on average, more where the game
surprises. Only the first step of a return gets one, and only if the whole return was played.

Dimension legend in ``wmfast.types``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmfast.models.prediction import Prediction, WorldModel
from wmfast.types import Transitions

_DECAY = 0.99  # of the running mean, a batch


class Curiosity(nn.Module):
    """Bonuses, and the running mean of the errors that they are measured by.

    Args:
        scale: mean bonus of a transition; 0: no bonus, and `bonus` must not be called.
    """

    level: Tensor  # float64 () decayed sum of the batches' mean errors
    weight: Tensor  # float64 () decayed count of the batches

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def bonus(
        self, world_model: WorldModel, batch: Transitions, *, n_step: int, gamma: float
    ) -> Tensor:
        """Intrinsic rewards float32 (B,), at least 0; waits for nothing.

        Args:
            world_model: that learned on transitions like these.
            batch: returns of `n_step` steps, at most the length of a history: the frame after
                the first step must be in ``next_state_btk``.
            n_step, gamma: of the batch; a return that ended early has another discount.
        """
        frames = batch.next_state_btk.shape[1]
        assert 1 <= n_step <= frames, (n_step, frames)
        was_training = world_model.training
        world_model.eval()
        prediction: Prediction = world_model(batch.state_btk, batch.action_b)
        world_model.train(was_training)
        error_b = prediction.score(batch.next_state_btk[:, frames - n_step])[0].mean(dim=1)
        whole_b = (batch.discount_b - gamma**n_step).abs() < 1e-4 * gamma**n_step
        count, total = whole_b.sum(), (error_b * whole_b).sum(dtype=torch.float64)
        some = (count > 0).double()  # a batch without a whole return says nothing
        decay = 1 - (1 - _DECAY) * some
        self.level.mul_(decay).add_((1 - decay) * total / count.clamp(min=1))
        self.weight.mul_(decay).add_(1 - decay)
        mean = (self.level / self.weight.clamp(min=1e-12)).float().clamp(min=1e-12)
        return self.scale * whole_b * error_b / mean
