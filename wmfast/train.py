"""The main job: warm up, then collect, train agent, train world model, evaluate, log, save."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from wmfast.agent import epsilon, importance_exponent, reset_due, returns
from wmfast.build import Parts, build, use_cores
from wmfast.closing import Summary
from wmfast.config import Config, WorldModelConfig
from wmfast.continual import ContinualTokenizer
from wmfast.dyna import joined
from wmfast.finish import evaluate, finish
from wmfast.metrics import MetricsLog
from wmfast.progress import Reporter
from wmfast.resume import metrics_to_keep, restore, save
from wmfast.rundir import RunDir
from wmfast.warmup import prepare

Stopped = Callable[[], bool]
_UPDATES_A_ROW, _UPDATES_A_CHECKPOINT = 50, 500  # of a world model that is trained first
_LAST_RATE = 0.05  # share of the world model's learning rate at the end of its fall
_PRIORITY_FLOOR = 1e-6  # a transition learned to the last bit can still be drawn


def train(run: RunDir, config: Config) -> Summary | None:
    """Train from the start, or from the run folder's latest checkpoint where there is one.

    Returns the closing summary, or None where Ctrl-C (or SIGTERM) stopped the run: what was
    collected and learned is in a checkpoint then, unless the warm-up was still under way.
    """
    with stop_on_signal() as stopped, Reporter.create(config.steps) as reporter:
        parts = restore(run, config) or build(config)
        use_cores(parts.device, parts.tokenizer, parts.world_model, parts.agent)
        begun = parts.counters.env_step > 0
        resume_at = parts.counters.env_step if begun else -1
        keep_bytes = metrics_to_keep(run, parts)
        with (
            parts.envs,
            MetricsLog(run.path, resume_at=resume_at, keep_bytes=keep_bytes) as log,
        ):
            if not begun:
                prepare(parts, log, reporter, stopped)
            loop(parts, run, log, reporter, stopped)
            return None if stopped() else finish(parts, run, log, reporter)


def loop(parts: Parts, run: RunDir, log: MetricsLog, reporter: Reporter, stopped: Stopped) -> None:
    """To the run's last env step: collect, train agent, train world model, evaluate, log, save."""
    config, counters, every = parts.config, parts.counters, parts.config.loop
    if stopped():
        return
    save(parts, run)
    if every.mode == "staged":
        train_world_model_first(parts, run, log, reporter, stopped)
    catch_up(parts)
    reporter.phase("training", total=config.steps, completed=counters.env_step, unit="env steps")
    parts.last_row = counters.env_step, parts.wall_s()
    while counters.env_step < config.steps and not stopped():
        collect(parts)
        for _ in range(due(parts, config.agent.every) * config.agent.updates):
            train_agent(parts)
        for _ in range(due(parts, config.world_model.every) if every.mode != "staged" else 0):
            train_world_model(parts)
        if parts.continual is not None and due(parts, config.continual.tokenizer_every):
            train_tokenizer(parts, parts.continual)
        if config.dyna.share and due(parts, config.dyna.every):
            dream(parts)  # of today's tokens: after the tokenizer has moved
        if due(parts, every.eval_every) and counters.env_step < config.steps:
            with reporter.aside("evaluating", total=1, unit="policy"):
                evaluate(parts, run, log, reporter)
        if due(parts, every.log_every):
            reporter.update(log.log(*parts.position(), parts.measures()))
        if due(parts, every.checkpoint_every):
            save(parts, run)
        reporter.advance_to(counters.env_step)
    save(parts, run)


def collect(parts: Parts) -> None:
    """One epsilon-greedy step of every game into the replay buffer."""
    schedule = {"warmup": parts.config.loop.warmup_steps, "total": parts.config.steps}
    counters = parts.counters
    counters.epsilon = epsilon(counters.env_step, parts.config.agent, **schedule)
    finished = parts.collector.step(counters.epsilon)
    counters.recent_returns.extend(game.score for game in finished)
    counters.env_step += parts.envs.num_envs


def train_agent(parts: Parts) -> None:
    """One double-DQN update on a prioritized batch; its TD errors are the new priorities."""
    config, counters = parts.config, parts.counters
    if reset_due(counters.agent_updates, counters.env_step, config.agent, total=config.steps):
        reset_agent(parts)
    n_step, gamma = current_returns(parts)
    beta = importance_exponent(
        counters.env_step, config.agent, warmup=config.loop.warmup_steps, total=config.steps
    )
    with parts.clock("agent"):
        imagined = parts.dreams.share_of(config.agent.batch_size) if config.dyna.share else 0
        real = config.agent.batch_size - imagined
        batch, index = parts.sampler.transitions(real, beta=beta, n_step=n_step, gamma=gamma)
        if config.agent.curiosity:
            parts.settle()
            bonus_b = parts.curiosity.bonus(parts.world_model, batch, n_step=n_step, gamma=gamma)
            batch = batch._replace(reward_b=batch.reward_b + bonus_b)
            parts.averager.add("agent/train", {"bonus": bonus_b.mean()})
        if imagined:
            seed = (config.seed, counters.agent_updates)
            batch = joined(batch, parts.dreams.draw(imagined, seed))
        metrics = dict(parts.agent_step(batch))
        priority_b = metrics.pop("priority")[:real] + _PRIORITY_FLOOR
        parts.replay.update_priorities(index, priority_b.cpu().numpy())
        parts.averager.add("agent/train", metrics)
    counters.agent_updates += 1


def current_returns(parts: Parts) -> tuple[int, float]:
    """(n_step, gamma) of the agent's returns now, real and imagined."""
    counters = parts.counters
    return returns(counters.agent_updates - counters.agent_reset_at, parts.config.agent)


def reset_agent(parts: Parts) -> None:
    """Reset the agent's networks and its optimiser; returns are annealed from here again."""
    parts.settle()  # the world model's update draws from the generator that the reset borrows
    counters = parts.counters
    parts.agent.reset(counters.agent_updates // parts.config.agent.reset_every)
    parts.agent_step.forget()
    counters.agent_reset_at = counters.agent_updates


def dream(parts: Parts) -> None:
    """Imagine transitions for the agent's next updates, once the world model has begun to learn."""
    config = parts.config.dyna
    if parts.counters.env_step < config.start * parts.config.steps:
        return
    parts.settle()
    with parts.clock("dreams"):
        seeds = parts.sampler.segments(config.seeds, 1)
        n_step, gamma = current_returns(parts)
        metrics = parts.dreams.refresh(
            parts.world_model, parts.agent.act, seeds, n_step=n_step, gamma=gamma
        )
        parts.averager.add("dyna/train", metrics)


def train_world_model(parts: Parts) -> None:
    """Begin one update on segments of which a fraction is drawn from the newest env steps.

    It is one-step or a rollout, and runs beside the agent's updates; `Parts.settle` waits for it,
    as the next one does.
    """
    config = parts.config.world_model
    parts.settle()
    with parts.clock("world_model"):
        planned = (parts.config.steps - parts.config.loop.warmup_steps) // config.every
        update = parts.counters.world_model_updates
        parts.world_model_step.set_learning_rate(learning_rate(update, planned, config))
        recent = (config.recent_steps, config.recent_fraction)
        size, steps = config.batch_size, 1
        if is_rollout(update, planned, config):
            size, steps = config.rollout_batch_size, config.rollout_steps
        batch = parts.sampler.segments(size, steps, recent=recent)
        parts.beside.start(lambda: parts.world_model_step(batch))
    parts.counters.world_model_updates += 1


def train_tokenizer(parts: Parts, continual: ContinualTokenizer) -> None:
    """Mode ``full``: some updates of the tokenizer; every token in use keeps up with it.

    Not at the run's last step: the world model and the agent could not follow any more.
    """
    if parts.counters.env_step >= parts.config.steps:
        return
    parts.settle()
    with parts.clock("tokenizer"):
        metrics = continual.train()
        parts.collector.encode_again()
        parts.dreams.forget()
        scalars = {name: torch.tensor(value) for name, value in metrics.items()}
        parts.averager.add("tokenizer", scalars)


def catch_up(parts: Parts) -> None:
    """A finished run of mode ``full`` goes on: the training that was left out at its old end."""
    continual, config = parts.continual, parts.config
    if continual is None or not continual.is_behind:
        return
    if due(parts, config.continual.tokenizer_every):
        train_tokenizer(parts, continual)
        if config.dyna.share and due(parts, config.dyna.every):
            dream(parts)  # those of the old end are of tokens that have moved


def learning_rate(update: int, planned: int, config: WorldModelConfig) -> float:
    """Of the world model's next update: a linear rise, then a linear fall at the end of the run.

    The fall settles what a high rate has learned: 240 more updates took the held-out accuracy on
    changed tokens of an MsPacman run from 0.58 to 0.61 with it and to 0.55 without.
    """
    rise = (update + 1) / max(1, config.warmup_updates)
    left = max(0.0, 1 - update / max(1, planned))
    fall = max(_LAST_RATE, left / config.decay_share) if config.decay_share else 1.0
    return config.learning_rate * min(1.0, rise, fall)


def is_rollout(update: int, planned: int, config: WorldModelConfig) -> bool:
    """Whether the world model's next update is a rollout: an even spread of `rollout_share`."""
    if config.rollout_steps == 1 or update < config.rollout_start * planned:
        return False
    return math.floor((update + 1) * config.rollout_share) > math.floor(
        update * config.rollout_share
    )


def train_world_model_first(
    parts: Parts, run: RunDir, log: MetricsLog, reporter: Reporter, stopped: Stopped
) -> None:
    """Mode ``staged``: all updates of the world model, on the warm-up, before the agent's first."""
    config = parts.config
    updates = (config.steps - config.loop.warmup_steps) // config.world_model.every
    done = parts.counters.world_model_updates
    reporter.phase("training the world model", total=updates, completed=done)
    for update in range(done, updates):
        if stopped():
            return
        train_world_model(parts)
        reporter.advance_to(update + 1)
        if (update + 1) % _UPDATES_A_ROW == 0 or update + 1 == updates:
            values = parts.measures()  # the rows' train_step counts these updates here
            reporter.update(log.log(parts.counters.env_step, update + 1, parts.wall_s(), values))
        if (update + 1) % _UPDATES_A_CHECKPOINT == 0:
            save(parts, run)


def due(parts: Parts, every: int) -> int:
    """How often something that happens each `every` env steps falls into the last vector step."""
    now = parts.counters.env_step
    return now // every - (now - parts.envs.num_envs) // every


@contextmanager
def stop_on_signal() -> Iterator[Stopped]:
    """The first SIGINT or SIGTERM asks the loop to stop; a second one interrupts at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
