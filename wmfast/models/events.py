"""What a step brings beside tokens: reward, end, lost life, read from pooled features."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn


class Events(NamedTuple):
    """What the heads say of a step; the last four fields of a `Prediction`."""

    sign_logits_bc: Tensor  # (B, 3)
    magnitude_b: Tensor  # (B,)
    done_logit_b: Tensor  # (B,)
    life_logit_b: Tensor | None  # (B,)


class RewardDoneHeads(nn.Module):
    """Sign (3 classes), magnitude, done and, with `lives`, a lost life from pooled features."""

    def __init__(self, d_model: int, done_weight: float, *, lives: bool) -> None:
        super().__init__()
        if done_weight <= 0:
            raise ValueError(f"done_weight = {done_weight}: must be positive")
        self.sign = nn.Linear(d_model, 3)
        self.magnitude = nn.Linear(d_model, 1)
        self.done = nn.Linear(d_model, 1)
        self.life = nn.Linear(d_model, 1) if lives else None
        for rare in (self.done, self.life):
            if rare is not None:
                nn.init.constant_(rare.bias, -math.log(done_weight))  # even odds under the weights

    def forward(self, pooled_bd: Tensor) -> Events:
        """Features (B, D) to the events of B steps."""
        magnitude_b1, done_b1 = self.magnitude(pooled_bd), self.done(pooled_bd)
        life_b = None if self.life is None else self.life(pooled_bd).squeeze(-1)
        return Events(self.sign(pooled_bd), magnitude_b1.squeeze(-1), done_b1.squeeze(-1), life_b)
