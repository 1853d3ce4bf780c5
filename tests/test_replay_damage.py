"""Files of a TokenReplay with one thing wrong: refused by name, or every row is as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from replay_killing import ENVS, KEPT, TOKENS, add, draw_and_update, make

from wmfast import TokenReplay

PAGE, SLOTS, STEPS = 4096, KEPT + 1, 70
ROWS = ENVS * SLOTS
# Bytes of a row in each section of a store, in file order; each section begins on a page. A row:
# 16 bytes of fields (the last 4: which final frame), its tokens, 2 bytes of padding.
SECTIONS = {"rows": 16 + 2 * TOKENS + 2, "leaves": 8, "row_check": 8, "finals": 2 * TOKENS}
FINAL_OF = 12
# Of the header: what never changes; the count of steps and its check; what may be anything sound.
COUNTS, MOVING = range(160, 176), range(176, 248)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    replay = make(True, folder / "store")
    for t in range(STEPS):
        add(replay, t, True)
        draw_and_update(replay, t)
    replay.save(folder / "snapshot")
    del replay
    return {name: (folder / name).read_bytes() for name in ("store", "snapshot")}


def rows_of(replay: TokenReplay) -> dict[int, list]:
    """Every row that can be drawn and where it leads, whatever the priorities were."""
    issued = replay.stats()["added"]
    replay.update_priorities(np.arange(issued), np.ones(issued))
    count = int(replay.stats()["drawable"])
    batch = replay.sample(2 * count)
    names = ("state", "next_state", "action", "reward", "discount")
    rows = {
        int(row): [batch[name][i].tolist() for name in names] for i, row in enumerate(batch.index)
    }
    assert len(rows) == count
    return rows


def opened(path: Path, data: bytes) -> dict[int, list] | str:
    """What the store holds, or why it was refused."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    try:
        replay = make(True, path)
    except ValueError as error:
        return str(error).removeprefix(f"{path}: ")
    return rows_of(replay)


def flipped(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def section_begins() -> dict[str, int]:
    begins, at = {}, PAGE
    for name, width in SECTIONS.items():
        begins[name] = at
        count = (ROWS + 7) // 8 * 8 if name == "leaves" else ROWS
        at += (count * width + PAGE - 1) // PAGE * PAGE
    return {**begins, "end": at}


def test_the_sections_lie_where_these_tests_think(good) -> None:
    assert len(good["store"]) == section_begins()["end"]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_flip_in_any_section_is_refused_or_changes_no_row(tmp_path, good, section: str) -> None:
    rng = np.random.default_rng(list(SECTIONS).index(section))
    sound = opened(tmp_path / "store", good["store"])
    assert len(sound) > ENVS * KEPT // 2
    begin, width = section_begins()[section], SECTIONS[section]
    spare = STEPS % SLOTS  # of each env; finals and leaves are not by env and slot
    refused, cases = 0, 500 if section == "rows" else 100
    for case in range(cases):
        row, byte = int(rng.integers(ROWS)), int(rng.integers(width))
        mask = 1 << int(rng.integers(8)) if case % 2 else int(rng.integers(1, 256))
        data = flipped(good["store"], begin + row * width + byte, mask)
        result = opened(tmp_path / "store", data)
        refused += isinstance(result, str)
        if section == "leaves":
            assert result == sound  # one that can't be right is replaced, see below
        elif section == "finals" or row % SLOTS == spare:
            assert result == sound or "damaged row: env" in result
        else:
            step = STEPS - 1 - (STEPS - 1 - row % SLOTS) % SLOTS
            assert result == f"damaged row: env {row // SLOTS} step {step}"
    if section not in ("leaves", "finals"):
        assert refused >= 0.8 * cases
    assert section != "finals" or refused >= 5  # only some of the frames are in use


def test_a_flip_in_the_header_is_refused_or_changes_no_row(tmp_path, good) -> None:
    sound = opened(tmp_path / "store", good["store"])
    refusals = ("is not a replay buffer", "has format version", "damaged header", "damaged row")
    for at in range(MOVING.stop):
        for mask in (1, 0x80, 0xFF):
            result = opened(tmp_path / "store", flipped(good["store"], at, mask))
            if at < MOVING.start:
                assert isinstance(result, str), f"byte {at}"
                assert result.startswith(refusals)
                assert at in COUNTS or not result.startswith("damaged row")
            else:
                assert result == sound or result.startswith(("damaged header", "damaged row"))
    for at in np.random.default_rng(0).integers(MOVING.stop, PAGE, 50):
        assert opened(tmp_path / "store", flipped(good["store"], int(at), 0xFF)) == sound


def test_header_fields_that_cannot_be_right_are_refused(tmp_path, good) -> None:
    assert MOVING.stop - MOVING.start == 9 * 8
    cut_at, max_priority, rng, final_slots, rewriting, forgotten = (
        MOVING.start + 8 * k for k in (0, 1, 2, 6, 7, 8)
    )
    for at, bad in {
        max_priority: [np.float64(x).tobytes() for x in (np.nan, np.inf, -1.0, 1e308)],
        rng: [bytes(32)],
        rewriting: [(1).to_bytes(8, "little"), (ROWS + 1).to_bytes(8, "little"), b"\xff" * 8],
        forgotten: [(3).to_bytes(8, "little"), b"\xff" * 8],
        final_slots: [(ROWS + 1).to_bytes(8, "little"), b"\xff" * 8],
    }.items():
        for value in bad:
            data = good["store"][:at] + value + good["store"][at + len(value) :]
            if value == np.float64(1e308).tobytes():  # its power is small enough: kept
                assert isinstance(opened(tmp_path / "store", data), dict)
            else:
                assert opened(tmp_path / "store", data) == "damaged header"
    data = good["store"][:cut_at] + STEPS.to_bytes(8, "little") + good["store"][cut_at + 8 :]
    assert isinstance(opened(tmp_path / "store", data), dict)


def test_priorities_that_cannot_be_right_become_the_largest_seen(tmp_path, good) -> None:
    path = tmp_path / "store"
    path.write_bytes(good["store"])
    replay = make(True, path)
    stats = replay.stats()
    del replay
    leaves = section_begins()["leaves"]
    count = ROWS * 8
    for bad in (np.nan, np.inf, -np.inf, -1.0, 1.7e308):
        data = good["store"][:leaves] + np.full(ROWS, bad).tobytes()
        path.unlink()
        path.write_bytes(data + good["store"][leaves + count :])
        replay = make(True, path)
        now = replay.stats()
        assert now["drawable"] == stats["drawable"]
        largest = stats["max_priority"] ** 0.6
        assert now["priority_sum"] == pytest.approx(stats["drawable"] * largest, rel=1e-12)
        del replay


def test_two_rows_never_share_a_final_frame(tmp_path) -> None:
    """One would be overwritten with the other's: refused even where the frames are equal."""
    path = tmp_path / "store"
    replay = make(True, path)
    yes, frames = np.ones(ENVS, bool), np.zeros((ENVS, TOKENS), np.uint16)
    for _ in range(4):
        replay.add(frames, [0] * ENVS, [0.0] * ENVS, yes, yes, final_frames=frames)
    del replay
    data = bytearray(path.read_bytes())
    rows = np.frombuffer(data, np.uint8, ROWS * SECTIONS["rows"], PAGE).reshape(ROWS, -1)
    final_of = rows[:, FINAL_OF : FINAL_OF + 4].view("<u4")[:, 0]
    assert sorted(final_of[final_of > 0].tolist()) == list(range(1, 4 * ENVS + 1))
    final_of[1] = final_of[0]
    assert opened(path, bytes(data)) == (
        "damaged row: env 0 step 1 has the final frame of another row"
    )


def test_a_store_of_any_other_length_is_refused(tmp_path, good) -> None:
    rng = np.random.default_rng(1)
    size = len(good["store"])
    for length in [0, 1, 8, 4095, 4096, size - 1, *rng.integers(0, size, 100).tolist()]:
        result = opened(tmp_path / "store", good["store"][:length])
        assert isinstance(result, str)
        assert result.startswith(("the file ends too early", f"is {length} bytes long, should be"))
    assert "bytes long" in opened(tmp_path / "store", good["store"] + b"\0")


def test_torn_pages_are_refused_or_change_no_row(tmp_path, good) -> None:
    """Pages of an earlier state among those of a later one, as a power failure leaves them."""
    path = tmp_path / "old"
    replay = make(True, path)
    for t in range(STEPS - 5):
        add(replay, t, True)
        draw_and_update(replay, t)
    del replay
    old, rng = path.read_bytes(), np.random.default_rng(2)
    assert len(old) == len(good["store"])
    whole = [opened(tmp_path / "store", data) for data in (good["store"], old)]
    pages, refused = len(old) // PAGE, 0
    for _ in range(150):
        data = bytearray(good["store"])
        for page in np.flatnonzero(rng.random(pages) < rng.choice([0.1, 0.5])):
            data[page * PAGE : (page + 1) * PAGE] = old[page * PAGE : (page + 1) * PAGE]
        result = opened(tmp_path / "store", bytes(data))
        refused += isinstance(result, str)
        assert isinstance(result, str) or result in whole  # but for priorities
    assert refused > 80  # the others lost no page, or all of one kind


def test_any_flip_or_cut_of_a_snapshot_is_refused(tmp_path, good) -> None:
    rng, path, data = np.random.default_rng(3), tmp_path / "snapshot", good["snapshot"]
    for case in range(400):
        at = int(rng.integers(len(data)) if case % 4 else rng.integers(256))
        bad = data[:at] if case % 5 == 0 else flipped(data, at, int(rng.integers(1, 256)))
        path.unlink(missing_ok=True)
        path.write_bytes(bad)
        why = r"damaged|is not a replay buffer|has format version|the file ends too early"
        with pytest.raises(ValueError, match=f"^{path}: ({why})"):
            TokenReplay.load(path)
