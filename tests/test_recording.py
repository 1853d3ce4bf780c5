"""A dream beside the game it began in: what the model is given, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wmfast.recording
from wmfast.evaluate import RecordedStep
from wmfast.imagine import Dream
from wmfast.models.prediction import Prediction
from wmfast.recording import Recording

STEPS = 20


def recorded() -> Recording:
    """One game whose frame i is all token i and whose action i is i."""
    recording = Recording(1, STEPS, vocab_size=64, seed=0)
    no = np.zeros(1, np.bool_)
    for step in range(STEPS):
        tokens = np.full((1, 336), step, np.uint16)
        actions = np.array([step])
        recording.add(RecordedStep(tokens, actions, np.zeros(1, np.float32), no, no, no, no))
    return recording


class TokenPainter:
    """Decodes a frame of token v as the grey level v."""

    def decode(self, tokens_bk: Tensor) -> Tensor:
        return tokens_bk[:, 0].to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 84, 64, 3).contiguous()


@pytest.mark.parametrize(
    ("refresh", "histories"), [(0, [[7, 8, 9, 10]]), (3, [[7, 8, 9, 10], [10, 11, 12, 13]])]
)
def test_a_dream_begins_from_real_frames_again_every_refresh_steps(
    refresh: int, histories: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[int], list[int]]] = []

    def imagine(
        _model: object, history: Tensor, actions: Tensor, horizon: int, **_sampling: object
    ) -> Dream:
        calls.append((history[0, :, 0].tolist(), actions[0].tolist()))
        return Dream(torch.full((1, horizon, 336), 50), actions, None, None)

    monkeypatch.setattr(wmfast.recording, "imagine", imagine)
    film = np.arange(STEPS, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(84, 1).repeat(64, 2)
    real, dreamed = recorded().dream(
        None, TokenPainter(), film.repeat(3, 3), start=10, steps=5, refresh=refresh,
        temperature=0.0, top_k=None, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    assert [history for history, _ in calls] == histories
    assert [action for _, actions in calls for action in actions] == [10, 11, 12, 13, 14]
    assert real[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14, 15]
    assert dreamed[:, 0, 0, 0].tolist() == [10, 50, 50, 50, 50, 50]


class Undecided(nn.Module):
    """Every token of 64 is as likely as any other, but for token 7, which is e times likelier."""

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        logits_bkv = torch.zeros(len(action_b), 336, 64)
        logits_bkv[..., 7] = 1.0
        return Prediction(logits_bkv, history_btk[:, -1], None, None, None, None)


def test_a_dream_is_sampled_as_asked_and_the_same_for_the_same_seed() -> None:
    film = np.zeros((STEPS, 84, 64, 3), np.uint8)

    def dreamed(**options: Any) -> np.ndarray:
        sampling = {"temperature": 0.0, "top_k": None, "seed": 0} | options
        return recorded().dream(
            Undecided(), TokenPainter(), film, start=10, steps=5, refresh=0,
            device=torch.device("cpu"), **sampling,
        )[1][1:, 0, 0, 0]  # fmt: skip

    assert dreamed().tolist() == dreamed(temperature=1.0, top_k=1).tolist() == [7] * 5
    one, other = dreamed(temperature=1.0), dreamed(temperature=1.0, seed=1)
    assert one.tolist() == dreamed(temperature=1.0).tolist() != other.tolist()
