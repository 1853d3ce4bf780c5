"""What is stored is what the games showed: the frame an action was chosen on, with what it brought.

A stub stands for the tokenizer (its tokens tell frames apart) and for the agent; the games are real
and are played a second time, from the same seed with the actions that were stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmfast import TokenReplay
from wmfast.collect import Collector, RawStep, collect_random
from wmfast.config import EnvConfig
from wmfast.envs import AtariEnvs
from wmfast.stopwatch import Stopwatch
from wmfast.types import FRAME_HW, GRID_HW, HISTORY

GAME, SEED = "breakout", 3
ENV = EnvConfig(num_envs=4, max_frames=600)  # 150 steps: some games are over before, some are not
WARMUP_STEPS, STEPS = 30, 150
CELL_HW = (FRAME_HW[0] // GRID_HW[0], FRAME_HW[1] // GRID_HW[1])


class Row(NamedTuple):
    """One call of ``TokenReplay.add``."""

    tokens: NDArray[np.uint16]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]


class Recorder:
    """Stands for the replay buffer: keeps copies of what is added."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, *arrays: NDArray[Any], life_lost: NDArray[np.bool_]) -> None:
        self.rows.append(Row(*(array.copy() for array in arrays), life_lost.copy()))


class Greedy:
    """The stub agent: its action is told by the newest frame alone; keeps the histories it saw."""

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self.histories: list[Tensor] = []

    def __call__(self, tokens_btk: Tensor) -> Tensor:
        self.histories.append(tokens_btk.clone())
        return tokens_btk[:, -1].sum(dim=1) % self.num_actions


def encode(frames_ehwc: Tensor) -> Tensor:
    """Each cell's sum of bytes, weighted by place: any moved pixel changes a token."""
    (rows, columns), (height, width) = GRID_HW, CELL_HW
    cells = frames_ehwc.long().reshape(-1, rows, height, columns, width, 3)
    weights = torch.arange(1, height * width * 3 + 1).reshape(height, 1, width, 3)
    return (cells * weights).sum(dim=(2, 4, 5)).flatten(1) % 65_521  # a prime within uint16


class Played(NamedTuple):
    """One collected stretch: the warm-up, and what was stored for it and for the steps after."""

    warmup: list[RawStep]
    rows: list[Row]
    policy: Greedy


@pytest.fixture(scope="module")
def played() -> Played:
    recorder = Recorder()
    with AtariEnvs(GAME, ENV, seed=SEED) as envs:
        policy = Greedy(envs.num_actions)
        rng = np.random.default_rng(SEED)
        collector = Collector(
            envs,
            cast(TokenReplay, recorder),
            encode,
            policy,
            device=torch.device("cpu"),
            rng=rng,
            clock=Stopwatch(),
        )
        warmup = collect_random(envs, WARMUP_STEPS * ENV.num_envs, rng)
        collector.begin_after(warmup)
        for _ in range(STEPS):
            collector.step(epsilon=0.5)
    return Played(warmup, recorder.rows, policy)


@pytest.fixture(scope="module")
def again(played: Played) -> list[RawStep]:
    """The same games once more, with the actions that were stored."""
    with AtariEnvs(GAME, ENV, seed=SEED) as envs:
        return list(replay(envs, played.rows))


def replay(envs: AtariEnvs, rows: list[Row]) -> Iterator[RawStep]:
    frames = envs.reset()
    for row in rows:
        result = envs.step(row.actions)
        yield RawStep(frames, row.actions, result)
        frames = result.frames


def tokens_of(frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return encode(torch.from_numpy(frames)).numpy().astype(np.uint16)


def test_each_row_is_the_frame_acted_on_and_what_the_action_brought(
    played: Played, again: list[RawStep]
) -> None:
    assert len(played.rows) == WARMUP_STEPS + STEPS
    for number, (row, step) in enumerate(zip(played.rows, again, strict=True)):
        where = f"row {number}"
        np.testing.assert_array_equal(row.tokens, tokens_of(step.frames), where)
        np.testing.assert_array_equal(row.rewards, step.result.rewards, where)
        np.testing.assert_array_equal(row.terminated, step.result.terminated, where)
        np.testing.assert_array_equal(row.truncated, step.result.truncated, where)
        np.testing.assert_array_equal(row.life_lost, step.result.life_lost, where)
    # ... and all of it happened in these games, after the warm-up and to more than one of them
    stored = Row(*map(np.stack, zip(*played.rows[WARMUP_STEPS:], strict=True)))
    for what in (stored.rewards, stored.terminated, stored.truncated, stored.life_lost):
        assert what.any()
    assert (stored.terminated | stored.truncated).any(axis=0).sum() >= 2


def test_the_row_after_an_end_holds_the_ignored_action_and_begins_a_history(
    played: Played, again: list[RawStep]
) -> None:
    ended = np.stack([row.terminated | row.truncated for row in played.rows])
    resets = np.stack([step.result.is_reset for step in again])
    np.testing.assert_array_equal(resets[1:], ended[:-1])
    after = [(t, e) for t, e in np.argwhere(resets) if t + 1 < len(played.rows)]
    assert after
    for t, e in after:
        row = played.rows[t]  # its action was ignored: the next game's first frame came instead
        assert row.rewards[e] == 0
        assert not np.any([row.terminated[e], row.truncated[e], row.life_lost[e]])
        assert (played.rows[t + 1].tokens[e] != row.tokens[e]).any()


def test_the_agent_sees_the_last_frames_of_one_game(played: Played) -> None:
    tokens = np.stack([row.tokens for row in played.rows]).astype(np.int64)
    ended = np.stack([row.terminated | row.truncated for row in played.rows])
    newest = {
        histories[:, -1].numpy().tobytes(): histories for histories in played.policy.histories
    }
    compared = 0
    for t in range(WARMUP_STEPS, len(tokens)):
        histories = newest.get(tokens[t].tobytes())
        if histories is None:
            continue  # every action of this step was random
        for e in range(ENV.num_envs):
            # The newest end whose successor frame is the reset's: rows from the one after are ours.
            ends = np.flatnonzero(ended[: max(0, t - 1), e])
            first = int(ends[-1]) + 2 if len(ends) else 0
            wanted = [max(first, t - age) for age in reversed(range(HISTORY))]
            np.testing.assert_array_equal(histories[e].numpy(), tokens[wanted, e], f"{t}, {e}")
            compared += 1
    assert compared > 100


def test_the_warm_up_is_stored_in_order_and_goes_on_from_its_last_frame(played: Played) -> None:
    assert len(played.warmup) == WARMUP_STEPS
    for row, raw in zip(played.rows, played.warmup, strict=False):
        np.testing.assert_array_equal(row.tokens, tokens_of(raw.frames))
        np.testing.assert_array_equal(row.actions, raw.actions)
        np.testing.assert_array_equal(row.rewards, raw.result.rewards)
    following = played.rows[WARMUP_STEPS].tokens
    np.testing.assert_array_equal(following, tokens_of(played.warmup[-1].result.frames))
