"""The seeds' world model: history, action and query positions through one transformer encoder.

Sequence: the embedded history (4 * 336 positions), one action, one query for each cell of the next
frame (336): 1681. With tubelets the history is shorter and a query answers for all h * w tokens of
its merged cell; (4, 2, 2) gives 88 + 1 + 88 = 177.

Dimension legend in ``wmfast.types``; p merged cells of the grid (336, or 88 for 2 x 2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmfast.config import WorldModelConfig
from wmfast.models.events import Events, RewardDoneHeads
from wmfast.models.prediction import (
    COPY_LOGIT_INIT,
    Prediction,
    WorldModel,
)
from wmfast.models.transformer import INIT_STD, Encoder, TubeletEmbedding, initialise
from wmfast.types import GRID_HW, HISTORY

FILM_STRENGTH = 0.2  # the action changes a query's content by at most this share


class TransformerWorldModel(WorldModel):
    """World model v3 (reward and done heads) and v2.1 (tokens only) of the seeds."""

    def __init__(self, config: WorldModelConfig, *, vocab_size: int, num_actions: int) -> None:
        super().__init__()
        d = config.d_model
        self.done_weight = config.done_weight
        self.embedding = TubeletEmbedding(vocab_size, d, config.tubelet, HISTORY)
        cells, (_, height, width) = self.embedding.cells, config.tubelet
        self.action = nn.Embedding(num_actions, d)
        self.action_scale = nn.Parameter(torch.ones(()))
        self.action_bias_apd = nn.Parameter(torch.randn(num_actions, cells, d) * INIT_STD)
        self.target_time_d = nn.Parameter(torch.randn(d) * INIT_STD)
        self.encoder = Encoder(d, config.heads, config.layers, config.dropout)
        self.norm = nn.LayerNorm(d)
        self.tokens = nn.Linear(d, height * width * vocab_size)
        self.copy = nn.Linear(d, height * width) if config.copy_gate else None
        self.reward_done: RewardDoneHeads | None = None
        for part in (self.action, self.tokens, self.copy):
            if part is not None:
                initialise(part)
        if self.copy is not None:
            nn.init.constant_(self.copy.bias, COPY_LOGIT_INIT)
        if config.reward_done_heads:
            self.reward_done = RewardDoneHeads(d, config.done_weight, lives=config.life_head)

    @property
    def length(self) -> int:
        """Positions of the sequence: history, action and queries."""
        return self.embedding.length + 1 + self.embedding.cells

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        """Predict the frame after ``history_btk`` (int64 (B, 4, 336)) and ``action_b`` (B,)."""
        action_bd = self.action_scale * self.action(action_b)
        query_bpd = self._queries(action_b, action_bd)
        x_bld = torch.cat([self.embedding(history_btk), action_bd[:, None], query_bpd], dim=1)
        y_bpd = self.norm(self.encoder(x_bld, last=self.embedding.cells))
        said: Events | tuple[None, ...] = (None,) * 4
        if self.reward_done is not None:
            said = self.reward_done(y_bpd.mean(dim=1))
        copy_bk = None
        if self.copy is not None:
            copy_bk = self._cells_to_tokens(self.copy(y_bpd)).squeeze(-1)
        logits_bkv = self._cells_to_tokens(self.tokens(y_bpd))
        return Prediction(logits_bkv, history_btk[:, -1], copy_bk, *said)

    def _queries(self, action_b: Tensor, action_bd: Tensor) -> Tensor:
        """Zero content + spatial + target time + the action's map + the action, then FiLM."""
        position_pd = self.embedding.spatial() + self.target_time_d
        query_bpd: Tensor = position_pd + self.action_bias_apd[action_b] + action_bd[:, None]
        return query_bpd * (1 + FILM_STRENGTH * torch.tanh(action_bd[:, None]))

    def _cells_to_tokens(self, x_bpf: Tensor) -> Tensor:
        """(B, cells, h * w * F) to (B, 336, F) in the grid's row-major order, padding cut off."""
        _, height, width = self.embedding.tubelet
        rows, columns = self.embedding.grid_hw
        x = x_bpf.reshape(len(x_bpf), rows, columns, height, width, -1).transpose(2, 3)
        x = x.reshape(len(x_bpf), rows * height, columns * width, -1)
        return x[:, : GRID_HW[0], : GRID_HW[1]].flatten(1, 2)
