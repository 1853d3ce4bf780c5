"""How a tokenizer is built, and how good it is.

Dimension legend: b batch, k tokens of a frame (336), v codes, d values of a code; frames are uint8
(B, 84, 64, 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wmfast.config import TokenizerConfig
from wmfast.models.foreground import moving_pixels
from wmfast.models.patch_tokenizer import PatchTokenizer
from wmfast.models.tokenizer_interface import Tokenizer
from wmfast.models.vqvae import VQVAE

__all__ = ["StreamEncoder", "Tokenizer", "build_tokenizer", "tokenizer_quality"]


_BATCH = 64


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that ``config.kind`` names, with random weights and no codes yet."""
    return PatchTokenizer(config) if config.kind == "patch" else VQVAE(config)


class StreamEncoder:
    """``tokenizer.encode`` for consecutive frames of the same games: equal tokens, sooner.

    On a CPU it keeps the last frames, so that a patch tokenizer looks only at patches that changed
    (at all of them once the codes have moved).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._last: tuple[Tensor, Tensor] | None = None
        self._version = tokenizer.version

    def __call__(self, frames_bhwc: Tensor) -> Tensor:
        """Uint8 (B, 84, 64, 3) to tokens, int64 (B, 336). The frames must not change afterwards."""
        if frames_bhwc.device.type != "cpu":
            return self._tokenizer.encode(frames_bhwc)
        if self._version != self._tokenizer.version:
            self._last, self._version = None, self._tokenizer.version
        if self._last is None or self._last[0].shape != frames_bhwc.shape:
            tokens_bk = self._tokenizer.encode(frames_bhwc)
        else:
            tokens_bk = self._tokenizer.encode_next(frames_bhwc, *self._last)
        self._last = frames_bhwc, tokens_bk
        return tokens_bk


@torch.no_grad()
def tokenizer_quality(tokenizer: Tokenizer, frames_bhwc: Tensor) -> dict[str, float]:
    """Quality on held-out uint8 (N, 84, 64, 3) frames.

    ``psnr`` in dB (peak 255, squared error averaged over the whole set), ``psnr_moving`` over the
    pixels that differ from the tokenizer's median frame by more than 0.1 of full scale in any
    channel, ``live_codes`` (how many occur) and ``perplexity`` (exp of the entropy of their use).
    Waits for the device.
    """
    error = moving_error = moving = 0.0
    device = tokenizer.codes.device
    counts_v = torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=device)
    for batch in frames_bhwc.split(_BATCH):
        batch = batch.to(device)
        tokens_bk = tokenizer.encode(batch)
        counts_v += tokens_bk.flatten().bincount(minlength=tokenizer.vocab_size)
        square = (tokenizer.decode(tokens_bk).double() - batch.double()).square().mean(-1)
        mask = moving_pixels(batch, tokenizer.median)
        error += square.sum().item()
        moving_error += square[mask].sum().item()
        moving += mask.sum().item()
    share_v = counts_v.double() / counts_v.sum()
    entropy = -torch.xlogy(share_v, share_v).sum().item()
    pixels = frames_bhwc[..., 0].numel()
    return {
        "psnr": _psnr(error / pixels),
        "psnr_moving": _psnr(moving_error / moving if moving else 0.0),
        "live_codes": float((counts_v > 0).sum().item()),
        "perplexity": math.exp(entropy),
    }


def _psnr(mse: float) -> float:
    return 10 * math.log10(255**2 / mse) if mse > 0 else math.inf
