"""A small convolutional world model over the 21 x 16 token grid, all cells in parallel.

An Atari sprite moves about one cell a step, so the next token of a cell depends on its
neighbourhood in the last four frames; a few 3 x 3 convolutions see that at a hundredth of a
transformer's cost.

Half the cost of an update would be the 512-way head over cells that do not change. The loss
therefore looks at a stratified sample of cells: the changed ones, and as many others as fit,
weighted so that the mean over the sample estimates the mean over all cells without bias.

Dimension legend in ``wmfast.types``; m chosen cells of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmfast.config import WorldModelConfig
from wmfast.models.events import Events, RewardDoneHeads
from wmfast.models.prediction import (
    COPY_LOGIT_INIT,
    Prediction,
    Target,
    WorldModel,
    token_loss,
)
from wmfast.models.token_embedding import TokenEmbedding
from wmfast.models.transformer import SpatialPosition
from wmfast.types import GRID_HW, HISTORY, TOKENS_PER_FRAME, Metrics

LOSS_CELLS = TOKENS_PER_FRAME // 7  # cells a frame in the loss; about 13 of 336 change in MsPacman
ROLL_CELLS = 2 * LOSS_CELLS  # cells a frame whose token is looked up as a rollout goes on


class ResidualBlock(nn.Module):
    """x + W gelu(conv3x3(gelu(x))) with W a 1 x 1 convolution, zero at the start."""

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
        self.token = TokenEmbedding(vocab_size, embed_dim)
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
            self.event = nn.Linear(c, c)
            self.reward_done = RewardDoneHeads(2 * c, config.done_weight, lives=config.life_head)

    def forward(
        self, history_btk: Tensor, action_b: Tensor, cell_m: Tensor | None = None
    ) -> Prediction:
        """Predict the frame after ``history_btk`` (int64 (B, 4, 336)) and ``action_b`` (B,).

        With ``cell_m`` (int64, indices into the B * 336 cells) only those tokens are predicted: the
        token fields of the answer have shape (M, ...).
        """
        return self._predict(self._features(history_btk, action_b), history_btk[:, -1], cell_m)

    def _predict(
        self, y_bkd: Tensor, last_bk: Tensor, cell_m: Tensor | None = None, *, events: bool = True
    ) -> Prediction:
        said: Events | tuple[None, ...] = (None,) * 4
        if self.reward_done is not None and events:
            said = self.reward_done(self._pool(y_bkd))
        if cell_m is not None:
            y_bkd, last_bk = y_bkd.flatten(0, 1)[cell_m], last_bk.flatten()[cell_m]
        copy_bk = None if self.copy is None else self.copy(y_bkd).squeeze(-1)
        return Prediction(self.tokens(y_bkd), last_bk, copy_bk, *said)

    def _features(self, history_btk: Tensor, action_b: Tensor) -> Tensor:
        token_bkte = self.token(history_btk.transpose(1, 2))
        scale_b1d, shift_b1d = self.action_film(action_b)[:, None].chunk(2, dim=-1)
        x_bkd = self.stem(token_bkte.flatten(2)) + self.position()
        x_bkd = x_bkd * (1 + torch.tanh(scale_b1d)) + shift_b1d
        # A view in channels-last layout, the fastest for convolutions on a CPU
        x_bchw = x_bkd.view(len(x_bkd), *GRID_HW, -1).permute(0, 3, 1, 2)
        y_bkd: Tensor = self.norm(self.blocks(x_bchw).permute(0, 2, 3, 1).flatten(1, 2))
        return y_bkd

    def _pool(self, y_bkd: Tensor) -> Tensor:
        """Where something happens, and how much of it: maximum and mean over the cells, (B, 2 C).

        Reward and end read the features but don't shape them: their rare, large errors drown the
        tokens' gradient (MsPacman, 200 updates: 0.51 of the changed tokens right, else 0.31).
        """
        event_bkd = F.gelu(self.event(y_bkd.detach()))
        return torch.cat([event_bkd.amax(dim=1), event_bkd.mean(dim=1)], dim=-1)

    def step_loss(
        self, history_btk: Tensor, action_b: Tensor, target: Target, *, rolls_on: bool
    ) -> tuple[Tensor, Metrics, Prediction, Tensor | None]:
        """As ``WorldModel.step_loss``, its token figures estimated from a sample of the cells."""
        y_bkd = self._features(history_btk, action_b)
        last_bk = history_btk[:, -1]
        count = len(last_bk) * LOSS_CELLS
        cells = sample_cells(target.token_bk != last_bk, target.count_bk(), count)
        prediction = self._predict(y_bkd, last_bk, cells[0])
        loss, metrics = token_loss(prediction, target, cells)
        with torch.no_grad():
            token_bk = self._likeliest(y_bkd, last_bk) if rolls_on else None
        return loss, metrics, prediction, token_bk

    def _likeliest(self, y_bkd: Tensor, last_bk: Tensor) -> Tensor:
        """``Prediction.tokens()`` of all cells, the head run on the cells least sure of a copy.

        A cell that copies with probability over a half copies. Where more than `ROLL_CELLS` of a
        frame don't, the surest of these copy too.
        """
        if self.copy is None:
            return self._predict(y_bkd, last_bk).tokens()
        y_md, last_m = y_bkd.flatten(0, 1), last_bk.flatten()
        copy_m = self.copy(y_md).squeeze(-1)
        cell_m = copy_m.topk(len(last_bk) * ROLL_CELLS, largest=False, sorted=False).indices
        token_m = self._predict(y_bkd, last_bk, cell_m, events=False).tokens()
        return last_m.scatter(0, cell_m, token_m).view_as(last_bk)


def sample_cells(changed_bk: Tensor, weight_bk: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` cells without replacement, changed ones first, the others evenly.

    Each stratum (changed, static) is weighted by its size over the number drawn from it; cells with
    ``weight_bk`` 0 come last and keep weight 0. Where more cells change than fit, an even draw of
    those is all there is.

    Returns:
        Indices into the flattened cells, int64 (count,), and their weights, float32 (count,).
    """
    counts_k, changed_k = weight_bk.flatten() > 0, changed_bk.flatten()
    strata = torch.stack([counts_k & changed_k, counts_k & ~changed_k])  # (2, B * K)
    order_k = torch.rand(changed_k.shape, device=changed_k.device) + strata[0] + counts_k
    cell_m = order_k.topk(count, sorted=False).indices
    drawn = strata[:, cell_m]  # (2, count)
    share = strata.sum(dim=1) / drawn.sum(dim=1).clamp(min=1)
    return cell_m, (drawn * share[:, None]).sum(dim=0)
