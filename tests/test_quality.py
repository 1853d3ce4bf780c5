"""World-model quality on hand-made cases."""

import math

import pytest
import torch
from torch import Tensor

from wmfast.models.prediction import Prediction, WorldModel
from wmfast.quality import world_model_quality
from wmfast.types import Segments

K, V = 336, 4


class Shift(WorldModel):
    """Says "last + 1" in the first 100 cells and "last" elsewhere, each with probability 0.7.

    The action tells what it says of reward (bit 0) and end (bit 1).
    """

    def __init__(self, *, heads: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.modes: list[bool] = []

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        self.modes.append(self.training)
        last_bk = history_btk[:, -1]
        said_bk = (last_bk + (torch.arange(K) < 100)) % V
        says = torch.nn.functional.one_hot(said_bk, V)
        logits = torch.log(torch.where(says == 1, 0.7, 0.1))
        sign = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])[action_b & 1]
        if not self.heads:
            return Prediction(logits, last_bk, None, None, None, None)
        return Prediction(
            logits, last_bk, None, sign, torch.ones(len(action_b)), (action_b >> 1) * 4.0 - 2.0
        )


def segments(
    actions: list[int], rewards: list[float], ended: list[bool], mask: list[bool]
) -> Segments:
    """Cells 0 to 49 change by one; where a row ended 50 to 99 by two: a lie, to be ignored."""
    batch = len(actions)
    tokens = torch.randint(V, (batch, 5, K), generator=torch.Generator().manual_seed(0))
    tokens[:, 4] = (tokens[:, 3] + (torch.arange(K) < 50)) % V
    tokens[torch.tensor(ended), 4, 50:100] += 2
    tokens %= V
    return Segments(
        tokens,
        torch.tensor(actions)[:, None],
        torch.tensor(rewards)[:, None],
        torch.tensor(ended)[:, None],
        torch.tensor(mask)[:, None],
        torch.zeros(batch, 1, dtype=torch.bool),
    )


def test_quality_of_a_hand_made_case():
    live = segments([0, 1, 1, 2], [0.0, 10.0, 0.0, -5.0], [False] * 4, [True] * 4)
    rest = segments([3, 2, 3], [5.0, 0.0, 5.0], [True, True, True], [True, False, False])
    quality = world_model_quality(Shift(), [live, rest])
    # 50 of 336 changed, all right; of the 286 static ones the 50 that it moves are wrong.
    assert quality["tokens"] == 4 * K
    assert quality["changed_tokens"] == 4 * 50
    assert quality["accuracy"] == pytest.approx(286 / 336)
    assert quality["copy_accuracy"] == pytest.approx(286 / 336)
    assert quality["changed_accuracy"] == 1.0
    assert quality["copy_changed_accuracy"] == 0.0
    assert quality["static_accuracy"] == pytest.approx(236 / 286)
    assert quality["copy_static_accuracy"] == 1.0
    nll = -(286 * math.log(0.7) + 50 * math.log(0.1)) / 336
    assert quality["nll"] == pytest.approx(nll, rel=1e-5)
    copied = 286 / 336
    copy_nll = -copied * math.log(copied) - (1 - copied) * math.log((1 - copied) / 3)
    assert quality["copy_nll"] == pytest.approx(copy_nll)
    # Steps: the four live ones and the first that ended. Rewards at 1, 3, 4; said at 1, 2, 4.
    assert (quality["steps"], quality["rewards"], quality["ends"]) == (5, 3, 1)
    assert quality["reward_precision"] == pytest.approx(2 / 3)
    assert quality["reward_recall"] == pytest.approx(2 / 3)
    # Ends: one, at 4; said at 3 and 4.
    assert quality["done_precision"] == 0.5
    assert quality["done_recall"] == 1.0


def test_quality_does_not_depend_on_the_batching():
    batch = segments([0, 1, 2, 3], [0.0, 1.0, 2.0, 0.0], [False, True, False, False], [True] * 4)
    whole = world_model_quality(Shift(), [batch])
    rows = [Segments(*(field[i : i + 1] for field in batch)) for i in range(4)]
    assert world_model_quality(Shift(), rows) == pytest.approx(whole)


def test_without_cases_ratios_are_zero():
    quality = world_model_quality(Shift(), [segments([0], [0.0], [True], [False])])
    assert quality["tokens"] == quality["steps"] == 0
    assert all(math.isfinite(value) for value in quality.values())
    assert quality["reward_recall"] == quality["changed_accuracy"] == 0.0


def test_a_model_without_heads_has_no_event_figures():
    batch = segments([0], [1.0], [False], [True])
    quality = world_model_quality(Shift(heads=False), [batch])
    assert not {"reward_precision", "reward_recall", "done_precision", "done_recall"} & set(quality)
    assert quality["rewards"] == 1


def test_eval_mode_for_the_call_only():
    model = Shift().train()
    world_model_quality(model, [segments([0], [0.0], [False], [True])])
    assert model.modes == [False]
    assert model.training


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="batches is empty"):
        world_model_quality(Shift(), [])
