"""The loss of every world model against hand computations, row by row."""

import math

import pytest
import torch
from torch import Tensor

from wmfast.models.conv_world_model import sample_cells
from wmfast.models.events import RewardDoneHeads
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.types import Segments

K, V = 336, 5


def prediction(batch: int, seed: int = 0, *, copy_gate: bool, heads: bool = True) -> Prediction:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float32)

    return Prediction(
        logits_bkv=normal(batch, K, V) * 2,
        last_bk=torch.randint(V, (batch, K), generator=g),
        copy_logit_bk=normal(batch, K) * 2 if copy_gate else None,
        reward_sign_logits_bc=normal(batch, 3) if heads else None,
        reward_magnitude_b=normal(batch) + 2 if heads else None,
        done_logit_b=normal(batch) if heads else None,
        life_logit_b=normal(batch) if heads else None,
    )


class Fixed(WorldModel):
    """Answers a given prediction, whatever it is asked."""

    def __init__(self, answer: Prediction, done_weight: float = 20.0) -> None:
        super().__init__()
        self.answer, self.done_weight = answer, done_weight

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        return self.answer


def segments(
    answer: Prediction,
    reward: list[float],
    ended: list[bool],
    mask: list[bool],
    lost: list[bool] | None = None,
):
    """Targets equal the last frame in 300 of 336 cells."""
    g = torch.Generator().manual_seed(9)
    batch = len(reward)
    tokens = torch.randint(V, (batch, 5, K), generator=g)
    tokens[:, 3] = answer.last_bk
    tokens[:, 4] = (answer.last_bk + (torch.arange(K) >= 300) * 2) % V
    return Segments(
        tokens,
        torch.zeros(batch, 1, dtype=torch.int64),
        torch.tensor(reward)[:, None],
        torch.tensor(ended)[:, None],
        torch.tensor(mask)[:, None],
        torch.tensor(lost or [False] * batch)[:, None],
    )


def mixture(answer: Prediction) -> Tensor:
    """The mixture in its plain form, with a one-hot: p = g onehot(last) + (1 - g) softmax(z)."""
    own = answer.logits_bkv.double().softmax(-1)
    if answer.copy_logit_bk is None:
        return own
    gate = answer.copy_logit_bk.double().sigmoid()[..., None]
    return gate * torch.nn.functional.one_hot(answer.last_bk, V) + (1 - gate) * own


@pytest.mark.parametrize("copy_gate", [False, True])
def test_score_and_logits_are_those_of_the_mixture(copy_gate):
    answer = prediction(3, copy_gate=copy_gate)
    probability = mixture(answer)
    torch.testing.assert_close(
        answer.token_logits().softmax(-1).double(), probability, atol=1e-6, rtol=1e-5
    )
    assert torch.equal(answer.tokens(), probability.argmax(-1))
    for shift in range(V):
        target = (answer.last_bk + shift) % V
        nll_bk, right_bk = answer.score(target)
        expected = -probability.gather(-1, target[..., None]).squeeze(-1).log()
        torch.testing.assert_close(nll_bk.double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(right_bk, probability.argmax(-1) == target)


def test_score_stays_finite_where_the_plain_mixture_underflows():
    answer = prediction(1, copy_gate=True)
    extreme = answer._replace(
        logits_bkv=answer.logits_bkv * 200, copy_logit_bk=torch.full((1, K), 200.0)
    )
    logits = extreme.logits_bkv.clone().requires_grad_()
    nll_bk, _ = extreme._replace(logits_bkv=logits).score((extreme.last_bk + 1) % V)
    nll_bk.sum().backward()
    assert torch.isfinite(nll_bk).all()
    assert nll_bk.min() > 199
    assert torch.isfinite(logits.grad).all()


def test_ties_go_to_the_lowest_token():
    answer = prediction(1, copy_gate=False)
    flat = answer._replace(logits_bkv=torch.zeros(1, K, V))
    assert (flat.tokens() == 0).all()


def test_loss_of_live_masked_and_ended_rows():
    answer = prediction(4, copy_gate=True)
    rewards, ended = [0.0, 50.0, -10.0, 7.0], [False, False, True, False]
    lost = [False, True, False, True]
    batch = segments(answer, rewards, ended, mask=[True, True, True, False], lost=lost)
    loss, metrics = Fixed(answer, done_weight=20.0).loss(batch)

    # Tokens: rows 0 and 1; row 2 ended (its frame is stale), row 3 is masked.
    target = batch.tokens_bsk[:2, 4]
    probability = mixture(answer)[:2]
    nll = -probability.gather(-1, target[..., None]).log().mean()
    right = probability.argmax(-1) == target
    assert metrics["token_loss"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["token_accuracy"] == pytest.approx(right.double().mean().item(), abs=1e-6)
    assert metrics["copy_accuracy"] == pytest.approx(300 / 336, abs=1e-6)
    changed = right[:, 300:].double().mean().item()
    assert metrics["changed_accuracy"] == pytest.approx(changed, abs=1e-6)

    # Reward: rows 0, 1, 2; the magnitude only where the reward is not zero.
    sign = answer.reward_sign_logits_bc.double().log_softmax(-1)
    magnitude = answer.reward_magnitude_b.double().tolist()
    errors = [abs(magnitude[1] - math.log(51.0)), abs(magnitude[2] - math.log(11.0))]
    huber = [0.5 * error**2 if error < 1 else error - 0.5 for error in errors]
    reward = -(sign[0, 1] + sign[1, 2] + sign[2, 0]).item() / 3 + sum(huber) / 2
    assert metrics["reward_loss"] == pytest.approx(reward, rel=1e-5)

    # Done: rows 0, 1, 2, the positive one weighted by 20, at the logit shifted by log 20.
    shifted = (answer.done_logit_b.double() + math.log(20.0)).sigmoid().tolist()
    bce = -math.log(1 - shifted[0]) - math.log(1 - shifted[1]) - 20 * math.log(shifted[2])
    assert metrics["done_loss"] == pytest.approx(bce / 3, rel=1e-5)
    # A lost life, in row 1, likewise.
    shifted = (answer.life_logit_b.double() + math.log(20.0)).sigmoid().tolist()
    lives = -math.log(1 - shifted[0]) - 20 * math.log(shifted[1]) - math.log(1 - shifted[2])
    assert metrics["life_loss"] == pytest.approx(lives / 3, rel=1e-5)
    assert loss.item() == pytest.approx(nll.item() + reward + (bce + lives) / 3, rel=1e-5)


def test_stale_frames_and_masked_rows_never_matter():
    answer = prediction(3, copy_gate=True)
    batch = segments(answer, [0.0, 10.0, 3.0], [False, True, False], mask=[True, True, False])
    loss, _ = Fixed(answer).loss(batch)
    tokens = batch.tokens_bsk.clone()
    tokens[1:, 4] = (tokens[1:, 4] + 1) % V
    rewards = batch.reward_bs.clone()
    rewards[2] = 99.0
    assert torch.equal(Fixed(answer).loss(batch._replace(tokens_bsk=tokens))[0], loss)
    assert torch.equal(Fixed(answer).loss(batch._replace(reward_bs=rewards))[0], loss)
    assert not torch.equal(
        Fixed(answer).loss(batch._replace(reward_bs=batch.reward_bs + 1.0))[0], loss
    )


def test_a_batch_with_nothing_to_learn_is_zero_not_nan():
    answer = prediction(2, copy_gate=True)
    batch = segments(answer, [0.0, 0.0], [False, False], mask=[False, False])
    loss, metrics = Fixed(answer).loss(batch)
    assert loss == 0
    assert all(value == 0 for value in metrics.values())


def test_without_heads_there_is_a_token_loss_only():
    answer = prediction(2, copy_gate=False, heads=False)
    batch = segments(answer, [1.0, 0.0], [False, False], mask=[True, True])
    loss, metrics = Fixed(answer).loss(batch)
    assert loss == metrics["token_loss"]
    assert set(metrics) == {"token_loss", "token_accuracy", "copy_accuracy", "changed_accuracy"}


@pytest.mark.parametrize("rare", ["done", "life"])
def test_rare_ends_are_calibrated_under_the_weight(rare):
    """One end in 50 steps and a constant input: the best constant answer is 1 / 50."""
    heads = RewardDoneHeads(1, done_weight=20.0, lives=True)
    happens, never = (torch.arange(100) % 50 == 0).tolist(), [False] * 100
    optimiser = torch.optim.LBFGS(getattr(heads, rare).parameters(), max_iter=50)
    pooled = torch.ones(100, 1)
    model = Fixed(prediction(100, copy_gate=False))
    ended, lost = (happens, never) if rare == "done" else (never, happens)
    batch = segments(model.answer, [0.0] * 100, ended, mask=[True] * 100, lost=lost)
    logit = f"{rare}_logit_b"

    def closure() -> Tensor:
        optimiser.zero_grad()
        model.answer = model.answer._replace(**{logit: getattr(heads(pooled), logit)})
        _, _ = model.loss(batch)
        loss = model.loss(batch)[0]
        loss.backward()
        return loss

    optimiser.step(closure)
    assert getattr(heads(pooled), logit).sigmoid()[0].item() == pytest.approx(0.02, rel=0.01)


def test_expected_reward_is_sign_times_expm1_of_the_magnitude():
    answer = prediction(3, copy_gate=False)._replace(
        reward_sign_logits_bc=torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]),
        reward_magnitude_b=torch.log1p(torch.tensor([10.0, 20.0, 200.0])),
    )
    torch.testing.assert_close(answer.reward(), torch.tensor([-10.0, 0.0, 200.0]))


def test_cell_sample_takes_all_changed_cells_and_weighs_the_rest():
    torch.manual_seed(0)
    changed = torch.zeros(2, K, dtype=torch.bool)
    changed[0, :7] = changed[1, 5:9] = True
    weight = torch.ones(2, K)
    weight[1] = 0.0  # an ended row: neither its changed nor its static cells count
    cell, share = sample_cells(changed, weight, 50)
    assert cell.unique().numel() == 50
    chosen = changed.flatten()[cell] & (cell < K)
    assert set(cell[chosen].tolist()) == set(range(7))
    assert (share[chosen] == 1.0).all()
    torch.testing.assert_close(share[~chosen], torch.full((43,), (K - 7) / 43))
    assert (cell < K).all()


def test_cell_sample_estimates_the_mean_without_bias():
    torch.manual_seed(1)
    changed = torch.rand(4, K) < 0.03
    value = torch.randn(4, K) + changed * 5
    estimates = []
    for _ in range(400):
        cell, share = sample_cells(changed, torch.ones(4, K), 192)
        estimates.append((value.flatten()[cell] * share).sum() / share.sum())
    error = torch.stack(estimates).mean() - value.mean()
    assert abs(error.item()) < 0.02
    assert torch.stack(estimates).std() > 0


def test_cell_sample_when_everything_changes():
    """A new maze: more changed cells than fit; no weight may become infinite or vanish."""
    cell, share = sample_cells(torch.ones(1, K, dtype=torch.bool), torch.ones(1, K), 48)
    assert cell.numel() == 48
    torch.testing.assert_close(share, torch.full((48,), K / 48))
