"""The CPU's shortcuts give what the plain way gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmfast.models.token_embedding import TokenEmbedding
from wmfast.models.tokenizer import StreamEncoder, build_tokenizer
from wmfast.presets import PRESETS


def test_token_embedding_equals_torchs_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    ours, plain = TokenEmbedding(16, 5), nn.Embedding(16, 5)
    plain.load_state_dict(ours.state_dict())
    tokens, factor = torch.randint(16, (3, 4, 7)), torch.randn(3, 4, 7, 5)
    for embedding in (ours, plain):
        (embedding(tokens) * factor).sum().backward()
    assert torch.equal(ours(tokens), plain(tokens))
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)


def test_stream_encoder_equals_encode_and_looks_at_changes_only() -> None:
    generator = torch.Generator().manual_seed(0)
    tokenizer = build_tokenizer(PRESETS["smoke"].tokenizer)
    frames = torch.randint(256, (3, 84, 64, 3), dtype=torch.uint8, generator=generator)
    tokenizer.initialise(frames, generator)
    whole: list[int] = []
    encode = tokenizer.encode

    def counted(frames_bhwc: Tensor) -> Tensor:
        whole.append(len(frames_bhwc))
        return encode(frames_bhwc)

    tokenizer.encode = counted  # type: ignore[method-assign]
    stream = StreamEncoder(tokenizer)
    for step in range(4):
        if step:
            frames = frames.clone()
            frames[step - 1, 8 * step : 8 * step + 5, 3:9] = 255 - frames[0, :5, :6]
        assert torch.equal(stream(frames), encode(frames))
    assert whole == [3]  # the first call; then changed patches were enough
    assert torch.equal(stream(frames[1:]), encode(frames[1:]))  # games have ended
    assert whole == [3, 2]
