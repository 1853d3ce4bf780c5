"""Scalar, AVX2 and AVX-512: the same stream and seed give the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wmfast import TokenReplay

PATHS = ("scalar", "avx2", "avx512")


def supported() -> list[str]:
    """The paths of this machine; the widest one is what a buffer takes by itself."""
    return list(PATHS[: PATHS.index(TokenReplay(8, 2).isa) + 1])


def drawn(
    monkeypatch: pytest.MonkeyPatch, isa: str, folder: Path, options: dict
) -> tuple[list[np.ndarray], bytes]:
    """Everything that a buffer on this path gives, and its snapshot."""
    monkeypatch.setenv("WMFAST_CPU", isa)
    rng = np.random.default_rng(1)
    dtype = np.dtype(options.get("dtype", "uint16"))
    vocab = min(options.get("vocab_size", 512), 256 if dtype == np.uint8 else 65536)
    tokens = int(np.prod(options["frame_shape"]))
    replay = TokenReplay(3 * 400, 3, seed=9, n_step=2, **options)
    assert replay.isa == isa
    arrays = []
    for t in range(700):
        replay.add(
            rng.integers(0, vocab, (3, tokens)).astype(dtype),
            rng.integers(0, 18, 3),
            rng.normal(size=3),
            rng.random(3) < 0.02,
            rng.random(3) < 0.02,
        )
        if t < 20 or t % 3:
            continue
        batch = replay.sample(1 + t % 70, beta=0.7)
        runs = replay.sample_sequences(1 + t % 5, 6, recent=(300, 0.5))
        arrays += [batch[name].copy() for name in batch] + [runs[name].copy() for name in runs]
        if options.get("prioritized", True):
            replay.update_priorities(batch.index, rng.exponential(size=len(batch.index)))
        arrays.append(np.array(sorted(replay.stats().values())))
    replay.save(folder / isa)
    return arrays, (folder / isa).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"frame_shape": (21, 16)},
        {"frame_shape": (67,), "vocab_size": 200},
        {"frame_shape": (37,), "vocab_size": 1024, "history": 6, "prioritized": False},
        {"frame_shape": (5, 9), "vocab_size": 4096, "alpha": 1.0},
        {"frame_shape": (31,), "vocab_size": 65536},
        {"frame_shape": (50,), "dtype": "uint8"},
    ],
    ids=["512", "200", "1024", "4096", "65536", "uint8"],
)
def test_every_path_gives_the_same_bytes(monkeypatch, tmp_path, options) -> None:
    paths = supported()
    if len(paths) == 1:
        pytest.skip("this machine has one path only")
    arrays, snapshot = drawn(monkeypatch, paths[0], tmp_path, options)
    assert len(arrays) > 1000
    for isa in paths[1:]:
        others, other_snapshot = drawn(monkeypatch, isa, tmp_path, options)
        for ours, theirs in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert other_snapshot == snapshot


def test_a_path_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMFAST_CPU", "sse9")
    with pytest.raises(ValueError, match="WMFAST_CPU is 'sse9', allowed are scalar, avx2, avx512"):
        TokenReplay(80, 2)
    monkeypatch.setenv("WMFAST_CPU", "")
    assert TokenReplay(80, 2).isa == supported()[-1]
