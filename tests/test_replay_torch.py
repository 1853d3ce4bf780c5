"""ReplaySampler: the same draws as TokenReplay, as tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accounting_lane import AccountingLane

import wmfast.replay
from wmfast import TokenReplay
from wmfast.replay import ReplaySampler
from wmfast.replay_staging import TransitionDraw


@pytest.fixture(params=["cpu", "lane", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the batches go; ``lane`` is the CPU by the accounting lane."""
    if request.param != "lane":
        return str(request.param)
    monkeypatch.setattr(wmfast.replay, "lane_to", lambda device: AccountingLane())
    return "cpu"


def filled(n_step: int) -> TokenReplay:
    replay = TokenReplay(400, 2, n_step=n_step, seed=1, frame_shape=(3, 4))
    rng = np.random.default_rng(0)
    for _ in range(60):
        replay.add(
            rng.integers(0, 512, (2, 12), dtype=np.uint16),
            rng.integers(0, 18, 2),
            rng.normal(size=2),
            rng.random(2) < 0.05,
            rng.random(2) < 0.05,
        )
    return replay


def test_uint8_frames_travel_as_bytes(device: str) -> None:
    replay = TokenReplay(40, 2, frame_shape=(3, 4), dtype="uint8", vocab_size=256)
    no = np.zeros(2, bool)
    for t in range(15):
        replay.add(np.full((2, 12), 17 * t, np.uint8), [17 * t] * 2, [0, 0], no, no)
    sampler = ReplaySampler(replay, device)
    batch, _ = sampler.transitions(16)
    assert batch.state_btk.dtype == torch.int64
    assert (batch.state_btk[:, -1] == batch.action_b[:, None]).all()
    assert (batch.next_state_btk[:, -1] == batch.action_b[:, None] + 17).all()
    segments = sampler.segments(16, 2)
    assert (segments.tokens_bsk[:, 3, 0] == segments.action_bs[:, 0]).all()
    assert TransitionDraw(replay, 16).travels["window"][1] is np.uint8


@pytest.mark.parametrize("n_step", [1, 3])
def test_transitions_are_those_of_the_buffer(device: str, n_step: int) -> None:
    replay, twin = filled(n_step), filled(n_step)
    sampler = ReplaySampler(replay, device)
    for _ in range(4):  # staging memory is used in turn
        batch, index = sampler.transitions(32, beta=0.5)
        plain = twin.sample(32, beta=0.5)
        assert batch.state_btk.dtype == batch.next_state_btk.dtype == torch.int64
        assert batch.state_btk.is_contiguous()
        assert batch.next_state_btk.is_contiguous()
        for tensor, array in [
            (batch.state_btk, plain.state),
            (batch.action_b, plain.action),
            (batch.reward_b, plain.reward),
            (batch.next_state_btk, plain.next_state),
            (batch.discount_b, plain.discount),
            (batch.weight_b, plain.weight),
        ]:
            assert tensor.device.type == device
            assert (tensor.cpu().numpy() == array).all()
        assert (index == plain.index).all()
        assert replay.update_priorities(index, np.ones(32)) == 32
        twin.update_priorities(index, np.ones(32))


def test_segments_are_those_of_the_buffer(device: str) -> None:
    replay, twin = filled(1), filled(1)
    sampler = ReplaySampler(replay, device)
    for length in (1, 5, 5):
        segments = sampler.segments(16, length, recent=(50, 0.5))
        plain = twin.sample_sequences(16, length, recent=(50, 0.5))
        assert segments.tokens_bsk.dtype == torch.int64
        for tensor, array in zip(segments, (plain[name] for name in plain), strict=True):
            assert tensor.device.type == device
            assert (tensor.cpu().numpy() == array).all()


def test_a_drawn_batch_does_not_change_with_the_next_draw() -> None:
    sampler = ReplaySampler(filled(1))
    first, _ = sampler.transitions(8)
    kept = [tensor.clone() for tensor in first]
    sampler.transitions(8)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


NUMPY_ALONE = """
import sys

class OnlyNumpy:
    '''Refuses what is neither numpy, nor wmfast, nor of the standard library.'''
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"numpy", "wmfast"} and top[0] != "_":
            raise ImportError(f"{name} is not numpy")

sys.meta_path.insert(0, OnlyNumpy())
try:
    import torch
except ImportError:
    pass
else:
    raise AssertionError("torch could be imported")
"""


def test_the_buffer_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    program = f"""{NUMPY_ALONE}
import numpy as np
from wmfast import TokenReplay
replay = TokenReplay(40, 2, frame_shape=(3,), path={str(tmp_path / "store")!r})
no = np.zeros(2, bool)
for t in range(9):
    replay.add(np.full((2, 3), t, np.uint16), [t, t], [1.0, 1.0], no, no)
batch = replay.sample(4)
assert (batch.state[:, -1, 0] == batch.action).all()
assert replay.sample_sequences(4, 3).tokens.shape == (4, 7, 3)
assert replay.update_priorities(batch.index, np.ones(4)) == 4
replay.save({str(tmp_path / "snapshot")!r})
assert len(TokenReplay.load({str(tmp_path / "snapshot")!r})) == 18
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
