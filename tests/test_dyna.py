"""Imagined transitions against returns written out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wmfast.config import DynaConfig
from wmfast.dyna import DreamedTransitions, joined
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.types import Segments, Transitions

K, V, T, GAMMA = 12, 16, 4, 0.9
CONFIG = DynaConfig(share=0.25, seeds=6, horizon=3, trust_decay=0.95)


class Counter(WorldModel):
    """The next frame is the last plus the action. Reward and end depend on the frame's number."""

    def __init__(self, sure: float = 9.0, lives: bool = False) -> None:
        super().__init__()
        self.sure, self.lives = sure, lives
        self.rewards = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
        self.ends = torch.tensor([-1.0, 0.5, -2.0])

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        last_bk = history_btk[:, -1]
        logits = torch.nn.functional.one_hot((last_bk + action_b[:, None]) % V, V) * self.sure
        kind_b = last_bk[:, 0] % 3
        return Prediction(
            logits,
            last_bk,
            None,
            self.rewards[kind_b],
            torch.ones(len(action_b)),
            self.ends[kind_b],
            self.ends[kind_b.flip(0)] if self.lives else None,
        )


def policy(history_btk: Tensor) -> Tensor:
    return 1 + history_btk[:, -1, 0] % 2


def seeds(batch: int = 6, surprising: tuple[int, ...] = ()) -> Segments:
    """Frames that the model explains, but for the rows named."""
    first = torch.arange(batch)
    tokens = (first[:, None] + torch.arange(T + 1))[:, :, None].expand(batch, T + 1, K) % V
    tokens = tokens.clone()
    tokens[list(surprising), -1] += 5
    return Segments(
        tokens % V,
        torch.ones(batch, 1, dtype=torch.int64),
        torch.zeros(batch, 1),
        torch.zeros(batch, 1, dtype=torch.bool),
        torch.ones(batch, 1, dtype=torch.bool),
        torch.zeros(batch, 1, dtype=torch.bool),
    )


def pool(config: DynaConfig = CONFIG) -> DreamedTransitions:
    return DreamedTransitions(config, tokens=K, history=T)


RETURNS = {"n_step": 3, "gamma": GAMMA}


def expected_sign(number: int) -> float:
    p = Counter().rewards[number % 3].softmax(-1)
    return float(p[2] - p[0])


def end(number: int) -> float:
    return float(torch.sigmoid(Counter().ends[number % 3]))


@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
def test_every_imagined_step_is_a_transition_with_the_agents_return(n_step):
    dreams, model = pool(), Counter()
    dreams.refresh(model, policy, seeds(), n_step=n_step, gamma=GAMMA)
    assert len(dreams) == 6 * 3
    trust = 1 / (1 + (V - 1) * math.exp(-9.0))  # exp of minus the loss: the probability itself
    found = 0
    for row in range(len(dreams)):
        state, first, seed = dreams.state[row], row // 6, row % 6
        numbers = [seed + T - 1]  # of the frames, the last real one first
        for _ in range(3):
            numbers.append((numbers[-1] + 1 + numbers[-1] % 2) % V)
        last = min(first + n_step, 3)
        assert state[-1].tolist() == [numbers[first]] * K
        assert dreams.next_state[row, -1].tolist() == [numbers[last]] * K
        older = [seed, seed + 1, seed + 2, *numbers]
        assert dreams.next_state[row, :, 0].tolist() == older[last : last + T]
        assert dreams.action[row] == 1 + numbers[first] % 2
        value, alive = 0.0, 1.0
        for step in range(first, last):
            value += GAMMA ** (step - first) * alive * expected_sign(numbers[step])
            alive *= 1 - end(numbers[step])
        assert dreams.reward[row].item() == pytest.approx(value, rel=1e-5)
        assert dreams.discount[row].item() == pytest.approx(GAMMA ** (last - first) * alive, 1e-5)
        assert dreams.trust[row].item() == pytest.approx(trust * 0.95**last, rel=1e-4)
        found += 1
    assert found == 18


def test_a_lost_life_stops_a_return_as_an_end_does():
    plain, dreams = pool(), pool()
    plain.refresh(Counter(), policy, seeds(batch=1), **RETURNS)
    dreams.refresh(Counter(lives=True), policy, seeds(batch=1), **RETURNS)
    # Of one seed a life is lost with the probability that the game ends: both must go on.
    first, last = plain.discount[2] / GAMMA, dreams.discount[2] / GAMMA
    assert last.item() == pytest.approx(first.item() ** 2, rel=1e-5)
    assert not torch.equal(dreams.reward[:1], plain.reward[:1])


def test_tokens_are_sampled_as_configured():
    def dreamed(**options):
        dreams = pool(config=replace(CONFIG, **options))
        dreams.refresh(Counter(), policy, seeds(), **RETURNS)
        return dreams.next_state[: len(dreams), -1]

    likeliest = dreamed()
    assert torch.equal(dreamed(temperature=50.0, top_k=1), likeliest)
    assert not torch.equal(dreamed(temperature=50.0), likeliest)


def test_seeds_that_the_model_does_not_understand_are_dropped():
    dreams, model = pool(), Counter()
    metrics = dreams.refresh(model, policy, seeds(surprising=(1, 4)), **RETURNS)
    assert len(dreams) == 4 * 3
    assert metrics["kept"].item() == pytest.approx(4 / 6)
    assert sorted({int(n) for n in dreams.state[:4, -1, 0]}) == [3, 5, 6, 8]
    assert dreams.trust_in(model, seeds(surprising=(1, 4)))[1] < 0.01


def test_trust_falls_with_its_scale_and_is_nothing_where_no_next_frame_is_known():
    model, batch = Counter(sure=1.0), seeds()
    loss = math.log(math.e + V - 1) - 1.0
    for scale in (0.0, 1.0, 4.0):
        trust = pool(config=replace(CONFIG, trust_scale=scale)).trust_in(model, batch)
        assert trust.tolist() == pytest.approx([math.exp(-scale * loss)] * 6, rel=1e-5)
    batch.terminated_bs[0], batch.mask_bs[1] = True, False
    assert (pool().trust_in(model, batch) == 0).tolist() == [True, True] + [False] * 4


def test_without_trusted_seeds_nothing_is_imagined():
    dreams, model = pool(), Counter()
    dreams.refresh(model, policy, seeds(), **RETURNS)
    assert dreams.share_of(32) == 8
    metrics = dreams.refresh(model, policy, seeds(surprising=tuple(range(6))), **RETURNS)
    assert metrics["kept"] == 0
    assert dreams.share_of(32) == 0
    with pytest.raises(ValueError, match="no seed was trusted"):
        dreams.draw(1, (0, 0))


def test_draws_repeat_with_their_seed_and_reach_every_row():
    dreams = pool()
    dreams.refresh(Counter(), policy, seeds(), **RETURNS)
    again = dreams.draw(400, (3, 7))
    for one, other in zip(dreams.draw(400, (3, 7)), again, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(dreams.draw(400, (3, 8)).reward_b, again.reward_b)
    kinds = {
        (int(s[-1, 0]), float(w)) for s, w in zip(again.state_btk, again.weight_b, strict=True)
    }
    assert len(kinds) == len(
        {(int(s[-1, 0]), float(w)) for s, w in zip(dreams.state, dreams.trust, strict=True)}
    )
    assert again.state_btk.dtype == torch.int64


def test_a_checkpoint_brings_the_pool_back():
    dreams, other = pool(), pool()
    dreams.refresh(Counter(), policy, seeds(surprising=(2,)), **RETURNS)
    other.load_state_dict(dreams.state_dict())
    assert len(other) == 15
    for one, two in zip(dreams.draw(9, (1, 1)), other.draw(9, (1, 1)), strict=True):
        assert torch.equal(one, two)


def test_joined_puts_the_real_rows_first():
    real = Transitions(*(torch.zeros(2, 1) for _ in Transitions._fields))
    imagined = Transitions(*(torch.ones(1, 1) for _ in Transitions._fields))
    for field in joined(real, imagined):
        assert field.flatten().tolist() == [0, 0, 1]


def test_a_world_model_without_heads_is_refused():
    class Headless(Counter):
        def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
            answer = super().forward(history_btk, action_b)
            return answer._replace(reward_sign_logits_bc=None, done_logit_b=None)

    with pytest.raises(ValueError, match="reward and done heads"):
        pool().refresh(Headless(), policy, seeds(), **RETURNS)


def test_switched_off_it_holds_nothing():
    assert pool(config=replace(CONFIG, share=0.0)).state.numel() == 0
