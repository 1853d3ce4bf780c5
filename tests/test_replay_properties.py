"""TokenReplay against the slow oracle, over whatever calls hypothesis thinks of.

Beside the buffer under test, which is saved and loaded or closed and taken over at any moment, a
twin goes through the same calls and is not: both must stay the same to the last bit.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from replay_oracle import Oracle

from wmfast import TokenReplay

STEPS_A_CALL = st.one_of(st.just(1), st.just(1), st.integers(2, 20))
OBJECT_COUNTS = {  # since the object was made
    *("inserts", "samples", "sampled", "mean_sample_age"),
    *("updated", "skipped", "stale_update_share"),
    *("rewritten", "forgotten"),
}


class Machine(RuleBasedStateMachine):
    mapped = False

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        draw = data.draw
        self.folder = Path(tempfile.mkdtemp())
        self.envs, self.kept = draw(st.integers(1, 3)), draw(st.integers(4, 14))
        self.same = draw(st.booleans())
        self.alpha = draw(st.sampled_from([0.6, 1.0, 0.0]))
        self.prioritized = draw(st.sampled_from([True, True, False]))
        self.sign = draw(st.booleans())
        self.vocab = draw(st.sampled_from([65536, 5000, 512, 256, 2]))
        self.dtype = draw(st.sampled_from(["uint8", "uint16"] if self.vocab <= 256 else ["uint16"]))
        self.tokens = draw(st.sampled_from([3, 8, 33, 70]))
        self.seed = draw(st.integers(0, 2**64 - 1))
        self.odd = draw(st.integers(0, self.envs - 1))  # capacity that no env gets
        self.oracle = Oracle(
            self.kept,
            self.envs,
            draw(st.integers(1, 5)),
            draw(st.integers(1, 3)),
            draw(st.sampled_from([0.9, 1.0, 0.0])),
            self.same,
        )
        self.path = self.folder / "store" if self.mapped else None
        self.subject, self.twin = self.build(self.path), self.build(None)
        self.priority: dict[int, float] = {}  # of every row that can be drawn
        self.largest = 1.0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def build(self, path: Path | None) -> TokenReplay:
        return TokenReplay(
            self.kept * self.envs + self.odd,
            self.envs,
            frame_shape=(self.tokens,),
            vocab_size=self.vocab,
            dtype=self.dtype,
            history=self.oracle.history,
            n_step=self.oracle.n_step,
            gamma=self.oracle.gamma,
            prioritized=self.prioritized,
            alpha=self.alpha,
            seed=self.seed,
            autoreset="same_step" if self.same else "next_step",
            reward_transform="sign" if self.sign else "none",
            path=path,
        )

    @property
    def both(self) -> tuple[TokenReplay, TokenReplay]:
        return self.subject, self.twin

    def leaf(self, row: int) -> float:
        return self.priority[row] ** self.alpha if self.prioritized else 1.0

    def follow_rows(self) -> None:
        self.priority = {row: self.priority.get(row, self.largest) for row in self.oracle.ids()}

    # Bits of `ends`: terminated, truncated, life lost of each env at the last of the steps.
    @rule(steps=STEPS_A_CALL, ends=st.one_of(st.just(0), st.integers(0, 511)))
    def add(self, steps: int, ends: int) -> None:
        envs = self.envs
        for left in reversed(range(steps)):
            numbers = np.arange(envs) + self.oracle.steps * envs
            frames = (numbers[:, None] * 7919 + 31 * np.arange(self.tokens) ** 2) % self.vocab
            finals = (self.vocab - 1 - frames).astype(self.dtype)
            frames = frames.astype(self.dtype)
            # A reward tells its row, and has either sign.
            rewards = ((numbers + 1) * np.where(numbers % 3 == 0, -1, 1)).astype(np.float32)
            bits = ends if left == 0 else 0
            flags = (bits >> (3 * np.arange(envs)[:, None] + np.arange(3)) & 1).astype(bool).T
            step = (frames, numbers % 18, rewards, flags[0], flags[1])
            for replay in self.both:
                replay.add(
                    *step, final_frames=finals if self.same else None, life_lost=flags[2].copy()
                )
            self.oracle.add(*step, finals, flags[2])
            self.follow_rows()

    @rule()
    def cut(self) -> None:
        for replay in self.both:
            replay.cut()
        self.oracle.was_cut = True

    @rule(
        size=st.integers(1, 40), window=st.booleans(), into=st.booleans(), beta=st.floats(0.0, 2.0)
    )
    def sample(self, size: int, window: bool, into: bool, beta: float) -> None:
        options: dict[str, Any] = {"window": window and self.oracle.n_step == 1, "beta": beta}
        if not any(self.leaf(row) > 0 for row in self.priority):
            for replay in self.both:
                with pytest.raises(ValueError, match="no row can be drawn"):
                    replay.sample(size, **options)
            return
        ours, theirs = (replay.sample(size, **options) for replay in self.both)
        if into:  # arrays of the caller, full of other rows
            ours = self.subject.sample(size, out=ours, **options)
            theirs = self.twin.sample(size, **options)
        assert all((ours[name] == theirs[name]).all() for name in ours)
        smallest = min(self.leaf(int(row)) for row in ours.index)
        assert smallest > 0
        for i, row in enumerate(ours.index.tolist()):
            assert row in self.priority
            state, action, reward, discount, next_state = self.oracle.transition(
                row % self.envs, row // self.envs, self.sign
            )
            assert (ours.state[i] == state).all()
            assert (ours.next_state[i] == next_state).all()
            assert ours.action[i] == action
            np.testing.assert_allclose(ours.reward[i], reward, rtol=1e-5)
            np.testing.assert_allclose(ours.discount[i], discount, rtol=1e-6)
            np.testing.assert_allclose(
                ours.weight[i], (smallest / self.leaf(row)) ** beta, rtol=1e-5
            )

    @precondition(lambda self: self.priority)
    @rule(
        size=st.integers(1, 9),
        length=st.integers(1, 7),
        recent=st.one_of(st.none(), st.tuples(st.integers(1, 50), st.sampled_from([0.0, 0.4, 1]))),
    )
    def sequences(self, size: int, length: int, recent: tuple[int, float] | None) -> None:
        newer, since = 0, 0
        if recent is not None:
            newer = int(recent[1] * size + 0.5)
            since = self.oracle.steps - -(-recent[0] // self.envs)
        if newer > 0 and all(row // self.envs < since for row in self.priority):
            for replay in self.both:
                with pytest.raises(ValueError, match="no row can be drawn"):
                    replay.sample_sequences(size, length, recent=recent)
            return
        ours, theirs = (
            replay.sample_sequences(size, length, recent=recent) for replay in self.both
        )
        assert all((ours[name] == theirs[name]).all() for name in ours)
        for i in range(size):
            row = abs(int(ours.reward[i, 0])) - 1
            env, step = row % self.envs, row // self.envs
            assert row in self.priority
            assert i >= newer or step >= since
            for name, want in zip(ours, self.oracle.sequence(env, step, length), strict=True):
                assert (ours[name][i] == want).all(), name

    @precondition(lambda self: self.oracle.steps and self.prioritized)
    @rule(
        changes=st.lists(
            st.tuples(
                st.integers(0, 400),  # how far back: gone, live, not drawable, twice
                st.one_of(st.just(0.0), st.floats(1e-6, 100), st.floats(1e-30, 1e30)),
            ),
            max_size=12,
        ),
        small=st.booleans(),
    )
    def update(self, changes: list[tuple[int, float]], small: bool) -> None:
        issued = self.oracle.steps * self.envs
        ids = np.array([issued - 1 - back % issued for back, _ in changes], dtype=np.int64)
        values = np.array([value for _, value in changes], np.float32 if small else np.float64)
        live = [int(row) in self.priority for row in ids]
        for replay in self.both:
            assert replay.update_priorities(ids, values) == sum(live)
        for row, value, alive in zip(ids.tolist(), values.tolist(), live, strict=True):
            if alive:
                self.priority[row] = value
                self.largest = max(self.largest, value)

    @precondition(lambda self: self.oracle.steps)
    @rule(bad=st.sampled_from([-1, 0, 5]), value=st.sampled_from([-1.0, np.nan, np.inf, 1e308]))
    def refused(self, bad: int, value: float) -> None:
        issued = self.oracle.steps * self.envs
        if self.prioritized:
            with pytest.raises(IndexError):
                self.subject.update_priorities([0, bad + (issued if bad >= 0 else 0)], [1e9, 1e9])
            if value != 1e308 or self.alpha == 1.0:
                with pytest.raises(ValueError, match=r"priority\[1\]"):
                    self.subject.update_priorities([issued - 1, 0], [1e9, value])
        most = np.iinfo(self.dtype).max  # a token of the vocabulary where it is the largest
        frames = np.full((self.envs, self.tokens), min(self.vocab, most), self.dtype)
        no = np.zeros(self.envs, bool)
        with pytest.raises(ValueError, match=r"has token|is nan"):
            self.subject.add(frames, no * 1, no + np.nan, no, no)
        with pytest.raises(IndexError, match=f"before_id is {issued + 1}, allowed are 0 to"):
            self.subject.forget(issued + 1)
        if not self.same:
            with pytest.raises(IndexError, match=rf"index\[1\] is {issued}"):
                self.subject.rewrite([issued - 1, issued], frames[:1].repeat(2, 0) * 0)
            if self.vocab <= most:
                with pytest.raises(ValueError, match=rf"frames\[0\] has token {self.vocab}"):
                    self.subject.rewrite([issued - 1], frames[:1])

    @precondition(lambda self: self.oracle.steps)
    @rule(backs=st.lists(st.integers(0, 60), max_size=6), new=st.integers(0, 1000))
    def rewrite(self, backs: list[int], new: int) -> None:
        """New frames, also of final ones and of rows that are gone; nothing else changes."""
        issued, envs = self.oracle.steps * self.envs, self.envs
        ids = np.array([issued - 1 - back % issued for back in backs], dtype=np.int64)
        numbers = new + np.arange(len(ids))
        frames = (numbers[:, None] * 104729 + 17 * np.arange(self.tokens)) % self.vocab
        frames = frames.astype(self.dtype)
        if self.same:
            for replay in self.both:
                with pytest.raises(ValueError, match="autoreset is same_step"):
                    replay.rewrite(ids, frames)
            return
        live = [row // envs >= self.oracle.oldest for row in ids.tolist()]
        for replay in self.both:
            assert replay.rewrite(ids, frames) == sum(live)
        for row, frame, alive in zip(ids.tolist(), frames, live, strict=True):
            if alive:
                self.oracle.rewrite(row, frame)

    @precondition(lambda self: self.oracle.steps)
    @rule(back=st.integers(0, 60))
    def forget(self, back: int) -> None:
        issued = self.oracle.steps * self.envs
        before = max(0, issued - back)
        stored = issued - self.oracle.oldest * self.envs
        self.oracle.forget(before)
        left = issued - self.oracle.oldest * self.envs
        for replay in self.both:
            assert replay.forget(before) == stored - left
        self.follow_rows()

    @rule()
    def save_and_load(self) -> None:
        """The snapshots are the same; the session goes on with the loaded buffer."""
        self.subject.save(self.folder / "subject")
        self.twin.save(self.folder / "twin")
        assert (self.folder / "subject").read_bytes() == (self.folder / "twin").read_bytes()
        loaded = TokenReplay.load(self.folder / "subject")
        if not self.mapped:
            self.subject = loaded

    @precondition(lambda self: self.mapped)
    @rule()
    def take_over(self) -> None:
        del self.subject
        self.subject = self.build(self.path)
        zero = [row for row in self.priority if self.leaf(row) == 0.0]
        if zero:  # as documented
            self.twin.update_priorities(zero, [self.largest] * len(zero))
            self.priority.update(dict.fromkeys(zero, self.largest))

    @precondition(lambda self: self.mapped)
    @rule(history=st.integers(1, 5), n_step=st.integers(1, 3), gamma=st.sampled_from([0.5, 0.9]))
    def take_over_otherwise(self, history: int, n_step: int, gamma: float) -> None:
        del self.subject
        self.oracle.history, self.oracle.n_step, self.oracle.gamma = history, n_step, gamma
        self.subject = self.build(self.path)
        self.priority = {row: value for row, value in self.priority.items() if self.leaf(row) > 0.0}
        self.follow_rows()
        self.subject.save(self.folder / "subject")
        self.twin = TokenReplay.load(self.folder / "subject")

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "subject"):
            return
        stats = self.subject.stats()
        stored = (self.oracle.steps - self.oracle.oldest) * self.envs
        assert len(self.subject) == stats["stored"] == stored
        assert stats["added"] == self.oracle.steps * self.envs
        assert stats["drawable"] == len(self.priority)
        assert stats["max_priority"] == self.largest
        theirs = self.twin.stats()
        assert {k: v for k, v in stats.items() if k not in OBJECT_COUNTS} == {
            k: v for k, v in theirs.items() if k not in OBJECT_COUNTS
        }
        if self.prioritized:
            total = sum(self.leaf(row) for row in self.priority)
            np.testing.assert_allclose(stats["priority_sum"], total, rtol=1e-9)


class MappedMachine(Machine):
    mapped = True


TestInMemory = Machine.TestCase
TestInMemory.settings = settings(max_examples=45, stateful_step_count=40, deadline=None)
TestMapped = MappedMachine.TestCase
TestMapped.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
