"""What every tokenizer can do.

Dimension legend: b batch, k tokens of a frame (336), v codes, d values of a code; frames are uint8
(B, 84, 64, 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from wmfast.config import TokenizerConfig
from wmfast.types import FRAME_HW, Metrics


class Tokenizer(nn.Module, ABC):
    """Frames to 21 x 16 tokens and back.

    Attributes:
        vocab_size: V, the number of codes.
        codes: buffer, float32 (V, D): what a token stands for, in a space where distance means
            something.
        median: buffer, uint8 (84, 64, 3): the background. What differs from it weighs more in the
            loss, by ``foreground_weight``.
        version: counts the moves of the codes; tokens kept from an earlier version may be stale.
    """

    codes: Tensor
    median: Tensor
    version: int

    def __init__(self, config: TokenizerConfig, code_dim: int) -> None:
        super().__init__()
        self.vocab_size = config.codebook_size
        self.version = 0
        self.foreground_weight = config.foreground_weight
        self.register_buffer("codes", torch.zeros(self.vocab_size, code_dim))
        self.register_buffer("median", torch.zeros(*FRAME_HW, 3, dtype=torch.uint8))

    @abstractmethod
    def initialise(self, frames_bhwc: Tensor, generator: torch.Generator) -> None:
        """Set codes and background from uint8 (N, 84, 64, 3) frames; ``generator``: on the CPU."""

    @abstractmethod
    def encode(self, frames_bhwc: Tensor) -> Tensor:
        """Uint8 (B, 84, 64, 3) to tokens, int64 (B, 336), row-major over 21 x 16."""

    def encode_next(
        self, frames_bhwc: Tensor, previous_bhwc: Tensor, previous_bk: Tensor
    ) -> Tensor:
        """``encode(frames)``, given the frames before and their tokens; cheaper where it can be."""
        return self.encode(frames_bhwc)

    @abstractmethod
    def decode(self, tokens_bk: Tensor) -> Tensor:
        """Tokens, int64 (B, 336), to uint8 (B, 84, 64, 3)."""

    @abstractmethod
    def loss(self, frames_bhwc: Tensor) -> tuple[Tensor, Metrics]:
        """Training loss on uint8 (B, 84, 64, 3) frames, and its metrics."""

    @abstractmethod
    def vectors(self, frames_bhwc: Tensor) -> Tensor:
        """What is compared with the codes: float32 (B * 336, D) of uint8 (B, 84, 64, 3) frames."""

    @abstractmethod
    def points(self) -> Tensor:
        """The codes where ``vectors`` are compared with them, float32 (V, D)."""

    @abstractmethod
    def move_codes(self, points_vd: Tensor, which_v: Tensor) -> None:
        """Set the codes of which bool (V,) says so to these ``points``; a new version.

        Tokens, and whatever was computed from them, are stale then.
        """

    def inherit(self, which_n: Tensor, like_n: Tensor) -> None:
        """Codes int64 (N,) got a new place; what is learned for each begins as that of another."""
