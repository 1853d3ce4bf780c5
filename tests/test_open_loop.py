"""Open-loop figures against hand-made cases, and against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from wmfast.models.prediction import Prediction, WorldModel
from wmfast.open_loop import action_sensitivity, changed_accuracy, open_loop_quality
from wmfast.types import Segments

K, V, T = 336, 8, 4


class Counts(WorldModel):
    """Cells under `moves` go up by one a step under action 1, and by two under action 2."""

    def __init__(self, moves: int, sure: float = 3.0) -> None:
        super().__init__()
        self.moves, self.sure, self.modes = moves, sure, []

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        self.modes.append(self.training)
        last_bk = history_btk[:, -1]
        said_bk = (last_bk + (torch.arange(K) < self.moves) * action_b[:, None]) % V
        logits = torch.nn.functional.one_hot(said_bk, V) * self.sure
        return Prediction(logits, last_bk, None, None, None, None)


def film(steps: int, moves: int, batch: int = 2) -> Segments:
    """The first `moves` cells count up by one a step; the others stay."""
    tokens = torch.zeros(batch, T + steps, K, dtype=torch.int64)
    tokens[:, :, :moves] = (torch.arange(T + steps) % V)[None, :, None]
    return Segments(
        tokens,
        torch.ones(batch, steps, dtype=torch.int64),
        torch.zeros(batch, steps),
        torch.zeros(batch, steps, dtype=torch.bool),
        torch.ones(batch, steps, dtype=torch.bool),
        torch.zeros(batch, steps, dtype=torch.bool),
    )


def test_a_perfect_model_is_right_at_every_horizon_and_a_copy_at_none_of_the_changed():
    quality = open_loop_quality(Counts(36), [film(10, 36)], (1, 5, 10))
    assert list(quality) == ["1", "5", "10"]
    nll = math.log(math.exp(3.0) + V - 1) - 3.0
    for figures in quality.values():
        assert [figures[name]["accuracy"] for name in figures] == [1.0, 1.0, 1.0]
        assert figures["all"]["copy_accuracy"] == pytest.approx(300 / 336)
        assert figures["changed"]["copy_accuracy"] == 0
        assert figures["all"]["tokens"] == 2 * K
        assert figures["changed"]["tokens"] == figures["moving"]["tokens"] == 2 * 36
        assert figures["moving"]["nll"] == pytest.approx(nll, rel=1e-5)
    assert changed_accuracy(quality, 5) == 1.0


def test_mistakes_add_up_because_the_model_sees_its_own_answers():
    wrong_in_20 = Counts(16)  # 20 of the 36 cells that move stand still in the dream
    quality = open_loop_quality(wrong_in_20, [film(5, 36)], (1, 5))
    for figures in quality.values():
        assert figures["changed"]["accuracy"] == pytest.approx(16 / 36)
        assert figures["all"]["accuracy"] == pytest.approx(316 / 336)


def test_after_a_whole_turn_the_copy_is_right_again_but_everything_moves():
    figures = open_loop_quality(Counts(36), [film(8, 36)], (8,))["8"]
    assert figures["changed"]["tokens"] == 0
    assert figures["changed"]["accuracy"] == 0
    assert figures["moving"]["tokens"] == 2 * 36
    assert figures["moving"]["copy_accuracy"] == 1.0
    assert figures["all"]["copy_nll"] == 0


def test_the_copys_likelihood_spreads_its_errors_over_the_other_codes():
    figures = open_loop_quality(Counts(36), [film(1, 36)], (1,))["1"]
    right = 300 / 336
    wrong_nll = -math.log((1 - right) / (V - 1))
    assert figures["changed"]["copy_nll"] == pytest.approx(wrong_nll)
    assert figures["all"]["copy_nll"] == pytest.approx(
        -right * math.log(right) + (1 - right) * wrong_nll
    )


def test_rows_count_while_their_game_goes_on():
    batch = film(5, 36)
    batch.terminated_bs[0, 2] = True
    batch.mask_bs[0, 3:] = False
    quality = open_loop_quality(Counts(36), [batch], (1, 2, 3, 5))
    tokens = {horizon: figures["all"]["tokens"] for horizon, figures in quality.items()}
    assert tokens == {"1": 2 * K, "2": 2 * K, "3": K, "5": K}


def test_batches_add_up_and_the_mode_comes_back():
    model = Counts(16).train()
    batches = [film(5, 36, batch=3), film(5, 20, batch=1)]
    both = open_loop_quality(model, batches, (5,))["5"]["changed"]
    assert both["accuracy"] == pytest.approx((3 * 16 + 16) / (3 * 36 + 20))
    assert model.training
    assert not any(model.modes)


def test_action_sensitivity_is_the_divergence_of_the_answers():
    batch = film(1, 36, batch=4)
    assert action_sensitivity(Counts(0), [batch], 3) == pytest.approx(0, abs=1e-6)
    p = math.exp(3.0) / (math.exp(3.0) + V - 1)
    q = (1 - p) / (V - 1)
    divergence = p * math.log(p / q) + q * math.log(q / p)  # action 1 against action 2
    assert action_sensitivity(Counts(36), [batch], 3) == pytest.approx(36 * divergence, rel=1e-4)


def test_short_segments_and_no_segments_are_refused():
    with pytest.raises(ValueError, match="5 steps: horizon 10"):
        open_loop_quality(Counts(1), [film(5, 1)])
    with pytest.raises(ValueError, match="empty"):
        open_loop_quality(Counts(1), [])
