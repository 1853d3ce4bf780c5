"""Weighted k-means (Lloyd 1982) with a k-means++ start (Arthur & Vassilvitskii 2007).

Dimension legend: n points, k clusters, d dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmfast.kernels import nearest_code


def kmeans(
    points_nd: Tensor, weight_n: Tensor, clusters: int, generator: torch.Generator, *, rounds: int
) -> Tensor:
    """Cluster centres, float32 (k, d), of float32 points with non-negative weights.

    With no more distinct points than clusters, every point is a centre and the first is repeated.
    An emptied cluster moves to the point that adds most to the error. ``generator`` is on the CPU.
    """
    if len(points_nd) <= clusters:
        filler = points_nd[:1].expand(clusters - len(points_nd), -1)
        return torch.cat([points_nd, filler])
    centre_kd = _plus_plus(points_nd, weight_n, clusters, generator)
    for _ in range(rounds):
        index_n = nearest_code(points_nd, centre_kd)
        mass_k = weight_n.new_zeros(clusters)
        mass_k.index_add_(0, index_n, weight_n)
        sum_kd = torch.zeros_like(centre_kd).index_add_(0, index_n, points_nd * weight_n[:, None])
        error_n = (points_nd - centre_kd[index_n]).square().sum(1) * weight_n
        worst_kd = points_nd[error_n.topk(clusters).indices]
        empty_k = mass_k == 0
        rank_k = (empty_k.cumsum(0) - 1).clamp(min=0)  # the i-th empty cluster takes the i-th worst
        mean_kd = sum_kd / mass_k.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        centre_kd = torch.where(empty_k[:, None], worst_kd[rank_k], mean_kd)
    return centre_kd


def _plus_plus(
    points_nd: Tensor, weight_n: Tensor, clusters: int, generator: torch.Generator
) -> Tensor:
    """Each next centre is a point, drawn in proportion to its weighted squared distance."""
    draw_k = torch.rand(clusters, generator=generator, dtype=torch.float64).to(points_nd.device)
    square_n = points_nd.square().sum(1)
    distance_n = torch.full_like(weight_n, torch.inf)
    chance_n = weight_n
    chosen = []
    for draw in draw_k:
        cumulative_n = chance_n.double().cumsum(0)
        index = torch.searchsorted(cumulative_n, (draw * cumulative_n[-1])[None], right=True)
        centre_d = points_nd[index.clamp(max=len(points_nd) - 1)[0]]
        chosen.append(centre_d)
        to_centre_n = square_n - 2 * (points_nd @ centre_d) + centre_d.square().sum()
        distance_n = torch.minimum(distance_n, to_centre_n.clamp(min=0))
        chance_n = distance_n * weight_n
    return torch.stack(chosen)
