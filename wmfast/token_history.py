"""What acting sees: the last four token frames of each game, and the two functions of acting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmfast.types import HISTORY

Encode = Callable[[Tensor], Tensor]
"""uint8 frames (E, 84, 64, 3) to int64 tokens (E, K)."""
Policy = Callable[[Tensor], Tensor]
"""int64 token histories (E, 4, K) to int64 actions (E,)."""


class TokenHistory:
    """The last four token frames of each game, int64 `btk` (E, 4, K), oldest first.

    A game's first frame stands for the frames before it, as in TokenReplay.
    """

    def __init__(self, tokens_ek: Tensor) -> None:
        """Every game begins with its row of `tokens_ek`, int64 (E, K)."""
        self.btk = tokens_ek[:, None].repeat(1, HISTORY, 1)

    def push(self, tokens_ek: Tensor, is_reset: NDArray[np.bool_]) -> None:
        """Append a frame to each game; where `is_reset` (E,), it begins a new one."""
        self.btk = torch.cat([self.btk[:, 1:], tokens_ek[:, None]], dim=1)
        if is_reset.any():
            rows = torch.from_numpy(is_reset).to(self.btk.device)
            self.btk[rows] = tokens_ek[rows, None]

    def keep(self, games: NDArray[np.bool_]) -> None:
        """Forget the games that are not in `games` (E,)."""
        self.btk = self.btk[torch.from_numpy(games).to(self.btk.device)]
