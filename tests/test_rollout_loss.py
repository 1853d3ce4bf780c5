"""K-step, self-forced training of world models: what each step sees, and what it costs."""

import math

import pytest
import torch
from torch import Tensor

from wmfast.models.importance import TokenImportance
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.models.world_model import build_world_model
from wmfast.presets import PRESETS
from wmfast.types import Segments

K, V, B, T = 336, 7, 4, 4


class Counting(WorldModel):
    """Says "last + 1" (mod V) everywhere with log-odds `sure`, and remembers what it saw."""

    done_weight = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.sure = torch.nn.Parameter(torch.tensor(2.0))
        self.seen: list[Tensor] = []
        self.actions: list[Tensor] = []

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        self.seen.append(history_btk)
        self.actions.append(action_b)
        said_bk = (history_btk[:, -1] + 1) % V
        logits = torch.nn.functional.one_hot(said_bk, V) * self.sure
        return Prediction(logits, history_btk[:, -1], None, None, None, None)


def segments(steps: int, seed: int = 0) -> Segments:
    g = torch.Generator().manual_seed(seed)
    return Segments(
        tokens_bsk=torch.randint(V, (B, T + steps, K), generator=g),
        action_bs=torch.randint(3, (B, steps), generator=g),
        reward_bs=torch.zeros(B, steps),
        terminated_bs=torch.zeros(B, steps, dtype=torch.bool),
        mask_bs=torch.ones(B, steps, dtype=torch.bool),
        life_lost_bs=torch.zeros(B, steps, dtype=torch.bool),
    )


def nll(said_bk: Tensor, target_bk: Tensor, sure: float = 2.0) -> float:
    right = (said_bk == target_bk).float().mean().item()
    return math.log(math.exp(sure) + V - 1) - sure * right


def test_the_model_goes_on_from_its_own_answers():
    model, batch = Counting(), segments(3)
    model.teacher_forcing = 0.0
    model.loss(batch)
    last = batch.tokens_bsk[:, T - 1]
    assert torch.equal(model.seen[0], batch.tokens_bsk[:, :T])
    for step, history in enumerate(model.seen):
        assert torch.equal(history[:, -1], (last + step) % V)
        assert torch.equal(history[:, : T - step], batch.tokens_bsk[:, step:T])
        assert torch.equal(model.actions[step], batch.action_bs[:, step])


def test_with_full_teacher_forcing_it_sees_real_frames_only():
    model, batch = Counting(), segments(3)
    model.teacher_forcing = 1.0
    model.loss(batch)
    for step, history in enumerate(model.seen):
        assert torch.equal(history, batch.tokens_bsk[:, step : step + T])


def test_a_row_is_forced_as_often_as_asked():
    model = Counting()
    model.teacher_forcing = 0.25
    rows = forced = 0
    torch.manual_seed(0)
    for seed in range(100):
        batch = segments(2, seed)
        model.loss(batch)
        real = (model.seen[-1][:, -1] == batch.tokens_bsk[:, T]).all(dim=1)
        rows, forced = rows + B, forced + int(real.sum())
    assert 0.18 < forced / rows < 0.32


def test_the_loss_is_the_discounted_mean_of_the_steps():
    model, batch = Counting(), segments(3)
    model.teacher_forcing, model.step_discount = 0.0, 0.5
    loss, metrics = model.loss(batch)
    last = batch.tokens_bsk[:, T - 1]
    steps = [nll((last + 1 + step) % V, batch.tokens_bsk[:, T + step]) for step in range(3)]
    assert loss.item() == pytest.approx((steps[0] + steps[1] / 2 + steps[2] / 4) / 1.75, rel=1e-5)
    assert metrics["token_loss"].item() == pytest.approx(steps[0], rel=1e-5)
    assert metrics["rollout_loss"].item() == pytest.approx(steps[2], rel=1e-5)
    before, real = batch.tokens_bsk[:, T + 1], batch.tokens_bsk[:, T + 2]
    right, moved = (last + 3) % V == real, real != before
    assert metrics["rollout_accuracy"].item() == pytest.approx(right.float().mean().item())
    changed = (right & moved).sum().item() / moved.sum().item()
    assert metrics["rollout_changed_accuracy"].item() == pytest.approx(changed)
    assert metrics["rollout_copy_accuracy"].item() == pytest.approx(1 - moved.float().mean().item())


def test_one_step_is_the_plain_loss():
    model, batch = Counting(), segments(3)
    one = Segments(batch.tokens_bsk[:, : T + 1], *(field[:, :1] for field in batch[1:]))
    loss, metrics = model.loss(one)
    said = (batch.tokens_bsk[:, T - 1] + 1) % V
    assert loss.item() == pytest.approx(nll(said, batch.tokens_bsk[:, T]), rel=1e-5)
    assert not any(name.startswith("rollout") for name in metrics)


def test_steps_past_the_end_and_stale_last_frames_count_nowhere():
    model, batch = Counting(), segments(4)
    model.teacher_forcing = 0.0
    batch.terminated_bs[:, 1] = True
    batch.mask_bs[:, 2:] = False
    loss, _ = model.loss(batch)
    other = batch.tokens_bsk.clone()
    other[:, T + 1 :] = 0  # the stale frame of the step that ended, and padding
    assert model.loss(batch._replace(tokens_bsk=other))[0] == loss
    said = (batch.tokens_bsk[:, T - 1] + 1) % V
    first = nll(said, batch.tokens_bsk[:, T])
    assert loss.item() == pytest.approx(first / (1 + 0.7 + 0.49 + 0.343), rel=1e-5)


@pytest.mark.parametrize("preset", ["smoke", "v3"])
def test_every_step_teaches_and_the_events_count_at_every_step(preset):
    torch.manual_seed(0)
    config = PRESETS[preset].world_model
    small = {"d_model": 16, "layers": 1, "heads": 2, "dropout": 0.0, "tubelet": (4, 2, 2)}
    config = type(config)(**{**vars(config), **small})
    model = build_world_model(config, vocab_size=V, num_actions=3)
    model.teacher_forcing = 0.0
    batch = segments(3)
    rewarded = batch._replace(reward_bs=torch.tensor([[0.0, 0.0, 5.0]]).expand(B, 3))
    losses = []
    for data in (batch, rewarded):
        torch.manual_seed(1)
        losses.append(model.loss(data)[0])
    assert losses[0] != losses[1]
    for step in range(3):  # only this step counts: its loss alone reaches the parameters
        mask = torch.zeros(B, 3, dtype=torch.bool)
        mask[:, step] = True
        model.zero_grad()
        model.loss(batch._replace(mask_bs=mask))[0].backward()
        grad = model.tokens.weight.grad
        assert grad is not None, step
        assert grad.any(), step


def test_the_convolutional_model_rolls_on_with_its_likeliest_tokens():
    torch.manual_seed(0)
    model = build_world_model(PRESETS["cpu"].world_model, vocab_size=64, num_actions=3).eval()
    torch.nn.init.normal_(model.tokens.weight, std=2.0)
    torch.nn.init.normal_(model.copy.weight, std=0.3)
    history = torch.randint(64, (B, T, K))
    with torch.no_grad():
        features = model._features(history, torch.tensor([0, 1, 2, 0]))
        want = model._predict(features, history[:, -1]).tokens()
        got = model._likeliest(features, history[:, -1])
    changed = (want != history[:, -1]).sum().item()
    assert 20 < changed < B * 96
    assert torch.equal(got, want)


CODES = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0]])  # distances 5 and 10 from code 0


def importance(motion=0.0, eventness=0.0, persistence=0.0, cap=1e9) -> TokenImportance:
    return TokenImportance(
        lambda: CODES, motion=motion, eventness=eventness, persistence=persistence, cap=cap
    )


def test_motion_is_the_distance_between_codes():
    tokens = torch.zeros(1, 5, K, dtype=torch.int64)
    tokens[0, 4, 0], tokens[0, 4, 1] = 1, 2  # moved by 5 and 10: the mean is 7.5
    weight = importance(motion=2.0)(tokens, 1)[0, 0]
    assert weight[:3].tolist() == pytest.approx([1 + 2 * 5 / 7.5, 1 + 2 * 10 / 7.5, 1.0])


def test_a_spike_is_motion_above_its_running_level_and_persistence_is_motion_throughout():
    tokens = torch.zeros(1, 5, K, dtype=torch.int64)
    tokens[0, :, 0] = torch.tensor([0, 1, 0, 1, 0])  # moves by 5 at every step
    tokens[0, :, 1] = torch.tensor([0, 0, 0, 0, 1])  # only now
    tokens[0, :, 2] = torch.tensor([1, 0, 0, 1, 0])  # not at every step
    spike = importance(eventness=1.0)(tokens, 1)[0, 0]
    # All motions are 5, so each is 1 in units of the mean.
    assert spike[:3].tolist() == pytest.approx([1.0, 2.0, 1 + 1 - 2 / 3])
    lasting = importance(persistence=1.0)(tokens, 1)[0, 0]
    assert lasting[:4].tolist() == [2.0, 1.0, 1.0, 1.0]


def test_each_step_looks_at_its_own_history_only():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, (2, 7, K), generator=g)
    every = importance(motion=1.0, eventness=1.0, persistence=1.0)
    weights = every(tokens, 3)
    assert weights.shape == (2, 3, K)
    scale = every._motion(tokens)
    for step in range(3):
        window = scale[:, step : step + 4]
        level = window[:, :3].mean(dim=1)
        lasting = (window > 0).all(dim=1)
        want = 1 + window[:, 3] + (window[:, 3] - level).clamp(min=0) + lasting
        torch.testing.assert_close(weights[:, step], want)


def test_the_cap_bounds_the_95th_percentile_over_the_median():
    g = torch.Generator().manual_seed(0)
    tokens = torch.zeros(8, 5, K, dtype=torch.int64)
    tokens[:, 4, :60] = torch.randint(1, 3, (8, 60), generator=g)
    free = importance(motion=20.0)(tokens, 1)
    assert free.quantile(0.95) / free.median() > 6
    capped = importance(motion=20.0, cap=6.0)(tokens, 1)
    assert capped.quantile(0.95) / capped.median() <= 6
    assert capped.max() == 6


def test_weights_move_the_loss_and_not_the_metrics():
    model, batch = Counting(), segments(1)
    plain, plain_metrics = model.loss(batch)
    model.importance = lambda tokens, steps: (tokens[:, -steps:] == 0) * 1.0
    loss, metrics = model.loss(batch)
    zero = batch.tokens_bsk[:, T] == 0
    said = (batch.tokens_bsk[:, T - 1] + 1) % V
    assert loss.item() == pytest.approx(nll(said[zero], batch.tokens_bsk[:, T][zero]), rel=1e-5)
    assert loss != plain
    assert metrics == plain_metrics


@pytest.mark.parametrize(
    ("bad", "names"), [({"motion": -1.0}, "motion = -1.0"), ({"cap": 0.5}, "cap = 0.5")]
)
def test_bad_scales_are_refused(bad, names):
    with pytest.raises(ValueError, match=names):
        importance(**bad)
