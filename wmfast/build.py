"""Wiring: from a configuration to the parts of a run, every network and step in place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wmfast import TokenReplay
from wmfast.agent import DoubleDQN
from wmfast.collect import Collector
from wmfast.config import Config, Device
from wmfast.continual import ContinualTokenizer
from wmfast.curiosity import Curiosity
from wmfast.dyna import DreamedTransitions
from wmfast.envs import AtariEnvs
from wmfast.metrics import Averager
from wmfast.models.prediction import WorldModel
from wmfast.models.tokenizer import StreamEncoder, Tokenizer, build_tokenizer
from wmfast.models.world_model import build_world_model, weigh_tokens
from wmfast.replay import ReplaySampler
from wmfast.step import Beside, Graphed, TrainStep
from wmfast.stopwatch import Stopwatch
from wmfast.types import HISTORY, TOKENS_PER_FRAME

RECENT_GAMES = 20


@dataclass
class Counters:
    """How far the run is; a checkpoint holds this."""

    env_step: int = 0
    agent_updates: int = 0
    agent_reset_at: int = 0  # agent updates before the last reset
    world_model_updates: int = 0
    wall_s: float = 0.0
    metrics_bytes: int = 0  # of metrics.jsonl: later rows are written again after a resume
    epsilon: float = 1.0
    tokenizer_quality: dict[str, float] = field(default_factory=dict)
    world_model_quality: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_GAMES))


@dataclass
class Parts:
    """Everything that a run is made of."""

    config: Config
    device: torch.device
    envs: AtariEnvs
    tokenizer: Tokenizer
    world_model: WorldModel
    agent: DoubleDQN
    dreams: DreamedTransitions
    curiosity: Curiosity
    replay: TokenReplay
    sampler: ReplaySampler
    collector: Collector
    continual: ContinualTokenizer | None  # in mode full
    agent_step: TrainStep
    world_model_step: TrainStep
    beside: Beside  # where the world model's updates run
    encode: Callable[[Tensor], Tensor]
    act: Callable[[Tensor], Tensor]
    rng: np.random.Generator
    clock: Stopwatch
    averager: Averager
    counters: Counters
    started: float = field(default_factory=time.perf_counter)
    last_row: tuple[int, float] = (0, 0.0)  # env_step and wall_s of the last row of metrics

    def wall_s(self) -> float:
        """Seconds that the run has taken, those before a resume included."""
        return self.counters.wall_s + time.perf_counter() - self.started

    def position(self) -> tuple[int, int, float]:
        """(env_step, train_step, wall_s) of a row of metrics; train_step counts agent updates."""
        return self.counters.env_step, self.counters.agent_updates, self.wall_s()

    def settle(self) -> None:
        """Wait for the world model's update under way and count its metrics."""
        with self.clock("world_model"):
            metrics = self.beside.wait()
        if metrics is not None:
            self.averager.add("world_model/train", metrics)

    def measures(self) -> dict[str, float]:
        """A row of metrics: means since the last row, score, exploration, speed, fill."""
        self.settle()
        counters, wall_s = self.counters, self.wall_s()
        last_step, last_wall_s = self.last_row
        self.last_row = counters.env_step, wall_s
        values = self.averager.flush()
        values["collect/epsilon"] = counters.epsilon
        values["replay/stored"] = float(len(self.replay))
        if counters.recent_returns:
            values["collect/return"] = fmean(counters.recent_returns)
        if wall_s > last_wall_s > 0:
            speed = (counters.env_step - last_step) / (wall_s - last_wall_s)
            values["speed/env_steps_per_s"] = speed
        return values


def pick_device(name: Device) -> torch.device:
    """The device that a configuration names. ValueError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is visible here; allowed: auto, cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def open_envs(config: Config, env_step: int = 0) -> AtariEnvs:
    """The training games; a run resumed at `env_step` gets starts that it has not seen."""
    seed = config.seed
    if env_step:
        seed = int(np.random.SeedSequence([config.seed, env_step]).generate_state(1)[0] >> 1)
    return AtariEnvs(config.game, config.env, seed=seed, stream="train")


def open_replay(config: Config) -> TokenReplay:
    """An empty replay buffer for the run: raw rewards kept, sign-clipped ones for the agent."""
    agent = config.agent
    return TokenReplay(
        config.loop.replay_capacity,
        config.env.num_envs,
        vocab_size=config.tokenizer.codebook_size,
        n_step=agent.longest_return,
        gamma=agent.gamma,
        alpha=agent.alpha,
        seed=config.seed,
        reward_transform="sign",
    )


def build(config: Config, replay: TokenReplay | None = None, env_step: int = 0) -> Parts:
    """Make the parts of a run; the networks' first weights are drawn from ``config.seed``.

    Args:
        config: resolved: its preset is not ``auto``.
        replay: the buffer of a run that goes on; a new one unless given.
        env_step: where the run goes on.
    """
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    envs = open_envs(config, env_step)
    replay = open_replay(config) if replay is None else replay
    vocab_size = config.tokenizer.codebook_size

    tokenizer = build_tokenizer(config.tokenizer).to(device).eval()
    world_model = build_world_model(
        config.world_model, vocab_size=vocab_size, num_actions=envs.num_actions
    ).to(device)
    weigh_tokens(world_model, config.world_model, lambda: tokenizer.codes)
    agent = DoubleDQN(
        config.agent, vocab_size=vocab_size, num_actions=envs.num_actions, seed=config.seed
    ).to(device)

    act = Graphed(_autocast(agent.act, agent, device), device)

    def encoder() -> Callable[[Tensor], Tensor]:
        return _autocast(StreamEncoder(tokenizer), tokenizer, device)

    rng = np.random.default_rng(config.seed)
    clock = Stopwatch()
    continual = None
    if config.loop.mode == "full":
        autocast = bf16_wins(tokenizer, device)
        continual = ContinualTokenizer(config, tokenizer, replay, autocast=autocast)
    collector = Collector(
        envs,
        replay,
        encoder(),
        act,
        device=device,
        rng=rng,
        clock=clock,
        on_frames=continual.window.push if continual else None,
    )
    return Parts(
        config=config,
        device=device,
        envs=envs,
        tokenizer=tokenizer,
        world_model=world_model,
        agent=agent,
        dreams=DreamedTransitions(
            config.dyna,
            tokens=TOKENS_PER_FRAME,
            history=HISTORY,
        ).to(device),
        curiosity=Curiosity(config.agent.curiosity).to(device),
        replay=replay,
        sampler=ReplaySampler(replay, device),
        collector=collector,
        continual=continual,
        agent_step=TrainStep(
            agent,
            agent.loss,
            learning_rate=config.agent.learning_rate,
            weight_decay=config.agent.weight_decay,
            epsilon=config.agent.adam_epsilon,
            decay_vectors=False,
            grad_clip=config.agent.grad_clip,
            autocast=bf16_wins(agent, device),
            after=agent.update_target,
        ),
        world_model_step=TrainStep(
            world_model,
            world_model.loss,
            learning_rate=config.world_model.learning_rate,
            weight_decay=config.world_model.weight_decay,
            grad_clip=config.world_model.grad_clip,
            autocast=bf16_wins(world_model, device),
        ),
        beside=Beside(device),
        encode=encoder(),
        act=act,
        rng=rng,
        clock=clock,
        averager=Averager(),
        counters=Counters(),
    )


def use_cores(device: torch.device, *networks: nn.Module) -> None:
    """Small networks on a CPU: one thread an operation, agent and world model side by side.

    Two threads an operation ran the ``cpu`` preset's updates a quarter faster on two idle cores,
    and 10 to 30 times slower whenever another program wanted one of them. The last digits of a
    transformer's sums depend on their number too.
    """
    if device.type == "cpu" and not any(bf16_wins(net, device) for net in networks):
        torch.set_num_threads(1)


def bf16_wins(module: nn.Module, device: torch.device) -> bool:
    """Whether to run under bfloat16 autocast: always on a GPU, on a CPU from 2M parameters.

    Measured on two cores with AMX: the seeds' networks gain 3 to 5 times, those of the ``cpu``
    preset (under 1M parameters) lose a little.
    """
    return device.type == "cuda" or sum(p.numel() for p in module.parameters()) > 2_000_000


def _autocast(
    function: Callable[[Tensor], Tensor], module: nn.Module, device: torch.device
) -> Callable[[Tensor], Tensor]:
    enabled = bf16_wins(module, device)

    def call(tensor: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            return function(tensor)

    return call
