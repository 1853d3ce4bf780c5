"""Double DQN with a soft target network; targets, losses by value head, resets, schedules."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmfast.config import AgentConfig
from wmfast.models.q_network import build_q_network
from wmfast.models.token_augment import TokenAugment
from wmfast.types import Metrics, Transitions


class DoubleDQN(nn.Module):
    """Online and target Q-network; acts, and turns transitions into a loss.

    Double Q-learning (van Hasselt et al. 2016): the online network picks the next action, the
    target network values it. The target follows by ``tau`` a step (Lillicrap et al. 2016).

    Args:
        config: what it learns and how.
        vocab_size, num_actions: of the tokens and the game.
        seed: of the augmentation and of what resets draw.
    """

    def __init__(
        self, config: AgentConfig, *, vocab_size: int, num_actions: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.tau = config.tau
        self.num_actions = num_actions
        self._config, self._vocab_size, self._seed = config, vocab_size, seed
        self.online = build_q_network(config, vocab_size=vocab_size, num_actions=num_actions)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.augment = None
        if config.shift or config.token_dropout:
            self.augment = TokenAugment(
                shift=config.shift,
                dropout=config.token_dropout,
                mask_token=vocab_size,
                seed=seed,
            )

    @torch.no_grad()
    def act(self, history_btk: Tensor) -> Tensor:
        """Greedy actions int64 (B,) for token histories int64 (B, 4, 336)."""
        player = self.target if self._config.act_with_target else self.online
        action_b: Tensor = player(history_btk).argmax(dim=1)
        return action_b

    def targets(self, batch: Transitions) -> Tensor:
        """r + discount * Q_target(s', argmax_a Q_online(s', a)), float32 (B,), without gradient."""
        with torch.no_grad():
            best_b = self.online(batch.next_state_btk).argmax(dim=1)
            next_ba = self.target(batch.next_state_btk)
            next_b = next_ba.gather(1, best_b[:, None]).squeeze(1)
            target_b: Tensor = batch.reward_b + batch.discount_b * next_b
        return target_b

    def target_bins(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """The same over the bins of ``c51`` and ``hl_gauss``, without gradient.

        Returns:
            float32 (B, Z), what the value's distribution should be, and float32 (B,), the expected
            values that it is made of (within the bins' range or beyond).
        """
        support = self.online.head.support
        assert support is not None
        if self._config.value_head == "hl_gauss":
            target_b = self.targets(batch)
            return support.gaussian(target_b), target_b
        with torch.no_grad():
            best_b = self.online(batch.next_state_btk).argmax(dim=1)
            next_baz = self.target.logits(batch.next_state_btk)
            next_bz = _of_actions(next_baz, best_b).softmax(-1)
            reward_b1, discount_b1 = batch.reward_b[:, None], batch.discount_b[:, None]
            moved_bz = reward_b1 + discount_b1 * support.atom_z
            return support.project(moved_bz, next_bz), (moved_bz * next_bz).sum(-1)

    def loss(self, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Weighted loss of the TD error; ``metrics["priority"]`` (B,) is that error's size.

        Huber for a scalar head, cross-entropy for bins. Priorities are of the expected values for
        every head, so that they mean the same: a cross-entropy never falls below the entropy of its
        target, which would flatten them, and its excess grows with the error's square.
        """
        if self.augment is not None:
            batch = batch._replace(
                state_btk=self.augment(batch.state_btk),
                next_state_btk=self.augment(batch.next_state_btk),
            )
        metrics: Metrics = {}
        support = self.online.head.support if self._config.value_head != "scalar" else None
        if support is None:
            target_b = self.targets(batch)
            q_b = self.online(batch.state_btk).gather(1, batch.action_b[:, None]).squeeze(1)
            loss_b = F.smooth_l1_loss(q_b, target_b, reduction="none")
        else:
            target_bz, target_b = self.target_bins(batch)
            logits_bz = _of_actions(self.online.logits(batch.state_btk), batch.action_b)
            loss_b = -(target_bz * logits_bz.log_softmax(-1)).sum(-1)
            q_b = support.expected(logits_bz.detach())
            metrics["clipped_targets"] = (target_b.abs() > support.limit).float().mean()
            # Priorities count what the bins can hold, or a row beyond them would never lose its.
            target_b = target_b.clamp(-support.limit, support.limit)
        loss = (batch.weight_b * loss_b).mean()
        error_b = (q_b - target_b).detach().abs()
        metrics |= {"priority": error_b, "td_error": error_b.mean(), "q": q_b.detach().mean()}
        return loss, metrics

    @torch.no_grad()
    def update_target(self) -> None:
        """target <- target + tau * (online - target), for every parameter."""
        torch._foreach_lerp_(
            list(self.target.parameters()), list(self.online.parameters()), self.tau
        )

    @torch.no_grad()
    def reset(self, number: int) -> None:
        """Draw the head anew, shrink the rest and perturb it by a fresh draw, in both networks.

        What a network has overfitted it unlearns, what it knows of the game lies in the replay
        (Nikishin et al. 2022; shrink and perturb: Ash & Adams 2020; both as in BBF, Schwarzer et
        al. 2023). Written in place: a captured graph goes on with it. ``seed`` and ``number``
        decide what is drawn; torch's random state on the CPU is as before.
        """
        words = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(words[0] >> np.uint64(1)))
            fresh = build_q_network(
                self._config, vocab_size=self._vocab_size, num_actions=self.num_actions
            )
        for network in (self.online, self.target):
            pairs = zip(network.named_parameters(), fresh.parameters(), strict=True)
            for (name, parameter), drawn in pairs:
                keep = 0.0 if name.startswith("head.") else self._config.reset_keep
                parameter.mul_(keep).add_(drawn.to(parameter.device), alpha=1 - keep)


def _of_actions(logits_baz: Tensor, action_b: Tensor) -> Tensor:
    """The logits (B, Z) of one action each."""
    return logits_baz[torch.arange(len(action_b), device=action_b.device), action_b]


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


def returns(since_reset: int, config: AgentConfig) -> tuple[int, float]:
    """(n_step, gamma) of an agent update, that many updates after the start or the last reset.

    From ``n_step_start`` and ``gamma_start`` to the final ones exponentially: n itself, and of
    gamma the distance from 1, so that the horizon grows evenly in octaves (BBF).
    """
    progress = min(1.0, since_reset / config.anneal_updates)
    first, last = config.n_step_start or config.n_step, config.n_step
    n_step = round(first * (last / first) ** progress)
    if not config.gamma_start or progress == 1:
        return n_step, config.gamma
    near, far = 1 - config.gamma_start, 1 - config.gamma
    return n_step, 1 - near * (far / near) ** progress


def reset_due(update: int, env_step: int, config: AgentConfig, *, total: int) -> bool:
    """Whether a reset comes before this update: each ``reset_every`` of them, not late in a run."""
    if not config.reset_every or update == 0 or update % config.reset_every:
        return False
    return env_step < config.reset_until * total
