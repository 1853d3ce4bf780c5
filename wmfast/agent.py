"""Double DQN with a soft target network and importance-weighted Huber loss."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmfast.config import AgentConfig
from wmfast.models.q_network import build_q_network
from wmfast.types import Metrics, Transitions


class DoubleDQN(nn.Module):
    """Online and target Q-network; acts, and turns transitions into a loss.

    Double Q-learning (van Hasselt et al. 2016): the online network picks the next action, the
    target network values it. The target follows by ``tau`` a step (Lillicrap et al. 2016).
    """

    def __init__(self, config: AgentConfig, *, vocab_size: int, num_actions: int) -> None:
        super().__init__()
        self.tau = config.tau
        self.num_actions = num_actions
        self.online = build_q_network(config, vocab_size=vocab_size, num_actions=num_actions)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @torch.no_grad()
    def act(self, history_btk: Tensor) -> Tensor:
        """Greedy actions int64 (B,) for token histories int64 (B, 4, 336)."""
        action_b: Tensor = self.online(history_btk).argmax(dim=1)
        return action_b

    def targets(self, batch: Transitions) -> Tensor:
        """r + discount * Q_target(s', argmax_a Q_online(s', a)), float32 (B,), without gradient."""
        with torch.no_grad():
            best_b = self.online(batch.next_state_btk).argmax(dim=1)
            next_ba = self.target(batch.next_state_btk)
            next_b = next_ba.gather(1, best_b[:, None]).squeeze(1)
            target_b: Tensor = batch.reward_b + batch.discount_b * next_b
        return target_b

    def loss(self, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Weighted Huber loss of the TD error; ``metrics["priority"]`` (B,) is its size."""
        target_b = self.targets(batch)
        q_b = self.online(batch.state_btk).gather(1, batch.action_b[:, None]).squeeze(1)
        huber_b = F.smooth_l1_loss(q_b, target_b, reduction="none")
        loss = (batch.weight_b * huber_b).mean()
        error_b = (q_b - target_b).detach().abs()
        return loss, {"priority": error_b, "td_error": error_b.mean(), "q": q_b.detach().mean()}

    @torch.no_grad()
    def update_target(self) -> None:
        """target <- target + tau * (online - target), for every parameter."""
        torch._foreach_lerp_(
            list(self.target.parameters()), list(self.online.parameters()), self.tau
        )


def epsilon(env_step: int, config: AgentConfig, *, warmup: int, total: int) -> float:
    """Linear exploration schedule: 1 until the warm-up ends, then down to ``epsilon_end``.

    ``epsilon_steps`` is cut to ``epsilon_share`` of a shorter run: a schedule of a million steps
    would leave a run of 100k steps random.
    """
    length = min(config.epsilon_steps, int(config.epsilon_share * (total - warmup)))
    progress = min(1.0, max(0.0, (env_step - warmup) / max(1, length)))
    return 1.0 + progress * (config.epsilon_end - 1.0)


def importance_exponent(env_step: int, config: AgentConfig, *, warmup: int, total: int) -> float:
    """Beta of prioritized replay: linear from ``config.beta`` to 1 over the run."""
    progress = min(1.0, max(0.0, (env_step - warmup) / max(1, total - warmup)))
    return config.beta + progress * (1.0 - config.beta)
