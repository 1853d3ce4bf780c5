"""TokenReplay: what each word of its contract means, seen from Python."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from replay_stream import ENVS, NO, TOKENS, YES, add, filled, frame, make

from wmfast import TokenReplay


def rows_by_id(replay: TokenReplay) -> dict[int, dict[str, np.ndarray]]:
    """Every row that can be drawn; equal priorities and stratified draws bring up each of them."""
    batch = replay.sample(2 * int(replay.stats()["drawable"]))
    return {
        int(batch.index[i]): {name: batch[name][i] for name in batch}
        for i in range(len(batch.index))
    }


def frames_of(stack: np.ndarray) -> list[int]:
    assert (stack == stack[:, :1]).all()
    return stack[:, 0].tolist()


def test_import_needs_no_torch() -> None:
    code = "import sys; from wmfast import TokenReplay; assert 'torch' not in sys.modules"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


def test_history_repeats_the_first_frame_and_streams_do_not_mix() -> None:
    rows = rows_by_id(filled(6))
    assert frames_of(rows[0]["state"]) == [100, 100, 100, 100]
    assert frames_of(rows[2 * 1 + 1]["state"]) == [200, 200, 200, 201]
    assert frames_of(rows[2 * 4]["state"]) == [101, 102, 103, 104]
    assert frames_of(rows[2 * 4]["next_state"]) == [102, 103, 104, 105]
    assert sorted(rows) == list(range(10))  # the newest row of each env has no successor yet


def test_next_step_autoreset_keeps_the_final_frame_as_a_successor_only() -> None:
    replay = make()
    add(replay, 0)
    add(replay, 1, truncated=YES)
    assert sorted(rows_by_id(replay)) == [0, 1]  # the final frame has not come yet
    add(replay, 2, terminated=YES)  # the final frame; what comes with it is ignored
    add(replay, 3)
    add(replay, 4)
    rows = rows_by_id(replay)
    assert sorted(rows) == [0, 1, 2, 3, 6, 7]
    assert frames_of(rows[2]["next_state"]) == [100, 100, 101, 102]
    assert rows[2]["discount"] == np.float32(0.99)
    assert frames_of(rows[6]["state"]) == [103] * 4


def test_same_step_autoreset_bootstraps_from_the_given_final_frame() -> None:
    replay = make(autoreset="same_step")
    add(replay, 0)
    add(replay, 1, truncated=np.array([True, False]), final_frames=frame(50).reshape(ENVS, 2, 3))
    add(replay, 2)
    rows = rows_by_id(replay)
    assert frames_of(rows[2]["next_state"]) == [100, 100, 101, 150]
    assert frames_of(rows[3]["next_state"]) == [200, 200, 201, 202]  # this env did not end
    assert sorted(rows) == [0, 1, 2, 3]
    add(replay, 3)
    assert frames_of(rows_by_id(replay)[4]["state"]) == [102] * 4


def test_n_step_return_stops_where_the_episode_does() -> None:
    replay = make(n_step=3, gamma=0.5)
    for t in range(4):
        add(replay, t, reward=2.0**t)
    add(replay, 4, terminated=np.array([True, False]), truncated=np.array([False, True]))
    add(replay, 5)
    rows = rows_by_id(replay)
    assert rows[0]["reward"] == 1 + 0.5 * 2 + 0.25 * 4
    assert rows[0]["discount"] == np.float32(0.125)
    assert frames_of(rows[0]["next_state"]) == [100, 101, 102, 103]
    assert rows[2 * 3]["reward"] == rows[2 * 3 + 1]["reward"] == 8 + 0.5
    assert rows[2 * 3]["discount"] == 0  # terminated
    assert rows[2 * 3 + 1]["discount"] == 0.25  # truncated after two steps
    assert frames_of(rows[2 * 3 + 1]["next_state"]) == [202, 203, 204, 205]


def test_rows_near_the_head_wait_for_their_successors() -> None:
    replay = filled(5, n_step=3)
    assert sorted(rows_by_id(replay)) == [0, 1, 2, 3]


def test_an_episode_may_be_longer_than_its_row_counter_counts() -> None:
    replay = filled(600, capacity=2000, vocab_size=65536)
    rows = rows_by_id(replay)
    assert len(rows) == 2 * 599
    assert all(
        frames_of(rows[2 * t]["state"]) == [97 + t, 98 + t, 99 + t, 100 + t] for t in range(3, 599)
    )


def test_life_loss_ends_the_bootstrap_but_not_the_episode() -> None:
    replay = make(n_step=2)
    for t in range(5):
        add(replay, t, life_lost=YES if t == 2 else None)
    rows = rows_by_id(replay)
    assert [rows[2 * t]["discount"] for t in range(3)] == [np.float32(0.99**2), 0, 0]
    assert rows[2 * 2]["reward"] == 1
    assert frames_of(rows[2 * 2]["next_state"]) == [100, 101, 102, 103]
    runs = replay.sample_sequences(200, 4)
    longest = runs.mask.sum(axis=1).max()
    assert longest == 4
    assert not runs.terminated.any()


def test_reward_sign_is_taken_per_step_and_sequences_stay_raw() -> None:
    replay = make(n_step=3, gamma=0.5, reward_transform="sign")
    for t, reward in enumerate([10.0, -7.0, 0.0, 3.0]):
        add(replay, t, reward=reward)
    assert rows_by_id(replay)[0]["reward"] == 1 - 0.5
    assert replay.sample_sequences(1, 3).reward.tolist() == [[10.0, -7.0, 0.0]]


def test_cut_begins_new_episodes_at_the_next_step_and_not_before() -> None:
    replay, twin = filled(6, n_step=2, seed=3), filled(6, n_step=2, seed=3)
    replay.cut()
    ours, theirs = replay.sample(64), twin.sample(64)
    assert (ours.index == theirs.index).all()
    add(replay, 50)
    add(replay, 51)
    rows = rows_by_id(replay)
    assert sorted(rows) == list(range(10))  # step 5 is a final frame, 6 has one successor
    assert rows[8]["discount"] == np.float32(0.99)
    assert frames_of(rows[8]["next_state"]) == [102, 103, 104, 105]
    add(replay, 52)
    assert frames_of(rows_by_id(replay)[12]["state"]) == [150] * 4


def test_nothing_is_drawn_across_the_write_cursor() -> None:
    replay = filled(100)
    rows = rows_by_id(replay)
    assert len(replay) == replay.capacity == 80
    # 40 steps are kept: three have lost a frame of their history, one has no successor.
    assert sorted(rows) == list(range(2 * 63, 2 * 99))
    for row in rows.values():
        assert np.diff(frames_of(row["state"])).tolist() == [1, 1, 1]


def test_window_holds_state_and_next_state_as_views() -> None:
    replay, twin = filled(seed=1), filled(seed=1)
    batch, plain = replay.sample(16, window=True), twin.sample(16)
    assert batch.window.shape == (16, 5, TOKENS)
    assert np.shares_memory(batch.state, batch.window)
    assert (batch.state == plain.state).all()
    assert (batch.next_state == plain.next_state).all()
    with pytest.raises(ValueError, match=r"window=True needs n_step 1, this buffer has 2"):
        filled(n_step=2).sample(4, window=True)


def test_sequences_follow_the_episode_and_mask_what_comes_after() -> None:
    replay = make(history=2, seed=4)
    for t in range(6):
        add(replay, t, terminated=YES if t == 2 else NO, reward=t)
    add(replay, 6)
    runs = replay.sample_sequences(64, 3)
    by_start = {int(runs.tokens[i, 1, 0]): i for i in range(64)}
    assert set(by_start) == {100, 101, 102, 104, 105, 200, 201, 202, 204, 205}
    i = by_start[101]
    assert frames_of(runs.tokens[i]) == [100, 101, 102, 103, 103]
    assert runs.action[i].tolist() == [1, 2, 0]
    assert runs.reward[i].tolist() == [1, 2, 0]
    assert runs.terminated[i].tolist() == [False, True, False]
    assert runs.mask[i].tolist() == [True, True, False]
    assert not runs.life_lost.any()
    without = {name: runs[name].copy() for name in runs if name != "life_lost"}
    assert "life_lost" not in replay.sample_sequences(64, 3, out=without)
    i = by_start[205]  # the head of the ring
    assert frames_of(runs.tokens[i]) == [204, 205, 206, 206, 206]
    assert runs.mask[i].tolist() == [True, False, False]


@pytest.mark.parametrize("steps", [30, 47, 95])
def test_recent_sequences_come_from_the_last_steps(steps: int) -> None:
    replay = filled(steps, prioritized=False)
    runs = replay.sample_sequences(400, 1, recent=(20, 0.25))
    newest = runs.tokens[:, 3, 0] % 100
    assert set(newest[:100].tolist()) == set(range(steps - 10, steps - 1))  # 20 steps of two envs
    assert newest[100:].min() < steps - 10
    odd = replay.sample_sequences(400, 1, recent=(21, 1.0))  # half a step more is a whole one
    assert (odd.tokens[:, 3, 0] % 100).min() == steps - 11
    with pytest.raises(ValueError, match="no row can be drawn"):
        replay.sample_sequences(4, 1, recent=(1, 1.0))  # the newest rows have no successor
    with pytest.raises(ValueError, match=r"recent is \(0, "):
        replay.sample_sequences(4, 1, recent=(0, 0.5))
    with pytest.raises(ValueError, match=r"recent is \(5, 1.5"):
        replay.sample_sequences(4, 1, recent=(5, 1.5))


def test_without_priorities_every_weight_is_one_and_updates_are_refused() -> None:
    replay = filled(prioritized=False)
    assert (replay.sample(5).weight == 1).all()
    with pytest.raises(ValueError, match="prioritized=False"):
        replay.update_priorities([0], [1.0])


def test_importance_weights() -> None:
    replay = filled(alpha=1.0)
    count = int(replay.stats()["drawable"])
    priority = np.linspace(2, 5, count)
    replay.update_priorities(np.arange(count), priority)
    batch = replay.sample(64, beta=0.7)
    p = priority[batch.index] / priority.sum()
    weight = (count * p) ** -0.7
    np.testing.assert_allclose(batch.weight, weight / weight.max(), rtol=1e-5)


def test_new_rows_get_the_largest_priority_seen() -> None:
    replay = filled(3, alpha=1.0)
    replay.update_priorities([0, 1], [8.0, 3.0])
    replay.update_priorities([0], [0.5])
    before = replay.stats()["priority_sum"]
    add(replay, 3)
    assert replay.stats()["priority_sum"] == before + 2 * 8.0


def test_updates_skip_overwritten_ids_and_the_last_duplicate_wins() -> None:
    replay = filled(10, alpha=1.0)
    batch = replay.sample(16)
    assert replay.update_priorities(batch.index, np.ones(16, np.float32)) == 16
    assert replay.update_priorities([4, 4, 4], [9.0, 1.0, 5.0]) == 3
    assert replay.stats()["priority_sum"] == 17 + 5
    for t in range(60):
        add(replay, t)
    assert replay.update_priorities([4, 120], [1e6, 1.0]) == 1
    assert replay.stats()["max_priority"] == 9


def test_full_size_rows_cost_at_most_700_bytes() -> None:
    replay = TokenReplay(200_000, 8)
    assert replay.nbytes / 200_000 <= 700
    assert replay.frame_shape == (21, 16)


def test_a_writer_samplers_and_a_saver_at_once(tmp_path: Path) -> None:
    replay = filled(10)
    failures: list[BaseException] = []
    done = threading.Event()

    def draw() -> None:
        try:
            while not done.is_set():
                batch = replay.sample(32)
                # Frames and actions of a row were written together.
                assert (batch.state[:, -1, 0] % 100 == batch.action % 100).all()
                replay.update_priorities(batch.index, np.ones(32))
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for t in range(10, 2000):
        add(replay, t % 100)
        if t % 400 == 0:
            replay.save(tmp_path / "snapshot")
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(TokenReplay.load(tmp_path / "snapshot")) == 80
