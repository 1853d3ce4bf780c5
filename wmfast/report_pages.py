"""A report as a person reads it (terminal, markdown) and as a program does (JSON)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wmfast.aggregate import Estimate
from wmfast.closing import Section
from wmfast.games import RANDOM_HUMAN
from wmfast.published import ENV_STEPS, published_agents
from wmfast.report import Group, Report
from wmfast.wording import is_terminal, percent, print_plain

_GAMES_WIDE = 6  # columns of games side by side
_SEEDS_NAMED = 8
_OURS = "these runs"
_NARROW: Any = {"padding": (0, 1, 0, 0), "pad_edge": False}  # aggregates fit into 80 columns


@dataclass(frozen=True)
class Chapter:
    """One group: what it is, its tables, what must be known beside them."""

    title: str
    facts: Sequence[str]
    sections: Sequence[Section]
    notes: Sequence[str]


def chapters(report: Report) -> list[Chapter]:
    """What there is to show of every group."""
    return [_chapter(group, report.policy) for group in report.groups]


def print_report(report: Report, *, stream: TextIO | None = None) -> None:
    """With rich on a terminal, as aligned plain text elsewhere."""
    stream = stream or sys.stdout
    if not is_terminal(stream):
        print_plain(_plain(report), stream)
        return
    console = Console(file=stream, highlight=False)
    for chapter in chapters(report):
        console.print()
        console.print(Text(chapter.title, style="bold"))
        for fact in chapter.facts:
            console.print(Text(fact, style="dim"))
        for section in chapter.sections:
            table = Table(box=SIMPLE_HEAD, header_style="bold cyan", show_edge=False, **_NARROW)
            for column, word in enumerate(section.header):
                table.add_column(word, justify="right" if column else "left")
            for row in section.rows:
                style = "bold" if row[0] == _OURS else ""
                table.add_row(*(Text(cell, style=style) for cell in row))
            console.print()
            console.print(table)
        console.print()
        for note in chapter.notes:
            console.print(Text(note, style="dim"))
    for line in _left_out(report):
        console.print(Text(line, style="yellow"), soft_wrap=True)


def report_markdown(report: Report, pictures: Mapping[str, Path] | None = None) -> str:
    """The same as markdown; `pictures` by game, their paths as they shall be linked."""
    lines: list[str] = []
    for chapter in chapters(report):
        lines += [f"## {chapter.title}", "", *(f"{fact}  " for fact in chapter.facts)]
        for section in chapter.sections:
            dashes = ["---", *["---:"] * (len(section.header) - 1)]
            lines += ["", _row(section.header), _row(dashes), *map(_row, section.rows)]
        lines += ["", *(f"- {note}" for note in chapter.notes), ""]
    for game, path in (pictures or {}).items():
        lines += [f"![{game}: learning curves]({path.as_posix()})", ""]
    left_out = _left_out(report)
    return "\n".join([*lines, *(f"- {line}" for line in left_out)]).rstrip() + "\n"


def report_json(report: Report) -> dict[str, Any]:
    """Everything in the report but the rows of metrics, as JSON values."""
    return {
        "policy": report.policy,
        "left_out": dict(report.left_out),
        "groups": [_group_json(group) for group in report.groups],
        "published": {
            agent.name: {"source": agent.source, "sticky": agent.sticky, "note": agent.note}
            for agent in published_agents()
        },
        "published_env_steps": ENV_STEPS,
    }


def _chapter(group: Group, policy: str) -> Chapter:
    runs = group.runs
    played = sorted({len(run.scores) for run in runs})
    commits = sorted({"unknown" if run.commit is None else run.commit[:7] for run in runs})
    games, count = len(group.games), len(runs)

    def said(key: str, form: str) -> str:
        values = sorted({run.protocol[key] for run in runs})  # several where that is ignored
        return " or ".join(format(value, form) for value in values)

    facts = [
        f"{count} {_s('run', count)}, {games} {_s('game', games)}; policy {policy} "
        f"(epsilon {said('epsilon', 'g')}), {'-'.join(map(str, played))} full games a run",
        f"protocol: sticky {said('sticky', 'g')}, up to {said('noop_max', '')} no-ops, "
        f"cut off after {said('max_steps', ',')} steps; wmfast {', '.join(commits)}",
    ]
    sections = [_games(group), _aggregates(group), *_published(group)]
    return Chapter(group.name, facts, [section for section in sections if section.rows], [
        "Intervals: 95 %, of the mean over seeds (Student's t); of the aggregates by 2,000 "
        "stratified bootstrap draws. One run of a game has none.",
        *_notes(group),
    ])  # fmt: skip


def _games(group: Group) -> Section:
    rows = [
        (
            game.game,
            _seeds([run.seed for run in game.runs]),
            _score(game.mean.value),
            _interval(game.mean, _score, " to "),
            _score(game.random),
            _score(game.human),
            percent(game.human_normalised),
        )
        for game in group.games
    ]
    header = ("Game", "seeds", "mean", "95 % interval", "random", "human", "of human")
    return Section(header, rows)


def _aggregates(group: Group) -> Section:
    named = {_OURS: group.aggregates, **group.published_aggregates}
    rows = [
        (name, *(_estimate(figures[key]) for key in ("mean", "median", "iqm")))
        for name, figures in named.items()
        if figures
    ]
    return Section(("Human-normalised", "mean", "median", "IQM"), rows)


def _published(group: Group) -> list[Section]:
    games = [game for game in group.games if game.published]
    sections = []
    for begin in range(0, len(games), _GAMES_WIDE):
        shown = games[begin : begin + _GAMES_WIDE]
        rows = [
            (_OURS, *(_score(game.mean.value) for game in shown)),
            ("random play", *(_score(game.random) for game in shown)),
            ("human", *(_score(game.human) for game in shown)),
        ]
        rows += [
            (agent.name, *(_score(game.published.get(agent.name)) for game in shown))
            for agent in published_agents()
        ]
        sections.append(Section(("Score", *(game.game for game in shown)), rows))
    return sections


def _notes(group: Group) -> list[str]:
    notes = []
    unscored = [game.game for game in group.games if game.human is None]
    if unscored:
        notes.append(f"No human score, so in no aggregate: {', '.join(unscored)}.")
    cut_off = {game.game: sum(run.cut_off for run in game.runs) for game in group.games}
    for game, count in cut_off.items():
        if count:
            notes.append(f"{game}: {count} games were cut off, their score so far counts.")
    if len({len(game.runs) for game in group.games}) > 1:
        notes.append("Numbers of seeds differ: a run counts once in the IQM, a game in the mean.")
    if group.published_aggregates and group.aggregates:
        budget = f"Published agents: {ENV_STEPS:,} env steps"
        same = group.env_steps == ENV_STEPS
        notes.append(f"{budget}." if same else f"{budget}, these runs {group.env_steps:,}.")
        sticky = group.protocol["sticky"]
        other = [
            f"{agent.name} ({'not stated' if agent.sticky is None else f'{agent.sticky:g}'})"
            for agent in published_agents()
            if agent.sticky != sticky
        ]
        if other:
            notes.append(f"Other sticky actions than here ({sticky:g}): {', '.join(other)}.")
        count = sum(game.human is not None for game in group.games)
        if count < len(RANDOM_HUMAN):
            over = f"{count} {_s('game', count)}"
            notes.append(f"Human-normalised figures, the published too, are over {over} alone.")
    return notes


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "preset": group.preset,
        "env_steps": group.env_steps,
        "protocol": dict(group.protocol),
        "special_settings": dict(group.special),
        "aggregates": {name: asdict(value) for name, value in group.aggregates.items()},
        "published_aggregates": {
            agent: {name: asdict(value) for name, value in figures.items()}
            for agent, figures in group.published_aggregates.items()
        },
        "games": {
            game.game: {
                **asdict(game.mean),
                "random": game.random,
                "human": game.human,
                "human_normalised": game.human_normalised,
                "published": dict(game.published),
                "runs": [
                    {
                        "path": str(run.path),
                        "seed": run.seed,
                        "mean": run.mean,
                        "scores": list(run.scores),
                        "cut_off": run.cut_off,
                        "commit": run.commit,
                    }
                    for run in game.runs
                ],
            }
            for game in group.games
        },
    }


def _plain(report: Report) -> str:
    lines: list[str] = []
    for chapter in chapters(report):
        lines += ["", chapter.title, *chapter.facts]
        for section in chapter.sections:
            rows = [section.header, *section.rows]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines.append("")
            for row in rows:
                cells = [row[0].ljust(widths[0])]
                cells += [c.rjust(width) for c, width in zip(row[1:], widths[1:], strict=True)]
                lines.append("  ".join(cells).rstrip())
        lines += ["", *chapter.notes]
    return "\n".join([*lines, *_left_out(report)]).lstrip("\n")


def _left_out(report: Report) -> list[str]:
    return [f"left out: {path}: {reason}" for path, reason in report.left_out.items()]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _s(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _seeds(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds)) if len(seeds) <= _SEEDS_NAMED else f"{len(seeds)} seeds"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else _short(value)


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _interval(estimate: Estimate, shown: Callable[[float], str], between: str) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{shown(estimate.low)}{between}{shown(estimate.high)}"


def _estimate(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{_interval(estimate, _short, ', ')}]"
    return _ratio(estimate.value) + interval
