"""Rehearsal: under the rarest code, drawn evenly over codes; full codes keep an even sample."""

from __future__ import annotations

import numpy as np

from wmfast.frame_window import compress
from wmfast.rehearsal import CodebookRehearsal, rarest_codes

USAGE = np.array([1000.0, 3.0, 50.0, 7.0, 0.0])


def blob(number: int) -> bytes:
    return compress(np.full((84, 64, 3), number, np.uint8))


def tokens(*codes: int) -> np.ndarray:
    """Frames of background, the top-left corner too, each with one other code somewhere."""
    frames = np.zeros((len(codes), 336), np.uint16)
    frames[np.arange(len(codes)), 100 + np.arange(len(codes))] = codes
    return frames


def stored(rehearsal: CodebookRehearsal) -> list[list[int]]:
    """By code, the numbers of its frames."""
    arrays = rehearsal.arrays()
    numbers = iter([int(np.frombuffer(zipped, np.uint8)[0]) for zipped in unzip(rehearsal)])
    return [[next(numbers) for _ in range(int(count))] for count in arrays["counts"]]


def unzip(rehearsal: CodebookRehearsal) -> list[bytes]:
    import zlib

    return [zlib.decompress(b) for b in rehearsal.blobs()]


def test_a_frame_is_filed_under_the_rarest_of_its_codes_wherever_that_is() -> None:
    frames = tokens(3, 2, 0, 1)
    frames[1, 335] = 1  # 2 and 1: 1 is rarer
    assert rarest_codes(frames, USAGE).tolist() == [3, 1, 0, 1]
    rehearsal = CodebookRehearsal(5, 4)
    rehearsal.file([blob(n) for n in range(4)], frames, USAGE, np.random.default_rng(0))
    assert stored(rehearsal) == [[2], [1, 3], [], [0], []]


def test_draws_are_even_over_the_codes_that_have_frames() -> None:
    rehearsal = CodebookRehearsal(5, 50)
    codes = [2] * 45 + [3] * 4 + [1]
    rehearsal.file([blob(code) for code in codes], tokens(*codes), USAGE, np.random.default_rng(0))
    drawn = rehearsal.draw(3000, np.random.default_rng(1))[:, 0, 0, 0]
    shares = np.bincount(drawn, minlength=5) / 3000
    np.testing.assert_allclose(shares, [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=0.03)


def test_a_full_code_keeps_an_even_sample_of_all_its_frames() -> None:
    ages = []
    for seed in range(150):
        rehearsal = CodebookRehearsal(5, 5)
        rng = np.random.default_rng(seed)
        for number in range(0, 200, 10):  # ten at a time
            numbers = range(number, number + 10)
            rehearsal.file([blob(n) for n in numbers], tokens(*[1] * 10), USAGE, rng)
        assert len(rehearsal) == 5
        ages += stored(rehearsal)[1]
    counts = np.histogram(ages, bins=4, range=(0, 200))[0]
    assert counts.min() > 0.7 * len(ages) / 4


def test_frames_are_filed_anew_by_the_codes_as_they_are_now() -> None:
    rehearsal = CodebookRehearsal(5, 4)
    rng = np.random.default_rng(0)
    rehearsal.file([blob(n) for n in range(4)], tokens(3, 3, 1, 2), USAGE, rng)
    # 3 means what 4 meant, and nothing has 2: code order of blobs() is 1, 2, 3, 3
    rehearsal.file_again(tokens(1, 0, 4, 4), USAGE, rng)
    assert stored(rehearsal) == [[3], [2], [], [], [0, 1]]


def test_a_loaded_store_goes_on_as_the_saved_one() -> None:
    one, other = CodebookRehearsal(5, 3), CodebookRehearsal(5, 3)
    one.file([blob(n) for n in range(9)], tokens(*[1] * 7, 2, 3), USAGE, np.random.default_rng(0))
    other.load(one.arrays())
    for rehearsal in (one, other):
        more = np.random.default_rng(1)
        rehearsal.file([blob(n) for n in range(50, 60)], tokens(*[1] * 10), USAGE, more)
    assert stored(one) == stored(other)
    assert one.draw(8, np.random.default_rng(2)).tolist() == (
        other.draw(8, np.random.default_rng(2)).tolist()
    )
