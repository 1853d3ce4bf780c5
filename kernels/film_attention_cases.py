"""What the tuner times of ``film_attention``: bfloat16 heads of 64, four frames of 336 tokens."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from wmfast.kernels import film_attention_backward as backward
from wmfast.kernels import film_attention_forward as forward
from wmfast.kernels import launch
from wmfast.kernels.launch import Config
from wmfast.kernels.tune import Tunable

_HEADS, _WIDTH, _FRAME, _LENGTH = 4, 64, 336, 4 * 336
_CANDIDATES: tuple[Config, ...] = tuple(
    {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}
    for m, n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3))
)


def tunables(device: torch.device) -> Iterator[Tunable]:
    """The forward kernel and both of the backward, for a batch that fills a GPU and for one."""
    for batch in (32, 1):
        rows = torch.randn(4, batch, _HEADS, _LENGTH, _WIDTH, device=device, dtype=torch.bfloat16)
        film = torch.randn(2, batch, _HEADS, _WIDTH, device=device, dtype=torch.bfloat16)
        for op, part in ((forward.OP, None), (backward.QUERIES, 0), (backward.KEYS, 1)):
            call = functools.partial(_try, op, functools.partial(_run, rows, film, part))
            bucket = forward.bucket(rows[0])
            yield Tunable(op, "bfloat16", bucket, _CANDIDATES, call)


def _try(op: str, run: Callable[[], Tensor], config: Config) -> Tensor:
    with launch.trying(op, config):
        return run()


def _run(rows: Tensor, film: Tensor, part: int | None) -> Tensor:
    """The answer, or its gradient in q (0) or k (1)."""
    scale = _WIDTH**-0.5
    q, k, v, do = rows.unbind()
    gamma, beta = film.unbind()
    o, lse = forward.forward(q, k, v, gamma, beta, _FRAME, scale)
    if part is None:
        return o
    return backward.backward(do, q, k, v, gamma, beta, o, lse, _FRAME, scale)[part]
