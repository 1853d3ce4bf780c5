"""Imagination against a loop written out, and its edges."""

import pytest
import torch

from wmfast.config import WorldModelConfig
from wmfast.imagine import imagine, imagined_step
from wmfast.models.prediction import Prediction, WorldModel
from wmfast.models.world_model import build_world_model

V, A = 7, 3


def model_of(*, heads: bool = True, kind: str = "conv") -> WorldModel:
    config = WorldModelConfig(
        kind=kind, d_model=8, heads=2, layers=1, copy_gate=True, reward_done_heads=heads
    )
    torch.manual_seed(0)
    model = build_world_model(config, vocab_size=V, num_actions=A)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.constant_(model.copy.bias, -3.0)  # a dream that only copies would prove little
    return model


def history(batch: int = 2) -> torch.Tensor:
    return torch.randint(V, (batch, 4, 336), generator=torch.Generator().manual_seed(1))


def test_equals_the_loop_written_out():
    model, start = model_of(), history()
    actions = torch.tensor([[0, 1, 2], [2, 2, 0]])
    before = start.clone()
    dream = imagine(model, start, actions, horizon=3)
    assert torch.equal(start, before)
    frames = [start[:, i] for i in range(4)]
    model.eval()
    for step in range(3):
        with torch.no_grad():
            answer = model(torch.stack(frames[-4:], dim=1), actions[:, step])
        frames.append(answer.token_logits().argmax(-1))
        assert torch.equal(dream.tokens_bsk[:, step], frames[-1])
        sign = answer.reward_sign_logits_bc.argmax(-1) - 1
        reward = sign * torch.expm1(answer.reward_magnitude_b.clamp(min=0))
        torch.testing.assert_close(dream.reward_bs[:, step], reward)
        torch.testing.assert_close(dream.done_bs[:, step], answer.done_logit_b.sigmoid())
    assert torch.equal(dream.action_bs, actions)
    assert not torch.equal(dream.tokens_bsk[:, 0], dream.tokens_bsk[:, 2])


def test_a_policy_sees_the_imagined_history():
    model, start = model_of(), history()
    seen = []

    def policy(history_btk: torch.Tensor) -> torch.Tensor:
        seen.append(history_btk)
        return history_btk[:, -1].sum(dim=-1) % A

    dream = imagine(model, start, policy, horizon=5)
    everything = torch.cat([start, dream.tokens_bsk], dim=1)
    for step, history_btk in enumerate(seen):
        assert torch.equal(history_btk, everything[:, step : step + 4])
    fixed = imagine(model, start, dream.action_bs, horizon=5)
    assert torch.equal(fixed.tokens_bsk, dream.tokens_bsk)


def test_dropout_is_off_and_the_mode_restored():
    model, start = model_of(kind="transformer").train(), history(1)
    actions = torch.zeros(1, 2, dtype=torch.int64)
    first, second = (imagine(model, start, actions, 2) for _ in range(2))
    assert torch.equal(first.tokens_bsk, second.tokens_bsk)
    assert torch.equal(first.done_bs, second.done_bs)
    assert model.training
    assert not first.done_bs.requires_grad


def test_sampling_follows_the_mixture_at_its_temperature():
    model = model_of()
    start, action = history(1), torch.zeros(1, 1, dtype=torch.int64)
    repeated = start.expand(600, -1, -1)
    generator = torch.Generator().manual_seed(3)
    for temperature in (1.0, 3.0):
        dream = imagine(
            model,
            repeated,
            action.expand(600, -1),
            horizon=1,
            temperature=temperature,
            generator=generator,
        )
        with torch.no_grad():
            logits = model(start, action[:, 0]).token_logits()[0]
        expected = (logits / temperature).softmax(-1)
        frequency = torch.nn.functional.one_hot(dream.tokens_bsk[:, 0], V).float().mean(dim=0)
        assert (frequency - expected).abs().max() < 0.1
        assert (frequency - expected).abs().mean() < 0.015


@pytest.mark.parametrize("temperature", [1e-12, 1e-39, 1e-300])
def test_a_temperature_next_to_nothing_takes_the_likeliest(temperature):
    model, start = model_of(), history()
    actions = torch.zeros(2, 3, dtype=torch.int64)
    cold = imagine(model, start, actions, 3, temperature=temperature)
    assert torch.equal(cold.tokens_bsk, imagine(model, start, actions, 3).tokens_bsk)


def test_top_k_draws_the_likeliest_in_their_shares():
    model = model_of()
    start, action = history(1), torch.zeros(1, 1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        logits = model(start, action[:, 0]).token_logits()[0]
    values, best = logits.topk(2, dim=-1)
    rows = {"policy": action.expand(600, -1), "horizon": 1, "temperature": 2.0}
    dream = imagine(model, start.expand(600, -1, -1), **rows, top_k=2, generator=generator)
    frequency = torch.nn.functional.one_hot(dream.tokens_bsk[:, 0], V).float().mean(dim=0)
    expected = torch.zeros_like(logits).scatter(-1, best, (values / 2.0).softmax(-1))
    assert not frequency[expected == 0].any()
    assert (frequency - expected).abs().mean() < 0.015
    likeliest = imagine(model, start, action, 1, temperature=2.0, top_k=1)
    assert torch.equal(likeliest.tokens_bsk, imagine(model, start, action, 1).tokens_bsk)
    all_of_them = [
        imagine(model, start, action, 1, temperature=2.0, top_k=top_k, generator=seeded)
        for top_k, seeded in (
            (None, generator.manual_seed(5)),
            (V, torch.Generator().manual_seed(5)),
        )
    ]
    assert torch.equal(all_of_them[0].tokens_bsk, all_of_them[1].tokens_bsk)


@pytest.mark.parametrize("luck", [0.0, 0.3, 1 - 2**-24])
def test_what_cannot_be_is_never_drawn(luck: float, monkeypatch: pytest.MonkeyPatch):
    """The least and the largest uniform number included."""
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, 0.5, -torch.inf]).expand(2, 336, 5)
    answer = Prediction(logits, torch.zeros(2, 336, dtype=torch.int64), None, None, None, None)

    def fill(tensor: torch.Tensor, generator: object = None) -> torch.Tensor:
        return tensor.fill_(luck)

    monkeypatch.setattr(torch.Tensor, "uniform_", fill)
    action = torch.zeros(2, dtype=torch.int64)
    _, after = imagined_step(lambda *_: answer, history(), action, temperature=1.0)
    assert set(after[:, -1].unique().tolist()) == {3 if luck > 0.7 else 1}


def test_sampling_repeats_with_its_generator():
    model, start = model_of(), history(1)
    actions = torch.zeros(1, 3, dtype=torch.int64)
    dreams = [
        imagine(
            model, start, actions, 3, temperature=1.0, generator=torch.Generator().manual_seed(seed)
        ).tokens_bsk
        for seed in (5, 5, 6)
    ]
    assert torch.equal(dreams[0], dreams[1])
    assert not torch.equal(dreams[0], dreams[2])


def test_a_model_without_heads_dreams_tokens_only():
    dream = imagine(model_of(heads=False), history(), torch.zeros(2, 2, dtype=torch.int64), 2)
    assert dream.reward_bs is None
    assert dream.done_bs is None


def test_bad_arguments_are_named():
    model, start = model_of(), history(1)
    actions = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="horizon = 0: must be at least 1"):
        imagine(model, start, actions, 0)
    with pytest.raises(ValueError, match="top_k = 0: must be at least 1"):
        imagine(model, start, actions, 1, temperature=1.0, top_k=0)
    with pytest.raises(ValueError, match=r"temperature = -1\.0"):
        imagine(model, start, actions, 1, temperature=-1.0)
    with pytest.raises(ValueError, match="2 fixed actions: must have 3"):
        imagine(model, start, actions, 3)
