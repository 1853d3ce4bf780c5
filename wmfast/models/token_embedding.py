"""The token embedding of every network."""

from __future__ import annotations

from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """``nn.Embedding`` whose gradient is added up the fast way on a CPU, with equal values.

    43,008 tokens of width 8 on two cores: 0.6 ms in place of 2.3 ms. On a GPU index_select's
    backward adds in no fixed order, so nn.Embedding's own (which sorts) stays there.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 (...) to (..., D)."""
        if tokens.device.type != "cpu":
            return super().forward(tokens)
        rows = self.weight.index_select(0, tokens.reshape(-1))
        return rows.view(*tokens.shape, self.embedding_dim)
