"""TokenReplay against the slow oracle, over whatever streams and calls hypothesis thinks of."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_oracle import Oracle

from wmfast import TokenReplay

ALPHA = 0.6


@dataclass(frozen=True)
class Case:
    envs: int
    kept: int
    history: int
    n_step: int
    prioritized: bool
    same: bool
    sign: bool


cases = st.builds(
    Case,
    envs=st.integers(1, 3),
    kept=st.integers(4, 14),
    history=st.integers(1, 5),
    n_step=st.integers(1, 3),
    prioritized=st.booleans(),
    same=st.booleans(),
    sign=st.booleans(),
)
# Four bits an env and step: terminated, truncated, life lost; half of the steps end nothing.
add_calls = st.tuples(st.just("add"), st.one_of(st.just(0), st.integers(0, 511)))
other_calls = st.tuples(
    st.sampled_from(["sample", "sequences", "update", "cut", "save", "reopen"]),
    st.integers(0, 1000),
)
calls = st.lists(st.one_of(add_calls, add_calls, add_calls, other_calls), max_size=60)


class Comparison:
    """One buffer under test, a twin that is never saved nor reopened, and the oracle."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.in_file = False
        self.subject, self.twin = self.build(None), self.build(None)
        self.oracle = Oracle(case.kept, case.envs, case.history, case.n_step, 0.9, case.same)
        self.priority: dict[int, float] = {}
        self.largest = 1.0

    def build(self, path: Path | None) -> TokenReplay:
        case = self.case
        return TokenReplay(
            case.kept * case.envs,
            case.envs,
            frame_shape=(3,),
            vocab_size=65536,
            history=case.history,
            n_step=case.n_step,
            gamma=0.9,
            prioritized=case.prioritized,
            alpha=ALPHA,
            autoreset="same_step" if case.same else "next_step",
            reward_transform="sign" if case.sign else "none",
            path=path,
        )

    def add(self, bits: int) -> None:
        envs, t = self.case.envs, self.oracle.steps
        numbers = np.arange(envs) + t * envs
        frames = np.stack([numbers, numbers + 7, numbers * 3], axis=1).astype(np.uint16)
        finals = frames + 30000
        rewards = ((numbers * 37) % 11 - 5).astype(np.float32)
        ends = (bits >> (3 * np.arange(envs)[:, None] + np.arange(3)) & 1).astype(bool)
        terminated, truncated, life_lost = ends.T
        for replay in (self.subject, self.twin):
            replay.add(
                frames,
                numbers % 18,
                rewards,
                terminated,
                truncated,
                final_frames=finals if self.case.same else None,
                life_lost=life_lost,
            )
        self.oracle.add(frames, numbers % 18, rewards, terminated, truncated, finals, life_lost)
        rows = self.oracle.drawable()
        self.priority = {row: self.priority.get(row, self.largest) for row in rows}

    def sample(self, number: int) -> Any:
        rows = self.oracle.drawable()
        window = self.case.n_step == 1 and number % 2 == 0
        ours = self.subject.sample(number % 40 + 1, window=window)
        theirs = self.twin.sample(number % 40 + 1, window=window)
        smallest = min(self.priority[int(i)] for i in ours.index)
        for i, row in enumerate(ours.index):
            state, action, reward, discount, next_state = self.oracle.transition(
                int(row) % self.case.envs, int(row) // self.case.envs, self.case.sign
            )
            assert int(row) in rows
            assert (ours.state[i] == state).all()
            assert (ours.next_state[i] == next_state).all()
            assert ours.action[i] == action
            np.testing.assert_allclose(ours.reward[i], reward, atol=1e-5)
            np.testing.assert_allclose(ours.discount[i], discount, rtol=1e-6)
            weight = (smallest / self.priority[int(row)]) ** (ALPHA * 0.4)
            np.testing.assert_allclose(ours.weight[i], weight, rtol=1e-5)
        assert all((ours[name] == theirs[name]).all() for name in ours)
        return ours

    def sequences(self, number: int) -> None:
        length = number % 7 + 1
        ours = self.subject.sample_sequences(6, length)
        theirs = self.twin.sample_sequences(6, length)
        assert all((ours[name] == theirs[name]).all() for name in ours)
        for i in range(6):
            # The newest frame of the first history names the row.
            number = int(ours.tokens[i, self.case.history - 1, 0])
            assert number in self.oracle.drawable()
            env, step = number % self.case.envs, number // self.case.envs
            for name, want in zip(ours, self.oracle.sequence(env, step, length), strict=True):
                assert (ours[name][i] == want).all(), name

    def update(self, number: int) -> None:
        issued = self.oracle.steps * self.case.envs
        ids = (np.arange(9) * (number + 1)) % issued
        values = ((np.arange(9) + number) % 13 + 1) / 3
        live = [int(row) in self.priority for row in ids]
        assert self.subject.update_priorities(ids, values) == sum(live)
        assert self.twin.update_priorities(ids, values) == sum(live)
        for row, value, alive in zip(ids, values, live, strict=True):
            if alive:
                self.priority[int(row)] = value
                self.largest = max(self.largest, value)

    def save(self) -> None:
        self.subject.save(self.folder / "snapshot")
        self.subject = TokenReplay.load(self.folder / "snapshot")

    def check(self) -> None:
        rows = self.oracle.drawable()
        assert self.subject.stats()["drawable"] == len(rows) == len(self.priority)
        assert len(self.subject) == min(self.oracle.steps, self.case.kept) * self.case.envs
        if self.case.prioritized:
            total = sum(value**ALPHA for value in self.priority.values())
            np.testing.assert_allclose(self.subject.stats()["priority_sum"], total, rtol=1e-9)

    def call(self, name: str, number: int) -> None:
        if name == "add":
            self.add(number)
        elif name == "cut":
            self.subject.cut()
            self.twin.cut()
            self.oracle.was_cut = True
        elif name == "save":
            self.save()
        elif name == "reopen" and self.in_file:
            del self.subject
            self.subject = self.build(self.folder / "store")
        elif name == "update" and self.case.prioritized and self.oracle.steps:
            self.update(number)
        elif name in ("sample", "sequences") and self.priority:
            getattr(self, name)(number)
        self.check()


@settings(max_examples=250, deadline=None)
@given(case=cases, script=calls)
def test_any_calls_match_the_oracle_and_snapshots_go_on_alike(case, script) -> None:
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(case, Path(folder))
        for name, number in script:
            comparison.call(name, number)


@settings(max_examples=100, deadline=None)
@given(case=cases, script=calls)
def test_a_reopened_store_goes_on_alike(case, script) -> None:
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(case, Path(folder))
        comparison.in_file = True
        comparison.subject = comparison.build(Path(folder) / "store")
        for name, number in script:
            comparison.call("reopen" if name == "save" else name, number)
