"""The shared transformer blocks: against torch's own encoder layer, and the tubelet layout."""

import pytest
import torch
from torch import nn

from wmfast.models.transformer import Attention, Encoder, SpatialPosition, TubeletEmbedding


def torch_layer_with_weights_of(block: nn.Module, d_model: int, heads: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        d_model, heads, 4 * d_model, 0.0, "gelu", batch_first=True, norm_first=True
    )
    attention = block.attention
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(
            torch.cat([attention.query.weight, attention.key_value.weight])
        )
        layer.self_attn.in_proj_bias.copy_(
            torch.cat([attention.query.bias, attention.key_value.bias])
        )
    layer.self_attn.out_proj.load_state_dict(attention.out.state_dict())
    layer.norm1.load_state_dict(block.attention_norm.state_dict())
    layer.norm2.load_state_dict(block.feed_forward_norm.state_dict())
    layer.linear1.load_state_dict(block.feed_forward[0].state_dict())
    layer.linear2.load_state_dict(block.feed_forward[3].state_dict())
    return layer


def randomised(module: nn.Module) -> nn.Module:
    """Biases and norms start at 0 and 1; random ones make a swap visible."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def test_encoder_equals_torch_pre_norm_layers_and_a_final_norm():
    torch.manual_seed(0)
    encoder = randomised(Encoder(16, heads=4, layers=2))
    x_bld = torch.randn(2, 9, 16)
    expected = x_bld
    for block in encoder.blocks:
        expected = torch_layer_with_weights_of(block, 16, 4)(expected)
    expected = encoder.norm(expected)
    torch.testing.assert_close(encoder(x_bld), expected, atol=1e-5, rtol=1e-4)


def test_last_rows_alone_equal_the_last_rows_of_all():
    torch.manual_seed(1)
    encoder = randomised(Encoder(16, heads=2, layers=3))
    x_bld = torch.randn(2, 12, 16)
    torch.testing.assert_close(encoder(x_bld, last=5), encoder(x_bld)[:, -5:], atol=1e-5, rtol=1e-4)


def test_last_rows_still_see_every_position():
    torch.manual_seed(2)
    encoder = randomised(Encoder(8, heads=2, layers=1))
    x_bld = torch.randn(1, 6, 8, requires_grad=True)
    encoder(x_bld, last=2).square().sum().backward()
    assert (x_bld.grad.abs().sum(dim=-1) > 0).all()


def test_dropout_acts_in_training_only():
    torch.manual_seed(3)
    encoder = Encoder(16, heads=2, layers=1, dropout=0.5)
    x_bld = torch.randn(1, 8, 16)
    assert not torch.equal(encoder.train()(x_bld), encoder(x_bld))
    assert torch.equal(encoder.eval()(x_bld), encoder(x_bld))


def test_spatial_position_is_row_beside_column():
    position = SpatialPosition(6, (21, 16))
    cell = position()[5 * 16 + 7]
    torch.testing.assert_close(cell, torch.cat([position.row[5], position.column[7]]))


def test_single_token_embedding_is_token_plus_space_plus_time():
    torch.manual_seed(4)
    embedding = TubeletEmbedding(11, 8)
    history_btk = torch.randint(11, (2, 4, 336))
    x_bld = embedding(history_btk)
    assert x_bld.shape == (2, 1344, 8)
    expected = (
        embedding.token.weight[history_btk[1, 2, 40]]
        + embedding.spatial()[40]
        + embedding.temporal_gd[2]
    )
    torch.testing.assert_close(x_bld[1, 2 * 336 + 40], expected)


@pytest.mark.parametrize(
    ("tubelet", "length"),
    [((1, 1, 1), 1344), ((4, 2, 2), 88), ((2, 1, 1), 672), ((1, 2, 2), 352), ((4, 3, 5), 28)],
)
def test_a_tubelet_holds_exactly_its_own_tokens(tubelet, length):
    torch.manual_seed(5)
    embedding = TubeletEmbedding(7, 8, tubelet)
    time, height, width = tubelet
    rows, columns = embedding.grid_hw
    frame, row, column = 3, 20, 13  # in the padded row of (4, 2, 2)
    history_btk = torch.randint(1, 7, (1, 4, 336))
    changed_btk = history_btk.clone()
    changed_btk[0, frame, row * 16 + column] = 0
    difference_l = (embedding(history_btk) - embedding(changed_btk)).abs().sum(dim=-1)[0]
    assert difference_l.shape == (length,)
    position = (frame // time) * rows * columns + (row // height) * columns + column // width
    assert difference_l.nonzero().flatten().tolist() == [position]


def test_places_inside_a_tubelet_differ():
    torch.manual_seed(6)
    embedding = TubeletEmbedding(7, 8, (4, 2, 2))
    first, second = torch.zeros(2, 1, 4, 336, dtype=torch.int64)
    first[0, 0, 0] = second[0, 0, 1] = 3
    assert not torch.allclose(embedding(first)[:, 0], embedding(second)[:, 0])


@pytest.mark.parametrize("tubelet", [(1, 1, 1), (4, 2, 2)])
def test_every_parameter_gets_a_gradient(tubelet):
    torch.manual_seed(7)
    model = nn.Sequential(TubeletEmbedding(5, 8, tubelet), Encoder(8, heads=2, layers=2))
    history_btk = torch.randint(5, (2, 4, 336))
    (model(history_btk) * torch.randn(8)).sum().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="heads = 3: must divide d_model = 16"):
        Attention(16, heads=3)
    with pytest.raises(ValueError, match="layers = 0"):
        Encoder(16, heads=2, layers=0)
    with pytest.raises(ValueError, match=r"tubelet = \(3, 2, 2\).*divide 4"):
        TubeletEmbedding(5, 8, (3, 2, 2))
    with pytest.raises(ValueError, match="d_model = 7: must be even"):
        SpatialPosition(7)
