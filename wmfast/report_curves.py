"""Learning curves of a report: one PNG a game, each group a colour, each seed a thin line."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from wmfast.aggregate import mean_over_seeds
from wmfast.disk import one_line_errors, write_atomic
from wmfast.games import RANDOM_HUMAN
from wmfast.report import Group, Report, RunResult

_WIDTH, _HEIGHT, _LINE, _DPI = 16.0, 4.5, 0.17, 100  # inches; a line below the curves
_LABEL, _LABEL_LINES = 170, 3  # characters of a line below the curves, lines of a group
_COLORS = 10  # of matplotlib's cycle
_STYLES = ("-", "--", "-.", ":")
Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats]
"""Env steps (or minutes) and values."""
Against = Literal["env_step", "wall_s"]

_PANELS: tuple[tuple[str, Against, str], ...] = (
    ("collect/return", "env_step", "training games (epsilon-greedy)"),
    ("collect/return", "wall_s", "the same against time"),
    ("eval/greedy/return", "env_step", "evaluation, greedy"),
)


def save_report_curves(folder: Path, report: Report) -> dict[str, Path]:
    """Draw ``curves-<game>.png`` for each game; returns their paths by game.

    Raises:
        UserError: a file can't be written.
    """
    with one_line_errors("make", folder):
        folder.mkdir(parents=True, exist_ok=True)
    games = sorted({game.game for group in report.groups for game in group.games})
    return {game: _draw(folder / f"curves-{game}.png", game, report) for game in games}


def mean_curve(
    runs: Sequence[RunResult], key: str, against: Against = "env_step"
) -> tuple[Floats, Floats, Floats, Floats] | None:
    """Steps, mean over runs, and its 95 % interval, where all the runs that have `key` have it.

    Against ``wall_s`` minutes of the run stand in place of env steps.

    A run is read between its own points along straight lines, never beyond them; the steps are
    all steps at which some run has a point. None where no run has a point.
    """
    curves = [curve for curve in (_curve(run, key, against) for run in runs) if len(curve[0])]
    if not curves:
        return None
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    values = np.stack([np.interp(steps, *curve) for curve in curves])
    points = [mean_over_seeds(values[:, point].tolist()) for point in range(len(steps))]
    mean = np.array([point.value for point in points])
    low = np.array([point.value if point.low is None else point.low for point in points])
    high = np.array([point.value if point.high is None else point.high for point in points])
    return steps, mean, low, high


def _curve(run: RunResult, key: str, against: Against) -> Curve:
    points = {row[against]: row[key] for row in run.rows if row.get(key) is not None}
    places = np.array(list(points), np.float64) / (60 if against == "wall_s" else 1)
    return places, np.array(list(points.values()), np.float64)


def _draw(path: Path, game: str, report: Report) -> Path:
    # Not pyplot: it keeps figures.
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    values = [np.zeros(0)]
    for axes, (key, against, title) in zip(panels, _PANELS, strict=True):
        values += _panel(axes, game, key, against, report)
        axes.set_title(f"{game}: {title}")
        axes.set_xlabel("env step" if against == "env_step" else "minutes")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_tick_params(labelleft=True)
        axes.grid(alpha=0.3)
        if game in RANDOM_HUMAN:
            random = RANDOM_HUMAN[game][0]
            values.append(np.array([random]))
            axes.axhline(random, color="gray", linestyle=":", label="random play")
    _explain(figure, panels)
    # By what was scored: an interval of two or three seeds can be many times as wide.
    scored = np.concatenate(values)
    if len(scored):
        margin = 0.2 * float(np.ptp(scored)) or 1.0
        panels[0].set_ylim(scored.min() - margin, scored.max() + margin)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    with one_line_errors("write", path):
        write_atomic(path, data.getvalue())
    return path


def _explain(figure: Figure, panels: Sequence[Any]) -> None:
    """One legend for all panels, below them; the figure grows by its lines."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    lines = sum(label.count("\n") + 1 for label in entries)
    figure.set_figheight(_HEIGHT + _LINE * lines)
    figure.legend(entries.values(), entries, loc="outside lower left", fontsize=8, frameon=False)


def short_name(group: Group, groups: Sequence[Group]) -> str:
    """The group's name without the settings that most groups of its preset share, rarest first."""
    alike = [other.special for other in groups if other.preset == group.preset]
    shared = {
        key: sum(key in special and special[key] == value for special in alike)
        for key, value in group.special.items()
    }
    rare = [key for key, count in shared.items() if 2 * count <= len(alike)]
    rare.sort(key=lambda key: (shared[key], key))
    return replace(group, special={key: group.special[key] for key in rare}).name


def _label(name: str, seeds: int) -> str:
    """What a group is called, in a few lines; report.md has all of it."""
    words = f"{seeds} {'seeds' if seeds > 1 else 'seed'}: {name}"
    return textwrap.fill(
        words, _LABEL, max_lines=_LABEL_LINES, placeholder=" ... (all of it in report.md)",
        break_on_hyphens=False,
    )  # fmt: skip


def _panel(axes: Any, game: str, key: str, against: Against, report: Report) -> list[Floats]:
    """Draw one panel; the values of all its runs."""
    drawn: list[Floats] = []
    for number, group in enumerate(report.groups):
        runs = [run for run in group.runs if run.game == game]
        mean = mean_curve(runs, key, against)
        if mean is None:
            continue
        steps, middle, low, high = mean
        name = short_name(group, report.groups)
        color, several = f"C{number % _COLORS}", len(runs) > 1
        style = _STYLES[number // _COLORS % len(_STYLES)]
        axes.plot(
            steps, middle, color=color, linestyle=style, label=_label(name, len(runs)),
            marker="o" if len(steps) < 30 else "", markersize=4,
        )  # fmt: skip
        if several:
            band = axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            band.set_label("95 % interval of their mean")
        for run in runs:
            line = _curve(run, key, against)
            drawn.append(line[1])
            if several:
                axes.plot(*line, color=color, linestyle=style, alpha=0.5, linewidth=0.7)
    if not drawn:
        axes.text(0.5, 0.5, "no points", ha="center", transform=axes.transAxes)
    return drawn
