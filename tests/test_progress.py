"""What is shown is what happened: plain where nobody looks, numbers as they were given."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from wmfast.closing import Summary, closing_table
from wmfast.progress import Reporter
from wmfast.stopwatch import Stopwatch
from wmfast.wording import print_plain


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def run_of_two_phases(reporter: Reporter, clock: Clock) -> None:
    with reporter:
        reporter.phase("fitting the tokenizer", total=10)
        for step in range(1, 11):
            clock.seconds += 1
            reporter.advance_to(step)
        reporter.phase("training", total=20_000, completed=2_000, unit="env steps")
        for step in range(2_500, 20_001, 500):
            clock.seconds += 1
            row = {"env_step": step, "train_step": 1, "wall_s": 1.0, "agent/train/q": 99.0}
            row |= {"collect/return": 812.5, "agent/train/loss": 0.01234, "collect/epsilon": 0.25}
            reporter.update(row)
            if step == 8_000:
                with reporter.aside("evaluating", total=10, unit="games"):
                    clock.seconds += 60
                    reporter.advance(10)
                reporter.update({"eval/greedy/return": 950.0})
                reporter.update({"eval/greedy/return": 900.0})
                reporter.message("greedy: 950")
            reporter.advance_to(step)


def test_plain_lines_where_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would take this for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    clock, stream = Clock(), io.StringIO()
    run_of_two_phases(Reporter.create(20_000, stream=stream, every_s=10, now=clock), clock)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) <= 12  # 106 seconds at one line each 10, phases' ends and the message apart
    assert "[   0:10] fitting the tokenizer: 10 of 10 steps in 0:10, 1 steps/s" in lines
    assert any(line.endswith("greedy: 950") for line in lines)
    # 18,000 steps in 36 s: the minute of evaluation is not training's.
    assert lines[-1].endswith("training: 20,000 of 20,000 env steps in 0:36, 500 env steps/s")
    late = [line for line in lines if "last eval" in line][-1]
    assert "500 env steps/s" in late
    for fact in ("score 812.5", "agent loss 0.0123", "epsilon 0.25"):
        assert fact in late
    assert "last eval 900" in late
    assert "best eval 950" in late
    assert "99" not in late
    done, left = re.search(r"training  ([\d,]+)/20,000 .* ETA (\d+:\d\d)", late).groups()
    expected = (20_000 - int(done.replace(",", ""))) / 500
    assert left == f"0:{expected:02.0f}"


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while data := os.read(ours, 4096):
            shown.append(data)
            if b"the end" in data:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream:
        clock = Clock()
        run_of_two_phases(Reporter.create(20_000, stream=stream, now=clock), clock)
        print("the end", file=stream, flush=True)
        reader.join(timeout=10)
    os.close(ours)
    text = b"".join(shown).decode()
    assert "\x1b[" in text
    assert "greedy: 950" in text
    assert "training: 20,000 of 20,000 env steps in 0:36" in text
    assert "━" in text


def test_stopwatch_books_the_innermost_block() -> None:
    clock = Clock()
    stopwatch = Stopwatch({"agent": 10.0}, now=clock)
    for _ in range(2):
        with stopwatch("evaluation"):
            clock.seconds += 1
            with stopwatch("env"):
                clock.seconds += 5
            clock.seconds += 2
        clock.seconds += 100  # nobody's
    with stopwatch("agent"):
        clock.seconds += 0.5
        assert stopwatch.seconds()["agent"] == 10.5
    assert stopwatch.seconds() == {"agent": 10.5, "evaluation": 6.0, "env": 10.0}
    stopwatch.restore({"agent": 1.0})
    with stopwatch("env"):
        clock.seconds += 3
    assert stopwatch.seconds() == {"agent": 1.0, "evaluation": 0.0, "env": 3.0}


def test_stopwatch_closes_a_block_that_fails() -> None:
    clock = Clock()
    stopwatch = Stopwatch(now=clock)
    with contextlib.suppress(KeyError), stopwatch("agent"):
        clock.seconds += 1
        raise KeyError
    clock.seconds += 50
    assert stopwatch.seconds() == {"agent": 1.0}


SUMMARY = Summary(
    game="ms_pacman",
    preset="cpu",
    seed=7,
    env_steps=100_000,
    wall_s=250.0,
    run_dir=Path("runs/ms_pacman/cpu-s7"),
    protocol="sticky 0.25",
    scores={
        "greedy": {"mean": 845.0, "std": 31.25, "scores": [1] * 10, "human_normalised": 0.0809},
        "epsilon 0.01": {"mean": 901.5, "std": 0.0, "scores": [1], "human_normalised": None},
    },
    random_score=307.3,
    human_score=6951.6,
    tokenizer={"psnr": 34.12, "psnr_moving": 23.4, "live_codes": 498.0, "codebook_size": 512},
    tokenizer_played={"psnr": 29.96, "psnr_moving": None, "live_codes": 401.0, "perplexity": 88.2},
    world_model={
        "accuracy": 0.981,
        "copy_accuracy": 0.972,
        "changed_accuracy": 0.62,
        "reward_precision": 0.71,
        "reward_recall": 0.8,
        "rewards": 120.0,
        "done_precision": None,
        "done_recall": 0.5,
        "ends": 4.0,
    },
    seconds={"env": 50.0, "agent": 175.0},
    pictures={"dream": Path("runs/ms_pacman/cpu-s7/media/dream.gif")},
)


def by_first_words(text: str) -> dict[str, str]:
    return {line.split("  ")[0]: " ".join(line.split()) for line in text.splitlines()}


def closing_rows(summary: Summary) -> dict[str, str]:
    stream = io.StringIO()
    closing_table(summary, stream=stream)
    return by_first_words(stream.getvalue())


def test_closing_table_shows_the_numbers_given() -> None:
    stream = io.StringIO()
    closing_table(SUMMARY, stream=stream)
    text = stream.getvalue()
    assert "\x1b" not in text
    rows = by_first_words(text)
    assert rows["greedy"] == "greedy 845.0 ± 31.2 (10 games) 8.1 %"
    assert rows["epsilon 0.01"] == "epsilon 0.01 901.5 ± 0.0 (1 games) -"
    assert rows["random play"] == "random play 307.3 0.0 %"
    assert rows["human"] == "human 6,951.6 100.0 %"
    assert rows["Tokenizer"] == "Tokenizer random play, held out played by the agent"
    assert rows["PSNR"] == "PSNR 34.1 dB 30.0 dB"
    assert rows["PSNR of moving pixels"] == "PSNR of moving pixels 23.4 dB -"
    assert rows["live codes"] == "live codes 498 of 512 401 of 512"
    assert rows["perplexity of the codes"] == "perplexity of the codes - 88.2"
    assert rows["tokens right"] == "tokens right 98.1 % 97.2 %"
    assert rows["changed tokens right"] == "changed tokens right 62.0 % -"
    assert rows["rewards"] == "rewards 71.0 % 80.0 % 120"
    assert rows["ends of games"] == "ends of games - 50.0 % 4"
    assert rows["agent updates"] == "agent updates 175.0 s 70.0 %"
    assert rows["waiting for the games"] == "waiting for the games 50.0 s 20.0 %"
    assert rows["everything else"] == "everything else 25.0 s 10.0 %"
    assert rows["dream"].endswith("media/dream.gif")
    assert "ms_pacman, preset cpu, seed 7: 100,000 env steps in 4:10; sticky 0.25" in text
    assert text.index("agent updates") < text.index("waiting for the games")


def test_the_tokenizer_has_one_column_where_the_agent_played_nothing() -> None:
    rows = closing_rows(replace(SUMMARY, tokenizer_played={}))
    assert rows["Tokenizer"] == "Tokenizer random play, held out"
    assert rows["PSNR"] == "PSNR 34.1 dB"
    assert rows["live codes"] == "live codes 498 of 512"
    assert "perplexity of the codes" not in rows


def test_games_that_were_cut_off_are_counted_and_not_measured_by_a_human() -> None:
    result = {"mean": 845.0, "std": 31.25, "scores": [1] * 10, "human_normalised": 0.0809}
    cut, whole = [True, *[False] * 8, True], [False] * 10
    scores = {"greedy": result | {"cut_off": cut}, "epsilon 0.01": result | {"cut_off": whole}}
    rows = closing_rows(replace(SUMMARY, scores=scores))
    assert rows["greedy"] == "greedy 845.0 ± 31.2 (10 games, 2 cut off) -"
    assert rows["epsilon 0.01"] == "epsilon 0.01 845.0 ± 31.2 (10 games) 8.1 %"


def test_events_that_never_happened_were_neither_found_nor_missed() -> None:
    nothing = {"reward_precision": 0.0, "reward_recall": 0.0, "rewards": 0.0}
    missed = {"done_precision": 0.0, "done_recall": 0.0, "ends": 4.0}
    rows = closing_rows(replace(SUMMARY, world_model=nothing | missed))
    assert rows["rewards"] == "rewards - - 0"
    assert rows["ends of games"] == "ends of games 0.0 % 0.0 % 4"


def test_closing_table_leaves_out_what_was_not_measured() -> None:
    stream = io.StringIO()
    closing_table(Summary("pong", "smoke", 0, 0, 0.0, Path("runs/x")), stream=stream)
    assert stream.getvalue().split("\n") == [
        "",
        "pong, preset smoke, seed 0: 0 env steps in 0:00",
        "",
        "run folder  runs/x",
        "",
    ]


def test_a_poor_encoding_does_not_stop_a_run() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    closing_table(SUMMARY, stream=stream)
    assert b"845.0  ? 31.2 (10 games)" in raw.getvalue()


class Gone(io.StringIO):
    """A stream whose reader has gone, without a file behind it."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_that_has_gone_does_not_stop_a_run() -> None:
    clock = Clock()
    run_of_two_phases(Reporter.create(20_000, stream=Gone(), every_s=10, now=clock), clock)
    assert clock.seconds == 100.0 + 10 + 36 + 60  # to the end
    closing_table(SUMMARY, stream=Gone())


def test_a_closed_pipe_leaves_nothing_that_fails_at_exit() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    stream = os.fdopen(write_end, "w")
    print_plain("lost", stream)
    print_plain("lost too", stream)
    stream.close()  # flushes what is buffered, as Python does with stdout when it exits
