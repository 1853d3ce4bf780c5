"""Transformer blocks shared by the world model and the Q-network.

Dimension legend: b batch, t frames in a history, k tokens a frame, l sequence positions, d width,
n heads; g groups of frames (t / tubelet time), p merged cells (grid / tubelet height and width),
e width of one token inside a tubelet.

Sequence lengths for a history of four 21 x 16 frames: tubelet (1, 1, 1) gives 4 * 336 = 1344
positions, (4, 2, 2) gives 11 * 8 = 88 (the grid padded to 22 x 16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmfast.models.token_embedding import TokenEmbedding
from wmfast.types import GRID_HW, HISTORY

INIT_STD = 0.02  # of every embedding and weight matrix, as in GPT-2 and ViT


def initialise(module: nn.Module) -> None:
    """Normal(0, 0.02) weights, zero biases; for ``module.apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Multi-head self-attention with biases, as in Vaswani et al. 2017."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or d_model % heads:
            raise ValueError(f"heads = {heads}: must divide d_model = {d_model}")
        self.heads = heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x_bld: Tensor, last: int | None = None) -> Tensor:
        """Attend to all positions from all of them, or from the ``last`` ones only."""
        rows_bld = x_bld if last is None else x_bld[:, -last:]
        q_bnld = self._split(self.query(rows_bld))
        k_bld, v_bld = self.key_value(x_bld).chunk(2, dim=-1)
        o_bnld = F.scaled_dot_product_attention(q_bnld, self._split(k_bld), self._split(v_bld))
        out_bld: Tensor = self.out(o_bnld.transpose(1, 2).flatten(2))
        return out_bld

    def _split(self, x_bld: Tensor) -> Tensor:
        batch, length, width = x_bld.shape
        return x_bld.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Pre-LN encoder block: attention, then a GELU network of width 4 d.

    Dropout acts on both residual branches and inside the network, not on the attention
    probabilities: a fused attention never has them in memory.
    """

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, heads)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 4 * d_model),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * d_model, d_model),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_bld: Tensor, last: int | None = None) -> Tensor:
        """(B, L, D) to (B, L, D), or to (B, last, D): only the ``last`` positions are computed."""
        rows_bld: Tensor = x_bld if last is None else x_bld[:, -last:]
        rows_bld = rows_bld + self.dropout(self.attention(self.attention_norm(x_bld), last))
        branch_bld: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(rows_bld)))
        return rows_bld + branch_bld


class Encoder(nn.Module):
    """Pre-LN transformer encoder with a final norm; no mask, no positions of its own."""

    def __init__(self, d_model: int, heads: int, layers: int, dropout: float = 0.1) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers = {layers}: must be at least 1")
        self.blocks = nn.ModuleList(Block(d_model, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d_model)
        self.apply(initialise)

    def forward(self, x_bld: Tensor, last: int | None = None) -> Tensor:
        """Encode float (B, L, D) to (B, L, D).

        With ``last`` the answer is (B, last, D), equal to the last rows of the full answer: the
        last block computes those rows only, since nothing reads the others.
        """
        for block in self.blocks[:-1]:
            x_bld = block(x_bld)
        out_bld: Tensor = self.norm(self.blocks[-1](x_bld, last))
        return out_bld


class SpatialPosition(nn.Module):
    """Learned position of a cell: row (height, d/2) and column (width, d/2) side by side."""

    def __init__(self, d_model: int, grid_hw: tuple[int, int] = GRID_HW) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"d_model = {d_model}: must be even (half for rows, half for columns)")
        height, width = grid_hw
        self.row = nn.Parameter(torch.randn(height, d_model // 2) * INIT_STD)
        self.column = nn.Parameter(torch.randn(width, d_model // 2) * INIT_STD)

    def forward(self) -> Tensor:
        """All positions, (height * width, D), row-major."""
        height, width = self.row.shape[0], self.column.shape[0]
        row_hwd = self.row[:, None].expand(-1, width, -1)
        column_hwd = self.column[None].expand(height, -1, -1)
        return torch.cat([row_hwd, column_hwd], dim=-1).flatten(0, 1)


class TubeletEmbedding(nn.Module):
    """Token histories to embedded positions: content + spatial + temporal position.

    A tubelet of (t, h, w) tokens becomes one position: its tokens are embedded (width d/4), laid
    side by side and projected to d. (1, 1, 1) needs no projection: a token's embedding has width d
    and is the content. A grid that h or w do not divide is padded with zeros below and right.

    Attributes:
        grid_hw: the merged grid, e.g. (11, 8) for h = w = 2.
        groups: positions in time, history / t.
        cells: positions in space, the product of ``grid_hw``.
        length: positions in all, groups * cells.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        tubelet: tuple[int, int, int] = (1, 1, 1),
        history: int = HISTORY,
    ) -> None:
        super().__init__()
        time, height, width = tubelet
        if min(tubelet) < 1 or history % time:
            raise ValueError(f"tubelet = {tubelet}: must be positive, its time divide {history}")
        self.tubelet = tubelet
        self.grid_hw = (-(-GRID_HW[0] // height), -(-GRID_HW[1] // width))
        self.groups = history // time
        self.cells = self.grid_hw[0] * self.grid_hw[1]
        self.length = self.groups * self.cells
        size = time * height * width
        token_width = d_model if size == 1 else max(1, d_model // 4)
        self.token = TokenEmbedding(vocab_size, token_width)
        self.merge = nn.Identity() if size == 1 else nn.Linear(size * token_width, d_model)
        self.apply(initialise)
        self.spatial = SpatialPosition(d_model, self.grid_hw)
        self.temporal_gd = nn.Parameter(torch.randn(self.groups, d_model) * INIT_STD)

    def forward(self, history_btk: Tensor) -> Tensor:
        """Embed int64 tokens (B, T, 336), oldest frame first, as (B, length, D), time-major."""
        content_bgpd: Tensor = self.merge(self._tubelets(self.token(history_btk)))
        position_gpd: Tensor = self.temporal_gd[:, None] + self.spatial()
        return (content_bgpd + position_gpd).flatten(1, 2)

    def _tubelets(self, x_btke: Tensor) -> Tensor:
        """Lay the tokens of each tubelet side by side: (B, groups, cells, t * h * w * E)."""
        if self.tubelet == (1, 1, 1):
            return x_btke
        time, height, width = self.tubelet
        rows, columns = self.grid_hw
        batch, frames, _, token_width = x_btke.shape
        x = x_btke.view(batch, frames, *GRID_HW, token_width)
        bottom, right = rows * height - GRID_HW[0], columns * width - GRID_HW[1]
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
        x = x.view(batch, self.groups, time, rows, height, columns, width, token_width)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(2, 3)
