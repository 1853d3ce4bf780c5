"""Codes that go on learning: moving averages toward what is assigned to them, and new places.

Online weighted k-means, for any tokenizer: codes are compared with vectors (pixels of a patch, or
an encoder's outputs), and after each batch

    count_v <- g count_v + (1 - g) n_v        n_v vectors of the batch are nearest to code v
    mean_v  <- (g count_v mean_v + (1 - g) sum of them) / (new count_v)

A code without vectors in a batch stays where it is. From time to time a code that is not worth its
place moves onto what fits worst: of the vectors far from their codes, the one that would gain most
takes the place of the code that would be missed least,

    gain = mean over a sample of what the squared error falls by, the candidate's own left out
    cost = share of all vectors that have the code  *  squared distance to its nearest other code

if gain > MARGIN * cost. A code that nothing uses costs nothing. One that only rehearsed frames use
costs what it is worth to them, in a batch where they are drawn evenly over the codes: looks that a
game no longer shows keep their codes. Of two codes that are nearly one the less used one moves.

Dimension legend: b frames, n vectors, v codes, d dimensions, m candidates; frames are uint8
(B, 84, 64, 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmfast.kernels import code_sums, nearest_code
from wmfast.models.tokenizer_interface import Tokenizer
from wmfast.types import Metrics

MARGIN = 2.0
_WORST = 4096  # vectors looked at, those that fit worst
_CANDIDATES = 512  # of these
_TWIN = 1e-3  # of the mean distance: codes nearer than that are one


class MovingCodes(nn.Module):
    """Moving averages of a tokenizer's codes; the tokenizer itself is not part of the state.

    Args:
        tokenizer: its codes are moved in place; it stays in eval mode.
        decay: g.
        autocast: run its encoder under bfloat16 autocast, as its users do.
    """

    count: Tensor
    mean: Tensor

    def __init__(self, tokenizer: Tokenizer, *, decay: float, autocast: bool) -> None:
        super().__init__()
        points_vd = tokenizer.points()
        self._tokenizer = [tokenizer]  # in a list: not a submodule
        self._decay = decay
        self._autocast = torch.autocast(
            points_vd.device.type, dtype=torch.bfloat16, enabled=autocast
        )
        self.register_buffer("count", points_vd.new_zeros(len(points_vd)))
        self.register_buffer("mean", torch.zeros_like(points_vd))

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer[0]

    @torch.no_grad()
    def begin(self, usage_v: Tensor, vectors: int) -> None:
        """Start at the tokenizer's codes; `usage_v` (V,), in any unit, tells how heavy each is in a
        batch of so many vectors."""
        share_v = usage_v.float() / usage_v.sum().clamp(min=1)
        self.count.copy_(share_v * vectors)
        self.mean.copy_(self.tokenizer.points())

    @torch.no_grad()
    def follow(self, frames_bhwc: Tensor) -> Metrics:
        """Move the codes toward what they stand for in uint8 (B, 84, 64, 3) frames.

        Returns:
            ``perplexity`` of the codes' use and ``fit``: mean squared distance to the code.
        """
        vectors_nd = self._vectors(frames_bhwc)
        points_vd = self.tokenizer.points()
        index_n = nearest_code(vectors_nd, points_vd)
        n_v, sum_vd = code_sums(vectors_nd, index_n, len(points_vd))
        kept_v = self._decay * self.count
        self.count.copy_(kept_v + (1 - self._decay) * n_v)
        used_v1 = (n_v > 0)[:, None]
        total_vd = kept_v[:, None] * self.mean + (1 - self._decay) * sum_vd
        tiny = torch.finfo(torch.float32).tiny
        moved_vd = total_vd / self.count.clamp(min=tiny)[:, None]
        self.mean.copy_(torch.where(used_v1, moved_vd, self.mean))
        self.tokenizer.move_codes(self.mean, used_v1[:, 0])
        share_v = n_v / n_v.sum()
        fit = (vectors_nd - points_vd[index_n]).square().sum(1).mean()
        return {"perplexity": torch.special.entr(share_v).sum().exp(), "fit": fit}

    @torch.no_grad()
    def reseed(self, frames_bhwc: Tensor, share_v: Tensor, most: int) -> int:
        """Give up to `most` codes a new place. Waits for the device.

        Args:
            frames_bhwc: the sample.
            share_v: float (V,), share of all vectors (not only the sample's) that have each code.
            most: codes at most.

        Returns:
            How many moved.
        """
        vectors_nd = self._vectors(frames_bhwc)
        points_vd = self.tokenizer.points().clone()
        index_n = nearest_code(vectors_nd, points_vd)
        error_n = (vectors_nd - points_vd[index_n]).square().sum(1)
        worst_n = error_n.topk(min(_WORST, len(error_n))).indices
        # Only these can gain much; what the others would gain is left out.
        vectors_md, error_m, index_m = vectors_nd[worst_n], error_n[worst_n], index_n[worst_n]
        cost_v = _costs(points_vd, share_v)
        candidates_cd = vectors_md[:_CANDIDATES]
        distance_cm = torch.cdist(candidates_cd, vectors_md).square()
        distance_cm.fill_diagonal_(torch.inf)  # what a candidate gains by itself is chance
        moved: dict[int, int] = {}
        while len(moved) < most:
            gain_c = (error_m - distance_cm).clamp(min=0).sum(1) / len(error_n)
            best, code = int(gain_c.argmax()), int(cost_v.argmin())
            if not gain_c[best] > MARGIN * cost_v[code]:
                break
            moved[code] = int(index_m[best])
            points_vd[code] = candidates_cd[best]
            cost_v = _costs(points_vd, share_v)  # its twin may be the only one now
            cost_v[list(moved)] = torch.inf
            error_m = torch.minimum(error_m, distance_cm[best])
            error_m[best] = 0.0
        if moved:
            which_n = torch.tensor(list(moved), device=points_vd.device)
            like_n = torch.tensor(list(moved.values()), device=points_vd.device)
            self.mean[which_n] = points_vd[which_n]
            self.count[which_n] = 0.0  # the first vectors decide
            which_v = torch.zeros_like(self.count, dtype=torch.bool)
            which_v[which_n] = True
            self.tokenizer.move_codes(self.mean, which_v)
            self.tokenizer.inherit(which_n, like_n)
        return len(moved)

    def _vectors(self, frames_bhwc: Tensor) -> Tensor:
        with self._autocast:
            return self.tokenizer.vectors(frames_bhwc)


def _costs(points_vd: Tensor, share_v: Tensor) -> Tensor:
    """By how much the mean squared error rises, at most, without each code, (V,)."""
    square_v = points_vd.square().sum(1)
    distance_vv = square_v[:, None] + square_v - 2 * points_vd @ points_vd.T
    apart_v = distance_vv.fill_diagonal_(torch.inf).min(1).values
    return share_v.to(points_vd) * apart_v.clamp(min=_TWIN * apart_v.mean())
