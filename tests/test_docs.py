"""What docs/*.md shows runs as it stands there; the errors and numbers it explains are real."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_replay_torch import NUMPY_ALONE

from wmfast import TokenReplay

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
REPLAY = (ROOT / "docs" / "replay.md").read_text()


def examples(page: str) -> dict[str, str]:
    """Python blocks by the heading above them; a page has at most one under each."""
    found: dict[str, str] = {}
    for section in re.split(r"^#+ ", page, flags=re.MULTILINE):
        blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
        assert len(blocks) <= 1, blocks
        found.update({section.partition("\n")[0]: block for block in blocks})
    return found


EVERY = [(page.name, head) for page in PAGES for head in examples(page.read_text())]


def run(heading: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "example"}
    exec(examples(REPLAY)[heading], names)
    return names


@pytest.mark.parametrize(("page", "heading"), EVERY, ids=lambda name: name)
def test_the_example_runs(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = examples((ROOT / "docs" / page).read_text())[heading]
    exec(example, {"__name__": "example"})


def test_the_plain_loop_needs_numpy_alone() -> None:
    program = NUMPY_ALONE + examples(REPLAY)["A plain numpy loop"]
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_the_plain_loop_learns_from_what_it_added() -> None:
    stats = run("A plain numpy loop")["buffer"].stats()
    assert stats["added"] == 800
    assert stats["sampled"] == stats["updated"] == 150 * 32


def test_both_autoreset_modes_give_the_same_episodes() -> None:
    play = run("A Gymnasium vector env")["play"]
    for autoreset in ("next_step", "same_step"):
        buffer = play(autoreset, steps=70)
        assert buffer.stats()["episodes"] > 30
        batch = buffer.sample(512)
        ball = (batch.state.reshape(512, 4, 8, 8) == 3).argmax(axis=2).max(axis=2)  # its row
        assert set(ball[:, -1]) == set(range(7))  # a state of each height, none that has landed
        after = (batch.next_state.reshape(512, 4, 8, 8) == 3).argmax(axis=2).max(axis=2)
        assert (after[:, -1] == ball[:, -1] + 1).all()
        assert ((after[:, -1] == 7) == (batch.discount == 0)).all()


def test_the_store_is_taken_over_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heading = "A store that survives a crash"
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    program = examples(REPLAY)[heading] + kill
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert killed.returncode == -9
    monkeypatch.chdir(tmp_path)
    names = run(heading)
    assert names["taken_over"] is True
    assert len(names["buffer"]) == 240
    assert names["buffer"].stats()["episodes"] == 4  # the cut


def test_a_forked_data_loader_worker_is_what_the_page_says() -> None:
    program = """
import warnings
import numpy as np
from torch.utils.data import DataLoader, IterableDataset
from wmfast import TokenReplay

class Draws(IterableDataset):
    def __iter__(self):
        for _ in range(3):
            yield buffer.sample(8).index

buffer = TokenReplay(100, 2, frame_shape=(3,))
no = np.zeros(2, bool)
for t in range(40):
    buffer.add(np.zeros((2, 3), np.uint16), [0, 0], [0, 0], no, no)
loader = DataLoader(Draws(), batch_size=None, num_workers=2, multiprocessing_context="fork")
drawn = [batch.tolist() for batch in loader]
assert drawn[0::2] == drawn[1::2] and drawn[0] != drawn[2], drawn
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return f"{caught.type.__name__}: {caught.value}"


def test_the_errors_are_those_of_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    no = np.zeros(2, bool)
    frames = np.zeros((2, 6), np.uint16)

    def make(**options: object) -> TokenReplay:
        return TokenReplay(40, 2, frame_shape=(2, 3), **options)

    def add(replay: TokenReplay, frames=frames, rewards=(0.0, 0.0), ended=no, **more) -> None:
        replay.add(frames, [0, 0], rewards, ended, no, **more)

    def filled(**options: object) -> TokenReplay:
        replay = make(**options)
        for _ in range(9):
            add(replay)
        return replay

    filled().save("replay.snapshot")
    damaged = bytearray(Path("replay.snapshot").read_bytes())
    damaged[-1] ^= 1
    Path("replay.snapshot").write_bytes(damaged)
    store = make(path="replay.store")
    add(store)
    in_use = error_of(lambda: make(path="replay.store"))
    del store
    raised = [
        error_of(lambda: add(make(), frames.astype(np.int64))),
        error_of(lambda: add(make(), np.zeros((3, 6), np.uint16))),
        error_of(lambda: add(make(), np.zeros((6, 2), np.uint16).T)),
        error_of(lambda: add(make(), frames + np.uint16(600))),
        error_of(lambda: add(make(), rewards=(0.0, np.nan))),
        error_of(lambda: add(make(), ended=np.zeros(2, np.int64))),
        error_of(lambda: add(make(), final_frames=frames)),
        error_of(lambda: add(make(autoreset="same_step"), ended=~no)),
        error_of(lambda: make().sample(32)),
        error_of(lambda: filled(n_step=3).sample(4, window=True)),
        error_of(lambda: filled().update_priorities([99], [1.0])),
        error_of(lambda: filled().update_priorities([0], [np.nan])),
        error_of(lambda: make(prioritized=False).update_priorities([0], [1.0])),
        in_use,
        error_of(lambda: TokenReplay(80, 2, frame_shape=(2, 3), path="replay.store")),
        error_of(lambda: TokenReplay.load("replay.store")),
        error_of(lambda: TokenReplay.load("replay.snapshot")),
        error_of(lambda: TokenReplay(10**12, 8)),
    ]
    rows = re.findall(r"^\| `(\w+Error: .*?)` \|", REPLAY, flags=re.MULTILINE)
    assert len(rows) == len(raised)
    for row, message in zip(rows, raised, strict=True):
        if row.endswith(" ..."):
            assert message.startswith(row.removesuffix("..."))
        else:
            assert message == row


def test_every_stat_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", REPLAY.partition("## Reading")[2], flags=re.MULTILINE)
    assert rows == list(TokenReplay(40, 2).stats())


def test_the_memory_arithmetic_is_right() -> None:
    # what the page says a step takes, for frames of 336 tokens
    for options, said in [
        ({}, 378 + 12 + 2 + 9),
        ({"prioritized": False}, 378 + 12 + 2),
        ({"autoreset": "same_step"}, 378 + 12 + 2 + 9 + 4),
        ({"vocab_size": 256}, 336 + 12 + 2 + 9),
        ({"vocab_size": 256, "dtype": "uint8"}, 336 + 12 + 2 + 9),
        ({"vocab_size": 4096}, 336 * 12 / 8 + 12 + 2 + 9),
        ({"vocab_size": 4097}, 672 + 12 + 2 + 9),
    ]:
        replay = TokenReplay(100_000, 8, **options)
        assert replay.nbytes / replay.capacity == pytest.approx(said, abs=2.5)


def test_links_go_somewhere() -> None:
    for page in PAGES:
        text = page.read_text()
        heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in anchors, target
            elif not target.startswith("http"):
                assert (page.parent / target).exists(), target
