"""The models' steps in the GPU report: acting and updates, eager, compiled and captured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from report_clock import Clock, Row, compare
from torch import Tensor

from wmfast.agent import DoubleDQN
from wmfast.config import Config
from wmfast.models.world_model import build_world_model
from wmfast.presets import PRESETS
from wmfast.step import Graphed, TrainStep
from wmfast.types import HISTORY, TOKENS_PER_FRAME, Segments, Transitions

ACTIONS = 9


def _tokens(clock: Clock, *shape: int, vocab: int) -> Tensor:
    return torch.randint(vocab, (*shape, TOKENS_PER_FRAME), device=clock.device)


def _transitions(clock: Clock, config: Config, batch: int) -> Transitions:
    vocab = config.tokenizer.codebook_size
    history = _tokens(clock, batch, HISTORY + 1, vocab=vocab)
    ones = torch.ones(batch, device=clock.device)
    action = torch.randint(ACTIONS, (batch,), device=clock.device)
    return Transitions(history[:, :-1], action, ones, history[:, 1:], 0.99 * ones, ones)


def _segments(clock: Clock, config: Config, batch: int) -> Segments:
    tokens = _tokens(clock, batch, HISTORY + 1, vocab=config.tokenizer.codebook_size)
    zeros = torch.zeros(batch, 1, dtype=torch.bool, device=clock.device)
    action = torch.randint(ACTIONS, (batch, 1), device=clock.device)
    return Segments(tokens, action, zeros.float(), zeros, ~zeros, zeros)


def _agent(clock: Clock, config: Config, compiled: bool) -> tuple[DoubleDQN, TrainStep]:
    torch.manual_seed(0)
    vocab = config.tokenizer.codebook_size
    agent = DoubleDQN(config.agent, vocab_size=vocab, num_actions=ACTIONS).to(clock.device)
    step = TrainStep(
        agent,
        clock.compile(agent.loss) if compiled else agent.loss,
        learning_rate=config.agent.learning_rate,
        grad_clip=config.agent.grad_clip,
        autocast=clock.device.type == "cuda",
        after=agent.update_target,
    )
    return agent, step


def _world_model_step(clock: Clock, config: Config, compiled: bool) -> TrainStep:
    torch.manual_seed(0)
    vocab = config.tokenizer.codebook_size
    model = build_world_model(config.world_model, vocab_size=vocab, num_actions=ACTIONS)
    model = model.to(clock.device).train()
    return TrainStep(
        model,
        clock.compile(model.loss) if compiled else model.loss,
        learning_rate=config.world_model.learning_rate,
        weight_decay=config.world_model.weight_decay,
        grad_clip=config.world_model.grad_clip,
        autocast=clock.device.type == "cuda",
    )


def _update(step: TrainStep, batch: Any, captured: bool) -> Callable[[], object]:
    """One update; captured as training itself does it, or call by call."""
    step(batch)  # settles the batch's type
    if captured:
        return lambda: step(batch)
    return lambda: step._update(*batch)


def _acting(clock: Clock, config: Config, envs: int, captured: bool) -> Callable[[], object]:
    agent, _ = _agent(clock, config, compiled=False)
    history = _tokens(clock, envs, HISTORY, vocab=config.tokenizer.codebook_size)

    def act(history_btk: Tensor) -> Tensor:
        cuda = clock.device.type == "cuda"
        with torch.no_grad(), torch.autocast(clock.device.type, torch.bfloat16, enabled=cuda):
            return agent.act(history_btk)

    run = Graphed(act, clock.device) if captured else act
    return lambda: run(history)


def _timed_update(
    clock: Clock, config: Config, make_step: Any, batch: Any, compiled: bool, captured: bool
) -> Callable[[], object]:
    return _update(make_step(clock, config, compiled), batch, captured)


def steps(clock: Clock) -> list[Row]:
    """Acting, agent update and world-model update of the presets."""
    rows: list[Row] = []
    for name in ("smoke",) if clock.dry else ("v3", "cpu"):
        config = PRESETS[name]
        time = partial(clock.row, graph=False)
        envs = config.env.num_envs
        for batch in (1, envs):
            what = f"{name}: acting in {batch} games"
            for way, captured in (("captured", True), ("eager", False)):
                make = partial(_acting, clock, config, batch, captured)
                rows.append(time(what, way, make))
        for what, make_step, data in (
            ("agent update", lambda *a: _agent(*a)[1], _transitions),
            ("world-model update", _world_model_step, _segments),
        ):
            part = config.agent if what.startswith("agent") else config.world_model
            batch = data(clock, config, part.batch_size)
            for way, compiled, captured in (
                ("captured", False, True),
                ("compiled and captured", True, True),
                ("eager", False, False),
                ("compiled", True, False),
            ):
                make = partial(_timed_update, clock, config, make_step, batch, compiled, captured)
                rows.append(time(f"{name}: {what}, batch {part.batch_size}", way, make))
    return compare(rows)


def no_host_sync(clock: Clock) -> list[Row]:
    """Acting and updates under sync-debug mode "error"; captured updates equal to eager ones."""
    rows: list[Row] = []
    for name in ("smoke",) if clock.dry else ("v3", "cpu"):
        config = PRESETS[name]
        agent_batch = _transitions(clock, config, 4)
        world_batch = _segments(clock, config, 2)
        calls = {
            "acting": _acting(clock, config, 2, captured=False),
            "agent update": _update(_agent(clock, config, False)[1], agent_batch, False),
            "world-model update": _update(
                _world_model_step(clock, config, False), world_batch, False
            ),
        }
        for what, call in calls.items():
            row: Row = {"name": f"{name}: {what}, no host sync"}
            try:
                call()  # libraries may wait while they set themselves up
                if clock.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                call()
                checked = clock.device.type == "cuda"
                rows.append(row | {"result": "none" if checked else "not checked on a CPU"})
            except RuntimeError as error:
                rows.append(row | {"error": str(error).splitlines()[0][:200]})
            finally:
                if clock.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        rows.append(_captured_equals_eager(clock, config, agent_batch))
    return rows


def _captured_equals_eager(clock: Clock, config: Config, batch: Transitions) -> Row:
    row: Row = {"name": f"{config.preset}: 6 captured agent updates against eager ones"}
    losses = []
    for captured in (True, False):
        _, step = _agent(clock, config, compiled=False)
        for _ in range(6):
            metrics = step(batch) if captured else _eager(step, batch)
        losses.append(float(metrics["loss"]))
    if abs(losses[0] - losses[1]) <= 0.02 * abs(losses[1]):
        return row | {"result": f"loss {losses[0]:.6f} and {losses[1]:.6f}"}
    return row | {"error": f"loss {losses[0]:.6f} and {losses[1]:.6f}"}


def _eager(step: TrainStep, batch: Transitions) -> Any:
    step._batch_type = type(batch)
    return step._update(*batch)


SECTIONS = {"steps: correctness": no_host_sync, "steps: speed": steps}
