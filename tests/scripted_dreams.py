"""A world model and a tokenizer whose answers are known beforehand, for tests of dreams."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wmfast.models.prediction import Prediction, WorldModel

V, A = 32, 3
REWARDS = (0.0, 10.0, -3.0)  # of the three actions
_SURE = 40.0


class ScriptedModel(WorldModel):
    """Every cell counts up by 1 + action; the dream ends once it stands at `last` or beyond."""

    done_weight = 1.0

    def __init__(self, last: int = V) -> None:
        super().__init__()
        self.last = last
        self.modes: list[bool] = []  # whether it was in training mode, by call

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        self.modes.append(self.training)
        last_bk = history_btk[:, -1]
        next_bk = (last_bk + 1 + action_b[:, None]).clamp(max=V - 1)
        reward_b = torch.tensor(REWARDS)[action_b]
        sign_bc = nn.functional.one_hot(reward_b.sign().long() + 1, 3).float() * _SURE
        return Prediction(
            logits_bkv=nn.functional.one_hot(next_bk, V).float() * 2 * _SURE,
            last_bk=last_bk,
            copy_logit_bk=None,
            reward_sign_logits_bc=sign_bc,
            reward_magnitude_b=torch.log1p(reward_b.abs()),
            done_logit_b=torch.where(next_bk[:, 0] >= self.last, _SURE, -_SURE),
        )


class UnsureModel(WorldModel):
    """Even tokens, a reward of 4 with odds 1 : 6 : 3 of loss, nothing, gain; an end in 5."""

    done_weight = 1.0

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        batch, _, cells = history_btk.shape
        return Prediction(
            logits_bkv=torch.zeros(batch, cells, V),
            last_bk=history_btk[:, -1],
            copy_logit_bk=None,
            reward_sign_logits_bc=torch.tensor([0.1, 0.6, 0.3]).log().expand(batch, 3),
            reward_magnitude_b=torch.full((batch,), math.log1p(4.0)),
            done_logit_b=torch.full((batch,), math.log(0.2 / 0.8)),
        )


class GreyTokenizer(nn.Module):
    """Paints a frame of token v in the grey level 8 v."""

    vocab_size = V
    codes = torch.zeros(V, 1)

    def decode(self, tokens_bk: Tensor) -> Tensor:
        grey_b111 = (tokens_bk[:, 0] * 8).to(torch.uint8).view(-1, 1, 1, 1)
        return grey_b111.expand(-1, 84, 64, 3).contiguous()
