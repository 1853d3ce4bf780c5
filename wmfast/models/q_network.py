"""Q-networks over 4-frame token histories, with a dueling head (Wang et al. 2016).

Dimension legend in ``wmfast.types``: history_btk int64 (B, 4, 336) -> q_ba float32 (B, A).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmfast.config import AgentConfig
from wmfast.models.token_embedding import TokenEmbedding
from wmfast.models.transformer import Encoder, TubeletEmbedding
from wmfast.models.value_support import Support
from wmfast.types import GRID_HW, HISTORY


class DuelingHead(nn.Module):
    """Q = V + A - mean(A): two hidden layers side by side, one for each stream.

    With a support of Z values the same holds for each value's logit (Hessel et al. 2018).
    """

    def __init__(
        self, features: int, hidden: int, num_actions: int, support: Support | None
    ) -> None:
        super().__init__()
        self.support = support
        bins = 1 if support is None else len(support.atom_z)
        self.hidden = nn.Linear(features, 2 * hidden)  # both streams in one product
        self.value = nn.Linear(hidden, bins)
        self.advantage = nn.Linear(hidden, num_actions * bins)

    def forward(self, x_bd: Tensor) -> Tensor:
        """Features (B, D) to action values (B, A)."""
        if self.support is not None:
            return self.support.expected(self.logits(x_bd))
        value_bd, advantage_bd = F.relu(self.hidden(x_bd)).chunk(2, dim=-1)
        value_b1, advantage_ba = self.value(value_bd), self.advantage(advantage_bd)
        q_ba: Tensor = value_b1 + advantage_ba - advantage_ba.mean(dim=-1, keepdim=True)
        return q_ba.float()

    def logits(self, x_bd: Tensor) -> Tensor:
        """Features (B, D) to the logits (B, A, Z) of each action's distribution."""
        value_bd, advantage_bd = F.relu(self.hidden(x_bd)).chunk(2, dim=-1)
        value_b1z = self.value(value_bd)[:, None]
        advantage_baz = self.advantage(advantage_bd).unflatten(1, (-1, value_b1z.shape[-1]))
        logits_baz: Tensor = value_b1z + advantage_baz - advantage_baz.mean(dim=1, keepdim=True)
        return logits_baz.float()


class QNetwork(nn.Module):
    """Features of a history under a dueling head; ``features`` is what kinds differ in."""

    head: DuelingHead

    def features(self, history_btk: Tensor) -> Tensor:
        """Token histories int64 (B, 4, 336) to (B, D)."""
        raise NotImplementedError

    def forward(self, history_btk: Tensor) -> Tensor:
        """Token histories int64 (B, 4, 336) to action values float32 (B, A)."""
        q_ba: Tensor = self.head(self.features(history_btk))
        return q_ba

    def logits(self, history_btk: Tensor) -> Tensor:
        """Token histories int64 (B, 4, 336) to value logits float32 (B, A, Z)."""
        return self.head.logits(self.features(history_btk))


class TransformerQNetwork(QNetwork):
    """Token (or tubelet) embedding + learned positions, transformer encoder, mean, dueling head."""

    def __init__(self, config: AgentConfig, *, vocab_size: int, num_actions: int) -> None:
        super().__init__()
        d = config.d_model
        self.embedding = TubeletEmbedding(vocab_size, d, config.tubelet, history=HISTORY)
        self.encoder = Encoder(d, config.heads, config.layers, dropout=0.0)
        self.head = DuelingHead(d, d, num_actions, build_support(config))

    def features(self, history_btk: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        x_bld: Tensor = self.encoder(self.embedding(history_btk))
        return x_bld.mean(dim=1)


class ConvQNetwork(QNetwork):
    """Convolutions over the 21 x 16 token grid, the four frames' embeddings stacked in channels.

    The frames are stacked like the pixels of Mnih et al. (2015), so the first layer sees motion.
    """

    def __init__(self, config: AgentConfig, *, vocab_size: int, num_actions: int) -> None:
        super().__init__()
        c, (h, w) = config.d_model, GRID_HW
        self.embedding = TokenEmbedding(vocab_size, config.embed_dim)
        self.conv = nn.Sequential(
            nn.Conv2d(HISTORY * config.embed_dim, c, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(c, c, kernel_size=3, padding=1),
            nn.ReLU(),
        )
        self.head = DuelingHead(c * (h // 2) * (w // 2), 128, num_actions, build_support(config))
        for module in self.conv:  # the fastest layout on a CPU
            if isinstance(module, nn.Conv2d):
                weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
                module.weight = nn.Parameter(weight)

    def features(self, history_btk: Tensor) -> Tensor:
        """What the convolutions make of the grid, (B, C * 10 * 8)."""
        x_bkte = self.embedding(history_btk.transpose(1, 2))
        # (B, K, T, E) is (B, h, w, T * E): channels last, without a copy
        x_bchw = x_bkte.view(len(x_bkte), *GRID_HW, -1).permute(0, 3, 1, 2)
        x_bd: Tensor = self.conv(x_bchw).flatten(1)
        return x_bd


def build_support(config: AgentConfig) -> Support | None:
    """What the value head's distributions are over; None for a scalar head."""
    if config.value_head == "scalar":
        return None
    return Support(config.bins, config.value_limit, at_edges=config.value_head == "c51")


def build_q_network(config: AgentConfig, *, vocab_size: int, num_actions: int) -> QNetwork:
    """The Q-network that ``config.kind`` names."""
    network = {"transformer": TransformerQNetwork, "conv": ConvQNetwork}[config.kind]
    # The mask of token dropout has an embedding of its own.
    tokens = vocab_size + (config.token_dropout > 0)
    return network(config, vocab_size=tokens, num_actions=num_actions)
