"""Trust-weighted Dyna: a small share of the agent's batches is imagined.

From time to time real histories are drawn, the world model is asked how well it explains what
followed each of them, and from those that it understands it dreams a few steps of the agent's
policy. Every imagined step becomes a transition of the agent's kind. (Dyna: Sutton 1991; the trust
is the seed's.)

    trust = exp(-scale * loss)     loss: nats a token of the world model on the real next frame
    below the threshold: dropped; each imagined step that a transition rests on: times the decay

Rewards are expected signs, P(+) - P(-), and ends are probabilities: a transition's return counts
each step by the chance that it is not over, with the game or with a life, as real returns are. A
head that seldom dares to say "reward" would teach the agent that nothing pays; its probabilities
are right on average.

Dimension legend in ``wmfast.types``; p rows of the pool.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wmfast.config import DynaConfig
from wmfast.imagine import Policy, imagined_step
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.types import Metrics, Segments, Transitions


class DreamedTransitions(nn.Module):
    """A pool of imagined transitions; its buffers travel with checkpoints.

    Args:
        config: how many, how far, how trusted.
        tokens: K.
        history: T.
    """

    count: Tensor  # int64 () transitions at hand
    state: Tensor  # int32 (P, T, K)
    next_state: Tensor  # int32 (P, T, K)
    action: Tensor  # int64 (P,)
    reward: Tensor  # float32 (P,)
    discount: Tensor  # float32 (P,)
    trust: Tensor  # float32 (P,)

    def __init__(self, config: DynaConfig, *, tokens: int, history: int) -> None:
        super().__init__()
        self._config = config
        rows = config.seeds * config.horizon if config.share else 0
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for name in ("state", "next_state"):
            self.register_buffer(name, torch.zeros(rows, history, tokens, dtype=torch.int32))
        self.register_buffer("action", torch.zeros(rows, dtype=torch.int64))
        for name in ("reward", "discount", "trust"):
            self.register_buffer(name, torch.zeros(rows))

    def __len__(self) -> int:
        """Imagined transitions at hand. Waits for the device."""
        return int(self.count)

    def share_of(self, batch_size: int) -> int:
        """How many rows of a batch are imagined; 0 while the pool is empty."""
        return round(self._config.share * batch_size) if len(self) else 0

    def forget(self) -> None:
        """What was dreamed is not to be learned from, say because tokens have a new meaning."""
        self.count.zero_()

    @torch.no_grad()
    def refresh(
        self,
        world_model: WorldModel,
        policy: Policy,
        seeds: Segments,
        *,
        n_step: int,
        gamma: float,
    ) -> Metrics:
        """Dream anew from one-step segments (S = 1); what was dreamed before is forgotten.

        ``n_step`` and ``gamma`` are those of the agent's returns now; a return ends with its dream.

        Returns:
            Scalars: ``trust`` (mean over the seeds), ``kept`` (share of the seeds), and of the
            dreams, if there are any, the mean ``reward`` and ``done`` a step.

        Raises:
            ValueError: the world model has no reward and done heads.
        """
        config = self._config
        was_training = world_model.training
        world_model.eval()
        history_btk = seeds.tokens_bsk[:, :-1]
        trust_b = self.trust_in(world_model, seeds)
        kept_b = trust_b >= config.trust_threshold
        metrics = {"trust": trust_b.mean(), "kept": kept_b.float().mean()}
        if not kept_b.any():
            self.count.zero_()
            world_model.train(was_training)
            return metrics
        histories, actions, rewards, dones = [history_btk[kept_b]], [], [], []
        for _ in range(config.horizon):
            action_b = policy(histories[-1])
            prediction, after_btk = imagined_step(
                world_model,
                histories[-1],
                action_b,
                temperature=config.temperature,
                top_k=config.top_k or None,
            )
            reward_b, done_b = _events(prediction)
            histories.append(after_btk)
            actions.append(action_b)
            rewards.append(reward_b)
            dones.append(done_b)
        world_model.train(was_training)
        self._fill(histories, actions, rewards, dones, trust_b[kept_b], n_step, gamma)
        events = {"reward": torch.cat(rewards).mean(), "done": torch.cat(dones).mean()}
        return metrics | events

    def trust_in(self, world_model: WorldModel, seeds: Segments) -> Tensor:
        """exp(-scale * mean token loss) on the real next frame, float32 (B,); 0 where none is."""
        prediction: Prediction = world_model(seeds.tokens_bsk[:, :-1], seeds.action_bs[:, 0])
        loss_b = prediction.score(seeds.tokens_bsk[:, -1])[0].mean(dim=1)
        real_b = seeds.mask_bs[:, 0] & ~seeds.terminated_bs[:, 0]
        return torch.exp(-self._config.trust_scale * loss_b) * real_b

    def _fill(
        self,
        histories: list[Tensor],
        actions: list[Tensor],
        rewards: list[Tensor],
        dones: list[Tensor],
        trust_b: Tensor,
        n_step: int,
        gamma: float,
    ) -> None:
        """One transition for every imagined step, its return as long as agent and dream allow."""
        horizon, at = len(actions), 0
        for first in range(horizon):
            last = min(first + n_step, horizon)
            goes_on_b, reward_b = torch.ones_like(trust_b), torch.zeros_like(trust_b)
            for step in range(first, last):
                reward_b = reward_b + gamma ** (step - first) * goes_on_b * rewards[step]
                goes_on_b = goes_on_b * (1 - dones[step])
            rows = slice(at, at + len(trust_b))
            self.state[rows] = histories[first].int()
            self.next_state[rows] = histories[last].int()
            self.action[rows] = actions[first]
            self.reward[rows] = reward_b
            self.discount[rows] = gamma ** (last - first) * goes_on_b
            self.trust[rows] = trust_b * self._config.trust_decay**last
            at += len(trust_b)
        self.count.fill_(at)

    def draw(self, size: int, seed: tuple[int, int]) -> Transitions:
        """`size` imagined transitions, drawn evenly; the same seed and pool give the same ones.

        Their weight is their trust. Raises ValueError if the pool is empty.
        """
        if not len(self):
            raise ValueError(f"draw({size}): nothing was dreamed yet, or no seed was trusted")
        rows = np.random.default_rng(seed).integers(len(self), size=size)
        rows_b = torch.from_numpy(rows).to(self.action.device)
        return Transitions(
            state_btk=self.state[rows_b].long(),
            action_b=self.action[rows_b],
            reward_b=self.reward[rows_b],
            next_state_btk=self.next_state[rows_b].long(),
            discount_b=self.discount[rows_b],
            weight_b=self.trust[rows_b],
        )


def joined(real: Transitions, imagined: Transitions) -> Transitions:
    """One batch, the real rows first."""
    return Transitions(*(torch.cat(fields) for fields in zip(real, imagined, strict=True)))


def _events(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Expected sign of the reward and probability that the return stops, float32 (B,)."""
    sign_logits_bc, done_b = prediction.reward_sign_logits_bc, prediction.done()
    life_b = prediction.life_lost()
    if sign_logits_bc is None or done_b is None:
        raise ValueError("Dyna needs a world model with reward and done heads")
    sign_bc = sign_logits_bc.float().softmax(-1)
    stop_b = done_b if life_b is None else 1 - (1 - done_b) * (1 - life_b)
    return sign_bc[:, 2] - sign_bc[:, 0], stop_b
