"""Fitting a tokenizer to the frames of the warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from wmfast.config import TokenizerConfig
from wmfast.models.tokenizer import Tokenizer
from wmfast.step import TrainStep
from wmfast.types import Metrics

_GRAD_CLIP = 1.0
_WARMUP_SHARE = 0.05  # of the steps: linear rise of the learning rate, then a cosine to zero


def fit_tokenizer(
    tokenizer: Tokenizer,
    frames: NDArray[np.uint8],
    config: TokenizerConfig,
    *,
    seed: int,
    device: torch.device,
    autocast: bool = False,
    on_step: Callable[[int, Metrics], None] | None = None,
) -> None:
    """Set the codes from `frames`, uint8 (N, 84, 64, 3), then train for `config.train_steps`.

    The same seed gives the same tokenizer on the same machine. `on_step(step, metrics)` is called
    after each step, from 1. The tokenizer is left in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    frames_bhwc = torch.from_numpy(frames)
    tokenizer.initialise(frames_bhwc.to(device), generator)
    tokenizer.train()
    step = TrainStep(
        tokenizer,
        tokenizer.loss,
        learning_rate=config.learning_rate,
        grad_clip=_GRAD_CLIP,
        autocast=autocast,
    )
    for number in range(config.train_steps):
        step.set_learning_rate(config.learning_rate * _schedule(number, config.train_steps))
        rows = torch.randint(len(frames), (config.batch_size,), generator=generator)
        metrics = step(frames_bhwc[rows].to(device))
        if on_step is not None:
            on_step(number + 1, metrics)
    tokenizer.eval()


def _schedule(number: int, total: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    warmup = max(1, int(_WARMUP_SHARE * total))
    if number < warmup:
        return (number + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (number - warmup) / max(1, total - warmup)))
