"""The curiosity bonus against errors and means written out by hand."""

import math

import torch
from torch import Tensor

from wmfast.curiosity import Curiosity
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.types import Transitions

K, V, T, GAMMA = 12, 8, 4, 0.9
SURE = 3.0


class Repeats(WorldModel):
    """Expects the last frame again; notes whether it was in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        self.modes.append(self.training)
        last_bk = history_btk[:, -1]
        logits = torch.nn.functional.one_hot(last_bk, V).float() * SURE
        return Prediction(logits, last_bk, None, None, None, None)


WHOLE = math.log(math.exp(SURE) + V - 1)  # logsumexp
ERROR = {True: WHOLE - SURE, False: WHOLE}  # by whether a cell stays the same


def transitions(
    changes: list[int], n_step: int, discount: list[float] | None = None
) -> Transitions:
    """Rows whose frame after the first step differs from the last one in so many cells."""
    frames = torch.zeros(len(changes), T + n_step, K, dtype=torch.int64)
    for row, count in enumerate(changes):
        frames[row, T, :count] = 1
        frames[row, T + 1 :] = 5  # later frames must not matter
    return Transitions(
        state_btk=frames[:, :T],
        action_b=torch.zeros(len(changes), dtype=torch.int64),
        reward_b=torch.zeros(len(changes)),
        next_state_btk=frames[:, n_step:],
        discount_b=torch.tensor(discount or [GAMMA**n_step] * len(changes)),
        weight_b=torch.ones(len(changes)),
    )


def error(changed: int) -> float:
    return (changed * ERROR[False] + (K - changed) * ERROR[True]) / K


def test_the_bonus_is_the_error_on_the_next_frame_over_its_mean():
    for n_step in range(1, T + 1):
        batch = transitions([0, 3, 12], n_step)
        bonus_b = Curiosity(0.1).bonus(Repeats(), batch, n_step=n_step, gamma=GAMMA)
        errors = torch.tensor([error(changed) for changed in (0, 3, 12)])
        torch.testing.assert_close(bonus_b, 0.1 * errors / errors.mean())


def test_errors_are_measured_against_those_of_earlier_batches():
    curiosity, model = Curiosity(2.0), Repeats().train()
    first = curiosity.bonus(model, transitions([6], 1), n_step=1, gamma=GAMMA)
    second = curiosity.bonus(model, transitions([0], 1), n_step=1, gamma=GAMMA)
    mean = (0.99 * error(6) + error(0)) / 1.99
    torch.testing.assert_close(first, torch.tensor([2.0]))
    torch.testing.assert_close(second, torch.tensor([2.0 * error(0) / mean]))
    assert model.training
    assert model.modes == [False, False]


def test_a_return_that_ended_early_has_no_bonus_and_does_not_move_the_mean():
    early = [GAMMA**3, 0.0, GAMMA**2]  # whole, ended, cut off
    curiosity = Curiosity(1.0)
    batch = transitions([3, 12, 12], 3, early)
    bonus_b = curiosity.bonus(Repeats(), batch, n_step=3, gamma=GAMMA)
    torch.testing.assert_close(bonus_b, torch.tensor([1.0, 0.0, 0.0]))
    before = curiosity.state_dict()["level"].clone()
    nothing_b = curiosity.bonus(Repeats(), transitions([12], 3, [0.0]), n_step=3, gamma=GAMMA)
    assert nothing_b.tolist() == [0.0]
    assert torch.equal(curiosity.level, before)
