"""World-model speed: one update of each preset's model, and what its two shortcuts bring.

    pytest bench/bench_world_model.py                       # on the CPU
    pytest bench/bench_world_model.py --benchmark-disable   # answers only, as CI runs it

Rivals give equal answers before they are timed: the last block on the query rows against all rows
(equal logits), the loss on sampled cells against all cells (equal in the mean).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wmfast.models.prediction import WorldModel
from wmfast.models.world_model import build_world_model
from wmfast.presets import PRESETS
from wmfast.types import Segments

VOCAB, ACTIONS = 512, 9
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def model_of(preset: str) -> WorldModel:
    torch.manual_seed(0)
    config = PRESETS[preset].world_model
    return build_world_model(config, vocab_size=VOCAB, num_actions=ACTIONS).to(DEVICE)


def segments(batch: int) -> Segments:
    """Thirteen changed cells a frame, as in MsPacman."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (batch, 1, 336), generator=g).repeat(1, 5, 1)
    tokens[:, 4, :13] = torch.randint(VOCAB, (batch, 13), generator=g)
    zeros = torch.zeros(batch, 1, dtype=torch.bool)
    actions = torch.randint(ACTIONS, (batch, 1), generator=g)
    return Segments(
        *(x.to(DEVICE) for x in (tokens, actions, torch.zeros(batch, 1), zeros, ~zeros, zeros))
    )


def update(
    model: WorldModel, loss: Callable[[Segments], Any], batch: Segments
) -> Callable[[], Any]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        loss(batch)[0].backward()
        optimiser.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return step


@pytest.mark.parametrize("preset", ["cpu", "atari100k", "v3", "v2"])
def test_update(benchmark: Any, preset: str) -> None:
    model = model_of(preset).train()
    # The seeds' sizes are for a GPU: one sample is enough to see what a CPU makes of them.
    batch = PRESETS[preset].world_model.batch_size if DEVICE == "cuda" or preset == "cpu" else 1
    benchmark.extra_info["batch_size"] = batch
    benchmark.pedantic(update(model, model.loss, segments(batch)), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("cells", ["sampled", "all"])
def test_conv_loss(benchmark: Any, cells: str) -> None:
    model = model_of("cpu").train()
    batch = segments(PRESETS["cpu"].world_model.batch_size)
    with torch.no_grad():
        sampled = [model.loss(batch)[1]["token_loss"].item() for _ in range(10)]
        everywhere = WorldModel.loss(model, batch)[1]["token_loss"].item()
    assert sum(sampled) / 10 == pytest.approx(everywhere, rel=0.02)
    loss = model.loss if cells == "sampled" else lambda b: WorldModel.loss(model, b)
    benchmark.pedantic(update(model, loss, segments(len(batch.action_bs))), rounds=10)


@pytest.mark.parametrize("rows", ["queries", "all"])
def test_v3_forward(benchmark: Any, rows: str) -> None:
    model = model_of("v3").eval()
    batch = segments(1)
    history_btk, action_b = batch.tokens_bsk[:, :4], batch.action_bs[:, 0]
    forward: Any = model.encoder.forward
    with torch.inference_mode():
        short = model(history_btk, action_b).logits_bkv
        model.encoder.forward = lambda x_bld, last: forward(x_bld)[:, -last:]
        full = model(history_btk, action_b).logits_bkv
        torch.testing.assert_close(short, full, atol=1e-4, rtol=1e-3)
        if rows == "queries":
            model.encoder.forward = forward
        benchmark.pedantic(lambda: model(history_btk, action_b), rounds=5, warmup_rounds=1)
