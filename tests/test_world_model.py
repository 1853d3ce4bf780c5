"""The world models: what they see, what they may not see, and that they learn."""

import math

import pytest
import torch

from wmfast.config import WorldModelConfig
from wmfast.models.prediction import WorldModel
from wmfast.models.world_model import TransformerWorldModel, build_world_model
from wmfast.types import Segments

V, A = 11, 3
CONFIGS = {
    "v3": WorldModelConfig(d_model=8, heads=2, layers=1),
    "v2": WorldModelConfig(d_model=8, heads=2, layers=1, reward_done_heads=False),
    "tubelet": WorldModelConfig(d_model=16, heads=2, layers=2, tubelet=(4, 2, 2), copy_gate=True),
    "conv": WorldModelConfig(kind="conv", d_model=16, layers=2, copy_gate=True),
    "conv-plain": WorldModelConfig(kind="conv", d_model=16, layers=1, reward_done_heads=False),
}


def build(name: str, seed: int = 0) -> WorldModel:
    """A tiny model with random weights everywhere, so that nothing hides behind a zero."""
    torch.manual_seed(seed)
    model = build_world_model(CONFIGS[name], vocab_size=V, num_actions=A)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def segments(batch: int = 3, steps: int = 1, seed: int = 0) -> Segments:
    g = torch.Generator().manual_seed(seed)
    return Segments(
        tokens_bsk=torch.randint(V, (batch, 4 + steps, 336), generator=g),
        action_bs=torch.randint(A, (batch, steps), generator=g),
        reward_bs=torch.randn(batch, steps, generator=g),
        terminated_bs=torch.zeros(batch, steps, dtype=torch.bool),
        mask_bs=torch.ones(batch, steps, dtype=torch.bool),
        life_lost_bs=torch.zeros(batch, steps, dtype=torch.bool),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_heads(name):
    model, batch = build(name), segments()
    prediction = model(batch.tokens_bsk[:, :4], batch.action_bs[:, 0])
    assert prediction.token_logits().shape == (3, 336, V)
    assert prediction.tokens().dtype == torch.int64
    has_heads = CONFIGS[name].reward_done_heads
    assert (prediction.reward() is not None) is has_heads
    assert (prediction.done() is not None) is has_heads
    assert (prediction.copy_logit_bk is not None) is CONFIGS[name].copy_gate


@pytest.mark.parametrize("name", CONFIGS)
def test_every_frame_and_the_action_change_the_answer(name):
    model, batch = build(name), segments()
    history_btk, action_b = batch.tokens_bsk[:, :4], batch.action_bs[:, 0]
    with torch.no_grad():
        answer = model(history_btk, action_b).logits_bkv
        for frame in range(4):
            changed = history_btk.clone()
            changed[:, frame, 100] = (changed[:, frame, 100] + 1) % V
            assert not torch.allclose(model(changed, action_b).logits_bkv, answer), frame
        other_action_b = (action_b + 1) % A
        assert not torch.allclose(model(history_btk, other_action_b).logits_bkv, answer)


@pytest.mark.parametrize("name", ["v3", "tubelet"])
def test_the_action_reaches_every_cell(name):
    """Per-action spatial bias and FiLM act on each query by itself."""
    model, batch = build(name), segments(1)
    with torch.no_grad():
        answers = [
            model(batch.tokens_bsk[:, :4], torch.tensor([action])).logits_bkv for action in (0, 1)
        ]
    assert ((answers[0] - answers[1]).abs().amax(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_target_is_not_seen(name):
    """Two targets that change at the same cells: other losses, but the same answer inside."""
    model, batch = build(name), segments()
    batch.tokens_bsk[:, 4, :300] = batch.tokens_bsk[:, 3, :300]
    batch.tokens_bsk[:, 4, 300:] = (batch.tokens_bsk[:, 3, 300:] + 1) % V
    other = batch.tokens_bsk.clone()
    other[:, 4, 300:] = (batch.tokens_bsk[:, 3, 300:] + 2) % V
    answers, losses, ends = [], [], []
    model.tokens.register_forward_hook(lambda _module, _args, answer: answers.append(answer))
    if model.reward_done is not None:
        model.reward_done.register_forward_hook(lambda _module, _args, answer: ends.append(answer))
    for tokens_bsk in (batch.tokens_bsk, other):
        torch.manual_seed(0)  # the convolutional model draws the cells that it scores
        losses.append(model.loss(batch._replace(tokens_bsk=tokens_bsk))[0])
    assert not torch.equal(losses[0], losses[1])
    assert len(answers) == 2
    assert torch.equal(*answers)
    for one, two in zip(*ends, strict=True):
        assert (one is two is None) or torch.equal(one, two)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient(name):
    model, batch = build(name).train(), segments(8)
    batch = batch._replace(action_bs=torch.arange(8)[:, None] % A)
    batch.terminated_bs[0] = True
    model.loss(batch)[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_autocast_changes_the_loss_little(name):
    model, batch = build(name), segments()
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.loss(batch)[0])
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0)


def test_conv_events_read_the_features_without_shaping_them():
    model, batch = build("conv").train(), segments(8)
    prediction = model(batch.tokens_bsk[:, :4], batch.action_bs[:, 0])
    (prediction.done_logit_b.sum() + prediction.reward_magnitude_b.sum()).backward()
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {"event", "reward_done"}


def test_conv_predicts_chosen_cells_as_it_predicts_all():
    model, batch = build("conv"), segments(2)
    history_btk, action_b = batch.tokens_bsk[:, :4], batch.action_bs[:, 0]
    cell_m = torch.tensor([0, 335, 336, 500])
    chosen, everywhere = model(history_btk, action_b, cell_m), model(history_btk, action_b)
    torch.testing.assert_close(chosen.logits_bkv, everywhere.logits_bkv.flatten(0, 1)[cell_m])
    torch.testing.assert_close(chosen.copy_logit_bk, everywhere.copy_logit_bk.flatten()[cell_m])
    assert torch.equal(chosen.last_bk, history_btk[:, -1].flatten()[cell_m])
    assert torch.equal(chosen.tokens(), everywhere.tokens().flatten()[cell_m])


@pytest.mark.parametrize("name", ["tubelet", "conv"])
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    model = build_world_model(CONFIGS[name], vocab_size=V, num_actions=A)
    batch = segments(2)
    batch = batch._replace(reward_bs=torch.tensor([[0.0], [10.0]]))
    batch.tokens_bsk[:, 4] = torch.where(
        torch.arange(336) < 300, batch.tokens_bsk[:, 3], (batch.tokens_bsk[:, 3] + 3) % V
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss, metrics = model.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["copy_accuracy"] == pytest.approx(300 / 336, abs=1e-4)
    assert metrics["token_accuracy"] > 0.95
    assert metrics["changed_accuracy"] > 0.8
    if CONFIGS[name].reward_done_heads:
        reward_b = model.eval()(batch.tokens_bsk[:, :4], batch.action_bs[:, 0]).reward()
        torch.testing.assert_close(reward_b, torch.tensor([0.0, 10.0]), atol=1.0, rtol=0.1)


@pytest.mark.parametrize("name", ["tubelet", "conv"])
def test_a_fresh_copy_gate_starts_at_the_copy_baseline(name):
    torch.manual_seed(0)
    model = build_world_model(CONFIGS[name], vocab_size=V, num_actions=A)
    batch = segments()
    prediction = model.eval()(batch.tokens_bsk[:, :4], batch.action_bs[:, 0])
    assert torch.equal(prediction.tokens(), batch.tokens_bsk[:, 3])
    nll_bk, _ = prediction.score(batch.tokens_bsk[:, 4])
    assert torch.isfinite(nll_bk).all()
    copied_bk, _ = prediction.score(batch.tokens_bsk[:, 3])
    assert copied_bk.mean() < 0.05


def test_query_rows_alone_equal_the_plain_computation():
    """The encoder's last block computes the query rows only; nothing else may differ."""
    model, batch = build("v3"), segments(1)
    answer = model(batch.tokens_bsk[:, :4], batch.action_bs[:, 0])
    forward = model.encoder.forward
    model.encoder.forward = lambda x_bld, last: forward(x_bld)[:, -last:]
    plain = model(batch.tokens_bsk[:, :4], batch.action_bs[:, 0])
    torch.testing.assert_close(answer.logits_bkv, plain.logits_bkv, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answer.done_logit_b, plain.done_logit_b, atol=1e-5, rtol=1e-4)


def test_queries_are_the_seeds_formula():
    model = build("v3")
    action = 2
    cell, scaled_d = 5 * 16 + 7, model.action_scale * model.action.weight[action]
    content_d = model.embedding.spatial()[cell] + model.target_time_d + scaled_d
    content_d = content_d + model.action_bias_apd[action, cell]
    expected_d = content_d * (1 + 0.2 * torch.tanh(scaled_d))
    inputs = []
    model.encoder.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    model(segments(1).tokens_bsk[:, :4], torch.tensor([action]))
    (x_bld,) = inputs
    assert x_bld.shape == (1, 1681, 8)
    torch.testing.assert_close(x_bld[0, 1345 + cell], expected_d)
    torch.testing.assert_close(x_bld[0, 1344], scaled_d)


def test_the_seeds_sizes():
    v3 = build_world_model(WorldModelConfig(), vocab_size=512, num_actions=9)
    v2_config = WorldModelConfig(heads=8, layers=10, reward_done_heads=False)
    v2 = build_world_model(v2_config, vocab_size=32, num_actions=4)
    assert isinstance(v3, TransformerWorldModel)
    assert isinstance(v2, TransformerWorldModel)
    assert v3.length == v2.length == 1681
    assert v3.action_scale.item() == v2.action_scale.item() == 1.0
    parameters = [sum(p.numel() for p in model.parameters()) for model in (v3, v2)]
    layer = 12 * 256**2 + 13 * 256  # attention, network, two norms, all biases
    positions = 21 * 128 + 16 * 128 + 5 * 256
    norms = 4 * 256
    v2_expected = (32 + 4 + 4 * 336) * 256 + 1 + positions + 10 * layer + norms + 257 * 32
    v3_expected = (512 + 9 + 9 * 336) * 256 + 1 + positions + 4 * layer + norms + 257 * (512 + 5)
    assert parameters == [v3_expected, v2_expected]
    assert math.isclose(v2_expected, 8.3e6, rel_tol=0.01)


def test_tubelet_answers_land_on_their_own_cells():
    """With 2 x 2 cells a query answers for four tokens: raise one slot of the head, see where."""
    model, batch = build("tubelet"), segments(1)
    answer = model(batch.tokens_bsk[:, :4], batch.action_bs[:, 0]).logits_bkv
    with torch.no_grad():  # slot (row 1, column 0) of each merged cell, token 4
        model.tokens.bias[(1 * 2 + 0) * V + 4] += 1.0
    raised = model(batch.tokens_bsk[:, :4], batch.action_bs[:, 0]).logits_bkv - answer
    expected = torch.zeros(21, 16, V)
    expected[1::2, 0::2, 4] = 1.0
    torch.testing.assert_close(raised[0].view(21, 16, V), expected, atol=1e-5, rtol=0)
