"""A small convolutional world model over the 21 x 16 token grid, all cells in parallel.

An Atari sprite moves about one cell a step, so the next token of a cell depends on its
neighbourhood in the last four frames; a few 3 x 3 convolutions see that at a hundredth of a
transformer's cost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmfast.config import WorldModelConfig
from wmfast.models.prediction import COPY_LOGIT_INIT, Prediction, RewardDoneHeads, WorldModel
from wmfast.models.transformer import SpatialPosition
from wmfast.types import GRID_HW, HISTORY


class ResidualBlock(nn.Module):
    """x + W2 gelu(conv3x3(gelu(x))) with W2 a 1 x 1 convolution, zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.mix = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        branch_bchw: Tensor = self.mix(F.gelu(self.spatial(F.gelu(x_bchw))))
        return x_bchw + branch_bchw


class ConvWorldModel(WorldModel):
    """Frames stacked in channels, the action as FiLM, residual blocks, one token head a cell."""

    def __init__(self, config: WorldModelConfig, *, vocab_size: int, num_actions: int) -> None:
        super().__init__()
        c = config.d_model
        self.done_weight = config.done_weight
        embed_dim = max(1, c // HISTORY)
        self.token = nn.Embedding(vocab_size, embed_dim)
        self.stem = nn.Linear(HISTORY * embed_dim, c)
        self.position = SpatialPosition(c)
        self.action_film = nn.Embedding(num_actions, 2 * c)
        self.blocks = nn.Sequential(*(ResidualBlock(c) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(c)
        self.tokens = nn.Linear(c, vocab_size)
        self.copy = nn.Linear(c, 1) if config.copy_gate else None
        if self.copy is not None:
            nn.init.zeros_(self.copy.weight)
            nn.init.constant_(self.copy.bias, COPY_LOGIT_INIT)
        self.reward_done: RewardDoneHeads | None = None
        if config.reward_done_heads:
            self.reward_done = RewardDoneHeads(c, config.done_weight)

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        """Predict the frame after ``history_btk`` (int64 (B, 4, 336)) and ``action_b`` (B,)."""
        token_bkte = self.token(history_btk.transpose(1, 2))
        scale_bd, shift_bd = self.action_film(action_b)[:, None].chunk(2, dim=-1)
        x_bkd = self.stem(token_bkte.flatten(2)) + self.position()
        x_bkd = x_bkd * (1 + torch.tanh(scale_bd)) + shift_bd
        # A view in channels-last layout, the fastest for convolutions on a CPU
        x_bchw = x_bkd.view(len(x_bkd), *GRID_HW, -1).permute(0, 3, 1, 2)
        y_bkd = self.norm(self.blocks(x_bchw).permute(0, 2, 3, 1).flatten(1, 2))
        sign_bc = magnitude_b = done_b = None
        if self.reward_done is not None:
            sign_bc, magnitude_b, done_b = self.reward_done(y_bkd.mean(dim=1))
        return Prediction(
            logits_bkv=self.tokens(y_bkd),
            last_bk=history_btk[:, -1],
            copy_logit_bk=None if self.copy is None else self.copy(y_bkd).squeeze(-1),
            reward_sign_logits_bc=sign_bc,
            reward_magnitude_b=magnitude_b,
            done_logit_b=done_b,
        )
