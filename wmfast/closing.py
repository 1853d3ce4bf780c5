"""The closing table: what the run came to, beside what it should be compared with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wmfast.wording import duration, is_terminal, number, percent, print_plain

Numbers = Mapping[str, float | None]

PARTS = {
    "env": "waiting for the games",
    "replay": "writing the replay buffer",
    "encode": "encoding frames",
    "agent": "agent updates",
    "world_model": "world-model updates",
    "dreams": "dreams for the agent",
    "tokenizer": "fitting the tokenizer",
    "checkpoint": "checkpoints",
}
"""What the stopwatch's names are called; others as they are."""


@dataclass(frozen=True)
class Summary:
    """What `closing_table` shows; an absent number is shown as a dash or its row left out."""

    game: str
    preset: str
    seed: int
    env_steps: int
    wall_s: float
    run_dir: Path
    protocol: str = ""
    """What scores depend on, in words: ``sticky 0, up to 30 no-ops``."""
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By policy ("greedy"): mean, std, scores (one a game), human_normalised or None, and, where
    games may be left before they are over, cut_off (one a game)."""
    random_score: float | None = None
    human_score: float | None = None
    tokenizer: Numbers = field(default_factory=dict)
    """psnr and psnr_moving in dB, live_codes, codebook_size, perplexity: random play, held out."""
    tokenizer_played: Numbers = field(default_factory=dict)
    """The same on frames that the trained agent saw."""
    world_model: Numbers = field(default_factory=dict)
    """accuracy, changed_accuracy, nll, each also with ``copy_``; reward_ and done_ precision and
    recall; rewards and ends counted in the held-out steps."""
    seconds: Numbers = field(default_factory=dict)
    """Where the time went, by part."""
    pictures: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One small table; the first column is words, the others numbers."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def closing_table(summary: Summary, *, stream: TextIO | None = None) -> None:
    """Prints the summary: with rich on a terminal, as aligned plain text elsewhere."""
    stream = stream or sys.stdout
    if not is_terminal(stream):
        print_plain(closing_text(summary), stream)
        return
    console = Console(file=stream, highlight=False)
    console.print()
    console.print(Text(_headline(summary), style="bold"))
    for section in sections(summary):
        table = Table(box=SIMPLE_HEAD, header_style="bold cyan", show_edge=False)
        for number_column, word in enumerate(section.header):
            table.add_column(word, justify="right" if number_column else "left")
        for row in section.rows:
            table.add_row(*map(Text, row))
        console.print()
        console.print(table)
    console.print()
    for line in _paths(summary):
        console.print(Text(line), soft_wrap=True)


def closing_text(summary: Summary) -> str:
    """The summary as aligned plain text."""
    lines = ["", _headline(summary)]
    for section in sections(summary):
        rows = [section.header, *section.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(section.header))]
        lines.append("")
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "", *_paths(summary)])


def sections(summary: Summary) -> list[Section]:
    """The tables that have something to show."""
    every = [_scores(summary), _tokenizer(summary), _world_model(summary.world_model)]
    every += [_events(summary.world_model), _times(summary)]
    return [section for section in every if section.rows]


def _headline(summary: Summary) -> str:
    protocol = f"; {summary.protocol}" if summary.protocol else ""
    return (
        f"{summary.game}, preset {summary.preset}, seed {summary.seed}: "
        f"{summary.env_steps:,} env steps in {duration(summary.wall_s)}{protocol}"
    )


def _scores(summary: Summary) -> Section:
    rows = []
    for policy, result in summary.scores.items():
        cut_off = sum(result.get("cut_off", ()))
        games = f"{len(result['scores'])} games" + (f", {cut_off} cut off" if cut_off else "")
        spread = f"± {_fixed(result['std'])} ({games})"
        # A human's score is of whole games: a score that broke off is not to be measured by it.
        human = percent(None if cut_off else result.get("human_normalised"))
        rows.append((policy, _fixed(result["mean"]), spread, human))
    if summary.random_score is not None:
        rows.append(("random play", _fixed(summary.random_score), "", percent(0.0)))
    if summary.human_score is not None:
        rows.append(("human", _fixed(summary.human_score), "", percent(1.0)))
    return Section(("Score", "mean", "spread", "of human"), rows)


def _tokenizer(summary: Summary) -> Section:
    columns = {"random play, held out": summary.tokenizer}
    if summary.tokenizer_played:
        columns["played by the agent"] = summary.tokenizer_played
    size = summary.tokenizer.get("codebook_size")
    units = (
        ("psnr", "PSNR", _decibels),
        ("psnr_moving", "PSNR of moving pixels", _decibels),
        ("live_codes", "live codes", lambda count: _out_of(count, size)),
        ("perplexity", "perplexity of the codes", _fixed),
    )
    rows = [
        (words, *(shown(quality.get(key)) for quality in columns.values()))
        for key, words, shown in units
        if any(key in quality for quality in columns.values())
    ]
    return Section(("Tokenizer", *columns), rows)


def _world_model(quality: Numbers) -> Section:
    accuracies = (("accuracy", "tokens right"), ("changed_accuracy", "changed tokens right"))
    rows = [
        (words, percent(quality[key]), percent(quality.get(f"copy_{key}")))
        for key, words in accuracies
        if key in quality
    ]
    if "nll" in quality:
        rows.append(("nats a token", _nats(quality["nll"]), _nats(quality.get("copy_nll"))))
    return Section(("World model, held-out steps", "model", "copy last frame"), rows)


def _events(quality: Numbers) -> Section:
    rows = []
    for key, words, count in (("reward", "rewards", "rewards"), ("done", "ends of games", "ends")):
        if f"{key}_precision" in quality:
            there_were = quality.get(count)
            # Of events that never happened there is nothing to find: 0 % would be a verdict.
            rates = [
                percent(None if there_were == 0 else quality.get(f"{key}_{rate}"))
                for rate in ("precision", "recall")
            ]
            rows.append((words, *rates, number(there_were)))
    return Section(("World model, held-out events", "precision", "recall", "there were"), rows)


def _times(summary: Summary) -> Section:
    parts = {name: seconds or 0.0 for name, seconds in summary.seconds.items()}
    if not parts:
        return Section(("", "", ""), [])
    parts = dict(sorted(parts.items(), key=lambda part: -part[1]))
    rest = summary.wall_s - sum(parts.values())
    if rest >= 0.05:
        parts["everything else"] = rest
    whole = sum(parts.values()) or 1.0
    rows = [(PARTS.get(name, name), f"{s:,.1f} s", percent(s / whole)) for name, s in parts.items()]
    return Section(("Where the time went", "seconds", "share"), rows)


def _paths(summary: Summary) -> list[str]:
    named = {"run folder": summary.run_dir, **summary.pictures}
    width = max(map(len, named))
    return [f"{name.ljust(width)}  {path}" for name, path in named.items()]


def _fixed(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{_fixed(value)} dB"


def _out_of(count: float | None, size: float | None) -> str:
    return number(count) if count is None or size is None else f"{number(count)} of {number(size)}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
