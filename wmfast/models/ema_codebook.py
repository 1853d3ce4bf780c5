"""How a codebook follows its encoder: moving averages, and new places for dead codes.

Van den Oord et al. 2017, appendix A.1, with Laplace smoothing of the counts:

    count_v <- g count_v + (1 - g) n_v            n_v vectors got code v
    sum_v   <- g sum_v + (1 - g) sum of them
    code_v  <- sum_v / smoothed_v                 smoothed_v = (count_v + e) / (N + V e) N

with N the sum of the counts. A code without vectors in a batch stays where it is.

Every ``PERIOD`` updates, codes whose count is below ``threshold`` of an even share are dead and
move onto vectors of the batch, with a count so small that they are found dead again at the next
check unless they were used. This ends for good at the first check that finds at least ``HEALTHY``
of the codes alive, or after ``CHECKS`` checks (some games have fewer patterns than there are
codes): from then on no code jumps.

Nothing here waits for the device. Dimension legend: n vectors, v codes, d dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmfast.kernels import code_sums

PERIOD = 100
HEALTHY = 0.95
CHECKS = 20
_EPSILON = 1e-5
_START = 1e-3
_GOLDEN = 0.6180339887498949


class EmaCodebook(nn.Module):
    """Moving averages of a codebook that lives elsewhere; float32 buffers ``count`` and ``sum``."""

    count: Tensor
    sum: Tensor
    updates: Tensor
    settled: Tensor

    def __init__(self, codes: int, dim: int, decay: float, threshold: float) -> None:
        super().__init__()
        self.decay = decay
        self.threshold = threshold
        self.register_buffer("count", torch.full((codes,), _START))
        self.register_buffer("sum", torch.zeros(codes, dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))

    def restart(self, codes_vd: Tensor) -> None:
        """Begin at these codes, with so little weight that the first vectors decide."""
        self.count.fill_(_START)
        self.sum.copy_(codes_vd * _START)
        self.updates.zero_()
        self.settled.fill_(False)

    @torch.no_grad()
    def update(self, codes_vd: Tensor, vectors_nd: Tensor, index_n: Tensor) -> Tensor:
        """Move ``codes_vd`` in place, given float32 vectors and their codes; returns n_v, (V,)."""
        n_v, sum_vd = code_sums(vectors_nd, index_n, len(codes_vd))
        self.count.mul_(self.decay).add_(n_v, alpha=1 - self.decay)
        self.sum.mul_(self.decay).add_(sum_vd, alpha=1 - self.decay)
        total = self.count.sum()
        smoothed_v = (self.count + _EPSILON) * total / (total + len(n_v) * _EPSILON)
        used_v1 = (n_v > 0)[:, None]
        codes_vd.copy_(torch.where(used_v1, self.sum / smoothed_v[:, None], codes_vd))
        self.updates += 1
        self._revive(codes_vd, vectors_nd)
        return n_v

    def _revive(self, codes_vd: Tensor, vectors_nd: Tensor) -> None:
        """At a check that is due, put dead codes onto vectors spread over the batch."""
        due = (self.updates % PERIOD == 0) & ~self.settled
        floor = self.threshold * self.count.mean()
        dead_v = self.count < floor
        healthy = dead_v.float().mean() <= 1 - HEALTHY
        self.settled |= due & (healthy | (self.updates >= CHECKS * PERIOD))
        reset_v1 = (dead_v & due & ~self.settled)[:, None]

        # Golden-ratio steps spread any number of picks evenly, and need no random state.
        turn_v = torch.arange(len(codes_vd), device=codes_vd.device) + self.updates
        pick_v = (turn_v.double() * _GOLDEN % 1 * len(vectors_nd)).long()
        live_vd = vectors_nd[pick_v.clamp_(max=len(vectors_nd) - 1)]
        # 0.99: dead again at the next check if never used
        fresh = 0.99 * floor / self.decay**PERIOD
        codes_vd.copy_(torch.where(reset_v1, live_vd, codes_vd))
        self.count.copy_(torch.where(reset_v1[:, 0], fresh, self.count))
        self.sum.copy_(torch.where(reset_v1, live_vd * fresh, self.sum))
