"""Draws with returns of their own: shorter or discounted otherwise than the buffer's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from replay_oracle import Oracle

from wmfast import TokenReplay
from wmfast.replay import PrefetchingSampler, ReplaySampler

ENVS, TOKENS, LONGEST, GAMMA = 2, 6, 5, 0.9


def streams(steps: int = 60) -> tuple[TokenReplay, Oracle]:
    """Random games with every kind of end, in a buffer that has wrapped around."""
    replay = TokenReplay(
        ENVS * 40, ENVS, frame_shape=(2, 3), n_step=LONGEST, gamma=GAMMA, reward_transform="sign"
    )
    oracle = Oracle(40, ENVS, 4, LONGEST, GAMMA, same=False)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        frames = rng.integers(0, 512, (ENVS, TOKENS)).astype(np.uint16)
        actions, rewards = rng.integers(0, 5, ENVS), rng.normal(size=ENVS).astype(np.float32)
        terminated, truncated, life_lost = (rng.random((3, ENVS)) < 0.05) & True
        replay.add(frames, actions, rewards, terminated, truncated, life_lost=life_lost)
        oracle.add(frames, actions, rewards, terminated, truncated, None, life_lost)
    return replay, oracle


@pytest.mark.parametrize("n_step", range(1, LONGEST + 1))
@pytest.mark.parametrize("gamma", [None, 0.6, 1.0])
def test_a_draw_of_m_steps_is_what_a_buffer_of_m_steps_gives(
    n_step: int, gamma: float | None
) -> None:
    replay, oracle = streams()
    twin, _ = streams()
    batch = replay.sample(64, n_step=n_step, gamma=gamma)
    assert np.array_equal(batch.index, twin.sample(64).index)  # the same rows, whatever the return
    oracle.n_step, oracle.gamma = n_step, GAMMA if gamma is None else gamma
    for i, row in enumerate(batch.index):
        wanted = oracle.transition(int(row) % ENVS, int(row) // ENVS, sign=True)
        assert wanted is not None
        state, action, reward, discount, next_state = wanted
        assert np.array_equal(batch.state[i], state)
        assert np.array_equal(batch.next_state[i], next_state)
        assert batch.action[i] == action
        assert batch.reward[i] == pytest.approx(reward, abs=1e-6)
        assert batch.discount[i] == pytest.approx(discount, abs=1e-6)
    # and the buffer's own returns are as they were
    oracle.n_step, oracle.gamma = LONGEST, GAMMA
    drawn = replay.sample(8)
    wanted = oracle.transition(int(drawn.index[0]) % ENVS, int(drawn.index[0]) // ENVS, sign=True)
    assert drawn.reward[0] == pytest.approx(wanted[2], abs=1e-6)
    assert (replay.n_step, replay.gamma) == (LONGEST, GAMMA)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n_step": 0}, "n_step is 0, allowed are 1 to this buffer's 5"),
        ({"n_step": 6}, "n_step is 6, allowed are 1 to this buffer's 5"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"window": True, "n_step": 2}, "window=True needs n_step 1, this draw has 2"),
    ],
)
def test_returns_that_the_buffer_cannot_give_are_refused(
    asked: dict[str, float], message: str
) -> None:
    replay, _ = streams()
    twin, _ = streams()
    with pytest.raises(ValueError, match=message):
        replay.sample(4, **asked)
    assert np.array_equal(replay.sample(4).index, twin.sample(4).index)  # nothing was drawn


def test_one_step_draws_of_a_longer_buffer_have_a_window() -> None:
    replay, _ = streams()
    twin, _ = streams()
    batch, plain = replay.sample(16, n_step=1, window=True), twin.sample(16, n_step=1)
    assert np.array_equal(batch.window[:, :-1], plain.state)
    assert np.array_equal(batch.window[:, 1:], plain.next_state)


RETURNS = [(5, 0.9), (4, 0.8), (2, 0.99), (1, 0.99), (1, 0.5), (3, 0.7)]


def test_the_sampler_passes_returns_on() -> None:
    replay, twin = streams()[0], streams()[0]
    sampler = ReplaySampler(replay)
    for n_step, gamma in RETURNS:
        batch, index = sampler.transitions(16, beta=0.5, n_step=n_step, gamma=gamma)
        plain = twin.sample(16, beta=0.5, n_step=n_step, gamma=gamma)
        assert np.array_equal(index, plain.index)
        assert np.array_equal(batch.reward_b.numpy(), plain.reward)
        assert np.array_equal(batch.discount_b.numpy(), plain.discount)
        assert np.array_equal(batch.next_state_btk.numpy(), plain.next_state.astype(np.int64))


def test_batches_drawn_ahead_have_the_returns_of_the_call_that_drew_them() -> None:
    replay, twin = streams()[0], streams()[0]
    plain = ReplaySampler(twin)
    with PrefetchingSampler(replay, depth=1) as sampler:
        # The first call draws two batches, each later one the next call's.
        asked = [(5, 0.9), (4, 0.8), (2, 0.99)]
        drawn = [(5, 0.9), (5, 0.9), (4, 0.8)]
        for (n_step, gamma), (had, discount) in zip(asked, drawn, strict=True):
            batch, _ = sampler.transitions(16, n_step=n_step, gamma=gamma)
            wanted, _ = plain.transitions(16, n_step=had, gamma=discount)
            for one, other in zip(batch, wanted, strict=True):
                assert torch.equal(one, other)
        batch, _ = sampler.transitions(16, n_step=1)  # a window travels: drawn anew
        assert batch.state_btk.shape == (16, 4, TOKENS)
        assert torch.equal(batch.state_btk[:, 1:], batch.next_state_btk[:, :-1])
        with pytest.raises(ValueError, match="n_step is 6"):
            sampler.transitions(16, n_step=6)
        with pytest.raises(ValueError, match="gamma is -1"):
            sampler.transitions(16, gamma=-1)
