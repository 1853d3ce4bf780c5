"""PrefetchingSampler: the batches of ReplaySampler, drawn ahead, whole and in order.

The way to a GPU is tried without one by ``AccountingLane``.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from accounting_lane import AccountingLane

import wmfast.replay
from wmfast import TokenReplay
from wmfast.replay import PrefetchingSampler, ReplaySampler
from wmfast.replay_staging import CudaLane

ENVS, TOKENS = 2, 6


@pytest.fixture(params=["cpu", "lane", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the batches go; ``lane`` is the CPU by the accounting lane."""
    if request.param != "lane":
        return str(request.param)
    monkeypatch.setattr(wmfast.replay, "lane_to", lambda device: AccountingLane())
    return "cpu"


def add(replay: TokenReplay, t: int, ended: bool = False) -> None:
    """A step whose frames, actions and rewards tell its time: env 0 has even tokens, 1 odd ones."""
    time_of_env = 2 * t + np.arange(ENVS)
    frames = np.repeat(time_of_env[:, None], TOKENS, axis=1).astype(np.uint16)
    flags = np.full(ENVS, ended)
    replay.add(frames, time_of_env, time_of_env, flags, np.zeros(ENVS, bool))


def filled(steps: int = 60, **options: object) -> TokenReplay:
    options = {"capacity": 400, "frame_shape": (2, 3), "vocab_size": 65536, "seed": 3, **options}
    replay = TokenReplay(num_envs=ENVS, **options)
    for t in range(steps):
        add(replay, t, ended=t % 17 == 16)
    return replay


def assert_same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3])
def test_the_same_transitions_as_drawn_plainly(device: str, n_step: int, depth: int) -> None:
    plain = ReplaySampler(filled(n_step=n_step))
    kept = []
    with PrefetchingSampler(filled(n_step=n_step), device, depth=depth) as sampler:
        for _ in range(3 * depth + 3):
            batch, index = sampler.transitions(16, beta=0.7)
            expected, expected_index = plain.transitions(16, beta=0.7)
            assert batch.state_btk.is_contiguous()
            assert batch.next_state_btk.is_contiguous()
            assert_same(batch, expected)
            assert (index == expected_index).all()
            kept.append((batch, index, expected, expected_index))
    for batch, index, expected, expected_index in kept:  # later draws leave them alone
        assert_same(batch, expected)
        assert (index == expected_index).all()


def test_the_same_segments_as_drawn_plainly(device: str) -> None:
    plain = ReplaySampler(filled())
    with PrefetchingSampler(filled(), device) as sampler:
        for _ in range(8):
            batch = sampler.segments(8, 5, recent=(40, 0.5))
            assert_same(batch, plain.segments(8, 5, recent=(40, 0.5)))


def test_batches_drawn_while_another_thread_adds_are_whole(device: str) -> None:
    replay = filled(300, history=3)
    stop = threading.Event()

    def write() -> None:
        t = 300
        while not stop.is_set() and t < 32_000:
            add(replay, t)
            t += 1

    writer = threading.Thread(target=write)
    with PrefetchingSampler(replay, device, depth=3) as sampler:
        sampler.segments(8, 4)
        writer.start()
        try:
            newest: list[int] = []
            deadline = time.monotonic() + 30
            while len(newest) < 150 or newest[-1] < newest[0] + 400:
                assert time.monotonic() < deadline, "the writer came to nothing"
                batch, index = sampler.transitions(64)
                time_b = torch.from_numpy(index).to(batch.action_b.device)  # id = 2 t + env
                assert (batch.state_btk[:, -1] == time_b[:, None]).all()
                assert (batch.action_b == time_b).all()
                assert (batch.reward_b == time_b).all()
                steps = batch.state_btk[:, 1:] - batch.state_btk[:, :-1]
                assert ((steps == 2) | (steps == 0)).all()  # 0: before an episode's first frame
                assert (batch.next_state_btk[:, -1] == time_b[:, None] + 2).all()
                assert (batch.next_state_btk[:, :-1] == batch.state_btk[:, 1:]).all()
                newest.append(int(index.max()))
                segments = sampler.segments(8, 4)
                within = segments.mask_bs
                first = segments.tokens_bsk[:, 2:-1, 0]
                assert (segments.action_bs == first)[within].all()
                assert (segments.tokens_bsk == segments.tokens_bsk[..., :1]).all()
        finally:
            stop.set()
            writer.join()


def test_a_reproducible_batch_is_exactly_depth_calls_old(device: str) -> None:
    depth = 2
    replay, twin = filled(), filled()
    plain, drawn = ReplaySampler(twin), deque()
    with PrefetchingSampler(replay, device, depth=depth, reproducible=True) as sampler:
        for call in range(20):
            beta = 0.4 + 0.01 * call
            batch, index = sampler.transitions(16, beta=beta)
            while len(drawn) <= depth:
                drawn.append(plain.transitions(16, beta=beta))
            expected, expected_index = drawn.popleft()
            assert_same(batch, expected)
            assert (index == expected_index).all()
            for buffer in (replay, twin):
                buffer.update_priorities(index, 1.0 + index % 7)
                add(buffer, 60 + call)


def test_after_restart_nothing_is_drawn(device: str) -> None:
    replay = filled()
    with PrefetchingSampler(replay, device, depth=4) as sampler:
        for _ in range(5):
            sampler.transitions(4096)
            sampler.restart()
            sampled = replay.stats()["sampled"]
            time.sleep(0.01)
            assert replay.stats()["sampled"] == sampled


def test_restart_and_save_make_a_resumed_run_the_same(device: str, tmp_path: Path) -> None:
    def run(sampler: PrefetchingSampler, steps: range) -> list[list[int]]:
        drawn = []
        for t in steps:
            index = sampler.transitions(8)[1]
            sampler.segments(4, 2)
            sampler.replay.update_priorities(index, 1.0 + index % 5)
            add(sampler.replay, t)
            drawn.append(index.tolist())
        return drawn

    with PrefetchingSampler(filled(), device, reproducible=True) as sampler:
        run(sampler, range(60, 70))
        sampler.restart()
        sampler.replay.save(tmp_path / "buffer")
        went_on = run(sampler, range(70, 80))
    loaded = TokenReplay.load(tmp_path / "buffer")
    with PrefetchingSampler(loaded, device, reproducible=True) as sampler:
        assert run(sampler, range(70, 80)) == went_on


def test_a_call_of_another_shape_is_answered_in_that_shape(device: str) -> None:
    with PrefetchingSampler(filled(), device) as sampler:
        for size, length in [(8, 3), (16, 3), (16, 2), (8, 3)]:
            batch, index = sampler.transitions(size)
            assert batch.state_btk.shape == (size, 4, TOKENS)
            assert len(index) == size
            assert sampler.segments(size, length).action_bs.shape == (size, length)
        for recent in (None, (4, 1.0), None):
            oldest = sampler.segments(64, 1, recent=recent).action_bs.min().item()
            assert (oldest >= 2 * 55) == (recent is not None)


def test_an_error_is_raised_as_it_is_and_the_next_call_draws_anew(device: str) -> None:
    replay = filled(0)
    with PrefetchingSampler(replay, device) as sampler:
        for _ in range(2):
            with pytest.raises(ValueError, match="no row can be drawn: 0 steps are stored"):
                sampler.transitions(4)
        for t in range(20):
            add(replay, t)
        _, index = sampler.transitions(4)
        replay.update_priorities(np.arange(40), np.zeros(40))
        with pytest.raises(ValueError, match="all priorities are 0"):  # noqa: PT012
            for _ in range(4):  # `depth` batches were drawn before
                sampler.transitions(4)
        assert sampler.segments(4, 1).action_bs.shape == (4, 1)  # the other kind goes on
        replay.update_priorities(index, np.ones(4))
        assert set(sampler.transitions(4)[1]) <= set(index)


class Broken:
    """Of a buffer what the sampler asks for; its draws fail like a program's own errors."""

    history, n_step, frame_shape, dtype = 2, 1, (3,), np.dtype(np.uint16)

    def sample(self, *arguments: object, **options: object) -> None:
        raise KeyError("an error that says what it is")


def test_errors_keep_their_type_and_show_where_they_were_raised() -> None:
    with (
        PrefetchingSampler(Broken()) as sampler,
        pytest.raises(KeyError, match="says what it is") as caught,
    ):
        sampler.transitions(4)
    assert caught.traceback[-1].name == "sample"


def test_bad_arguments_are_refused_by_the_call_that_has_them() -> None:
    with pytest.raises(ValueError, match="depth is 0, must be at least 1"):
        PrefetchingSampler(filled(), depth=0)
    with PrefetchingSampler(filled()) as sampler:
        sampler.transitions(4)
        for beta in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"beta is {beta}, must be finite"):
                sampler.transitions(4, beta=beta)
        with pytest.raises(ValueError, match="batch_size is 0, must be positive"):
            sampler.transitions(0)


def threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("replay-prefetch")]


def test_no_thread_is_left() -> None:
    with PrefetchingSampler(filled()) as sampler:
        batch, _ = sampler.transitions(4)
        assert len(threads()) == 1
    assert threads() == []
    sampler.close()
    with pytest.raises(RuntimeError, match="this PrefetchingSampler is closed"):
        sampler.transitions(4)
    assert batch.state_btk.shape == (4, 4, TOKENS)

    sampler = PrefetchingSampler(filled())  # dropped, not closed
    sampler.transitions(4)
    del sampler
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []


def test_an_error_in_the_with_block_ends_the_thread_too() -> None:
    def fail() -> None:
        with PrefetchingSampler(filled()) as sampler:
            sampler.transitions(4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert threads() == []


def test_the_interpreter_exits_while_batches_are_drawn_ahead() -> None:
    program = (
        "import numpy as np\n"
        "from wmfast import TokenReplay\n"
        "from wmfast.replay import PrefetchingSampler\n"
        "replay = TokenReplay(2000, 2)\n"
        "no = np.zeros(2, bool)\n"
        "for t in range(1000): replay.add(np.zeros((2, 336), np.uint16), [0, 0], [0, 0], no, no)\n"
        "sampler = PrefetchingSampler(replay, depth=8)\n"
        "sampler.transitions(512)\n"
        "print('drawn')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "drawn\n", "")


def test_a_forked_child_is_told_and_not_kept_waiting() -> None:
    program = """
import os
import numpy as np
from wmfast import TokenReplay
from wmfast.replay import PrefetchingSampler

replay = TokenReplay(2000, 2)
no = np.zeros(2, bool)
for t in range(1000):
    replay.add(np.zeros((2, 336), np.uint16), [0, 0], [0, 0], no, no)
with PrefetchingSampler(replay, depth=8) as sampler:
    sampler.transitions(512)
    child = os.fork()
    try:
        sampler.transitions(512)
        assert child, "the child got a batch"
    except RuntimeError as error:
        assert "belongs to the process that forked" in str(error)
        assert not child
        sampler.restart()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_drawn_batches_are_sent_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = AccountingLane()
    monkeypatch.setattr(wmfast.replay, "lane_to", lambda device: lane)
    with PrefetchingSampler(filled(), depth=3, reproducible=True) as sampler:
        for call in range(5):
            sampler.transitions(8)
            assert lane.sent == call + 4  # this call's and the three ahead
        assert len(lane.under_way) <= 4
        assert lane.blocks == 4  # used again and again


@pytest.mark.gpu
def test_a_copy_does_not_wait_for_the_kernels_that_are_queued() -> None:
    lane = CudaLane(torch.device("cuda"))
    block = lane.memory(1 << 16)
    block.fill_(7)
    lane.receive(*lane.send(block))  # device memory is there from here on
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)  # some 0.3 s of the current stream
    sent, copied = lane.send(block)
    copied.synchronize()
    assert not torch.cuda.current_stream().query()
    lane.receive(sent, copied)
    assert (sent == 7).all().item()
