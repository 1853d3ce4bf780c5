"""The agent's part of a configuration (see ``config.py``)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AgentConfig:
    """Dueling double DQN with prioritized replay over token histories."""

    kind: Literal["transformer", "conv"] = "transformer"
    """transformer: over tubelets of tokens; conv: over the token grid."""
    d_model: int = 256
    """Transformer width; conv: channels of the convolutions."""
    heads: int = 4
    """Attention heads (transformer)."""
    layers: int = 4
    """Transformer layers."""
    tubelet: tuple[int, int, int] = (1, 1, 1)
    """Tokens (time, height, width) merged into one position (transformer)."""
    embed_dim: int = 8
    """Width of a token's embedding (conv)."""
    gamma: float = 0.99
    """Discount of a step."""
    n_step: int = 1
    """Steps of the bootstrapped return."""
    gamma_start: float = 0.0
    """Discount at the start and after a reset, on its way to `gamma`; 0: always `gamma`."""
    n_step_start: int = 0
    """Steps of the return at the start and after a reset; 0: always `n_step`."""
    anneal_updates: int = 10_000
    """Updates on the way from `gamma_start` and `n_step_start`, exponentially."""
    tau: float = 0.001
    """Soft update of the target network."""
    alpha: float = 0.6
    """Exponent of the priorities (Schaul et al. 2016)."""
    beta: float = 0.4
    """Importance-sampling exponent at the start; it rises linearly to 1."""
    epsilon_end: float = 0.01
    """Exploration at the end of the schedule."""
    epsilon_steps: int = 1_000_000
    """Env steps from epsilon 1 to `epsilon_end`; at most `epsilon_share` of the run."""
    epsilon_share: float = 1.0
    """Largest share of the run that the epsilon schedule may take."""
    batch_size: int = 32
    """Transitions a training step."""
    learning_rate: float = 1e-4
    """AdamW learning rate."""
    adam_epsilon: float = 1e-8
    """AdamW epsilon."""
    weight_decay: float = 0.0
    """AdamW weight decay of matrices; biases and gains have none."""
    grad_clip: float = 10.0
    """Largest norm of the gradient."""
    every: int = 4
    """Env steps for `updates` training steps."""
    updates: int = 1
    """Training steps each `every` env steps."""
    value_head: Literal["scalar", "c51", "hl_gauss"] = "scalar"
    """scalar: Huber loss; c51, hl_gauss: cross-entropy over bins of the value."""
    bins: int = 51
    """Bins of c51 and hl_gauss."""
    value_range: float = 10.0
    """Largest value of the bins, lowest is its negative; 0: what no return exceeds, 1/(1-gamma)."""
    act_with_target: bool = False
    """Play by the target network, an average of the online one."""
    shift: int = 0
    """Histories are moved by up to so many cells when they are learned from."""
    token_dropout: float = 0.0
    """Share of their tokens that is masked."""
    reset_every: int = 0
    """Training steps between resets of head and optimiser, the rest half way; 0: no resets."""
    reset_until: float = 0.5
    """Share of the run's env steps after which nothing is reset any more."""
    reset_keep: float = 0.5
    """Share of its old weights that the rest keeps at a reset; the other is a fresh draw."""
    curiosity: float = 0.0
    """Mean bonus for what the world model did not foresee; 0: off (the seed: 0.1)."""

    @property
    def longest_return(self) -> int:
        """Steps of the longest return that is ever drawn."""
        return max(self.n_step, self.n_step_start)

    @property
    def value_limit(self) -> float:
        """Largest value of the bins."""
        if self.value_range:
            return self.value_range
        return 1 / (1 - self.gamma) if self.gamma < 1 else math.inf
