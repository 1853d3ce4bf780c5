"""Runs put together: which ones are alike, their scores by game, their aggregates.

Runs are put into one group only if they have the same preset, env steps, protocol and settings, as
far as these have an effect (`wmfast.report_settings`); an unfinished run is named and left out.
Nothing here prints or draws: see `wmfast.report_pages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wmfast.aggregate import Estimate, aggregate, mean_over_seeds
from wmfast.disk import one_line_errors
from wmfast.errors import UserError
from wmfast.games import RANDOM_HUMAN, human_normalised
from wmfast.metrics import METRICS_FILE, Row, read_metrics
from wmfast.published import published_agents
from wmfast.report_settings import NOT_SETTINGS, SAID_BY, differences, either_name, in_effect
from wmfast.rundir import CONFIG_FILE, ENV_FILE

RESULT_FILE = "result.json"

_PROTOCOL = ("sticky", "noop_max", "max_steps", "epsilon", "full_games", "reward_clipping")


@dataclass(frozen=True)
class RunResult:
    """A finished run's score under one policy, and what it depends on."""

    path: Path
    game: str
    preset: str
    seed: int
    env_steps: int
    scores: tuple[float, ...]  # one a game played
    cut_off: int  # of these games
    protocol: Mapping[str, Any]
    settings: Mapping[str, Any]  # of config.json, by dotted name
    commit: str | None
    rows: Sequence[Row]  # of metrics.jsonl
    ignored: frozenset[str] = frozenset()  # settings that may differ within a group

    @property
    def mean(self) -> float:
        """Mean score of the games played."""
        return sum(self.scores) / len(self.scores)

    @property
    def conditions(self) -> dict[str, Any]:
        """Settings, and what of the protocol they don't say."""
        protocol = {k: v for k, v in self.protocol.items() if SAID_BY.get(k) not in self.settings}
        return {**self.settings, **protocol}

    @property
    def likeness(self) -> str:
        """Runs whose likeness is equal belong to one group."""
        decided = in_effect(self.conditions, self.env_steps, self.ignored)
        return json.dumps([self.preset, self.env_steps, decided], sort_keys=True)


@dataclass(frozen=True)
class GameScores:
    """One game of a group."""

    game: str
    runs: Sequence[RunResult]
    mean: Estimate  # over seeds
    random: float | None
    human: float | None
    human_normalised: float | None  # of the mean
    published: Mapping[str, float]  # means over seeds, by agent


@dataclass(frozen=True)
class Group:
    """Runs that differ in game and seed alone."""

    preset: str
    env_steps: int
    protocol: Mapping[str, Any]
    special: Mapping[str, Any]  # conditions in which it differs from other groups of its preset
    games: Sequence[GameScores]
    aggregates: Mapping[str, Estimate]  # human-normalised, over the games that have such figures
    published_aggregates: Mapping[str, Mapping[str, Estimate]]  # the same games, by agent

    @property
    def name(self) -> str:
        """``cpu, 120,000 env steps, agent.n_step 5``."""
        special = [f"{key} {value}" for key, value in self.special.items()]
        return ", ".join([self.preset, f"{self.env_steps:,} env steps", *special])

    @property
    def runs(self) -> list[RunResult]:
        """All of them, by game and seed."""
        return [run for game in self.games for run in game.runs]


@dataclass(frozen=True)
class Report:
    """Groups, and the runs that are in none, with the reason."""

    policy: str
    groups: Sequence[Group]
    left_out: Mapping[str, str]


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run folders: the given ones, and those inside a given folder that is none itself.

    Raises:
        UserError: a path that neither is nor holds a run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if (path / CONFIG_FILE).is_file():
            runs = [path]
        else:
            deep = [f"{'*/' * depth}{CONFIG_FILE}" for depth in (1, 2)]
            runs = sorted(file.parent for glob in deep for file in path.glob(glob))
        if not runs:
            raise UserError(f"{path} holds no run: it has no {CONFIG_FILE}")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def make_report(
    paths: Iterable[Path], *, policy: str = "greedy", ignore: Sequence[str] = ()
) -> Report:
    """Read, group and aggregate runs.

    Args:
        paths: run folders, or folders of run folders.
        policy: which of a result's scores: ``greedy`` or ``epsilon 0.01``.
        ignore: settings (dotted names of config.json, or what the protocol calls them) that may
            differ within a group.

    Raises:
        UserError: a path without a run, a damaged file, no finished run, an unknown policy or
            setting.
    """
    left_out: dict[str, str] = {}
    alike: dict[str, list[RunResult]] = {}
    seen: dict[tuple[str, str, int], Path] = {}
    known: set[str] = set()
    for path in find_runs(paths):
        run = read_run(path, policy)
        if isinstance(run, str):
            left_out[str(path)] = run
            continue
        known |= run.settings.keys() | run.protocol.keys()
        run = replace(run, ignored=either_name(ignore))
        twin = seen.setdefault((run.likeness, run.game, run.seed), path)
        if twin != path:
            left_out[str(path)] = f"the same game and seed as {twin}"
        else:
            alike.setdefault(run.likeness, []).append(run)
    if not alike:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in left_out.items())
        raise UserError(f"no finished run to report: {reasons}")
    if strange := sorted(set(ignore) - known):
        raise UserError(f"--ignore {' '.join(strange)}: no run has such a setting in {CONFIG_FILE}")
    runs = sorted(alike.values(), key=lambda group: (group[0].preset, group[0].env_steps))
    return Report(policy, [_group(group, _special(group[0], runs)) for group in runs], left_out)


def read_run(path: Path, policy: str) -> RunResult | str:
    """A run's result, or the reason why it has none.

    Raises:
        UserError: a damaged file, or a policy that was not evaluated.
    """
    config = _read_object(path / CONFIG_FILE)
    metrics = path / METRICS_FILE
    rows = read_metrics(metrics) if metrics.is_file() else []
    if not (path / RESULT_FILE).is_file():
        reached = max((row["env_step"] for row in rows), default=0)
        return f"unfinished: at env step {reached:,} of {config.get('steps', 0):,}"
    file = path / RESULT_FILE
    result = _read_object(file)
    try:
        if policy not in result["scores"]:
            known = ", ".join(result["scores"])
            raise UserError(f"{file}: no scores of policy {policy!r}: it has {known}")
        played = result["scores"][policy]
        scores = tuple(float(score) for score in played["scores"])
        if not scores:
            raise ValueError("a score")
        protocol = {key: played["protocol"][key] for key in _PROTOCOL}
        settings = dict(_flat(config))
        for key in NOT_SETTINGS:
            settings.pop(key, None)
        return RunResult(
            path=path,
            game=str(result["game"]),
            preset=str(result["preset"]),
            seed=int(result["seed"]),
            env_steps=int(result["env_steps"]),
            scores=scores,
            cut_off=sum(map(bool, played["cut_off"])),
            protocol=protocol,
            settings=settings,
            commit=_commit(path),
            rows=rows,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged: no valid {error}") from error


def _special(run: RunResult, groups: list[list[RunResult]]) -> dict[str, Any]:
    """What tells a run's group from the others of its preset."""
    others = [group[0] for group in groups if group[0].preset == run.preset]
    compared = [(other.conditions, other.env_steps) for other in others]
    different = differences(compared, run.ignored)
    return different[others.index(run)]


def _group(runs: list[RunResult], special: Mapping[str, Any]) -> Group:
    first = runs[0]
    by_game: dict[str, list[RunResult]] = {}
    for run in sorted(runs, key=lambda run: (run.game, run.seed)):
        by_game.setdefault(run.game, []).append(run)
    games = [_game(game, alike) for game, alike in by_game.items()]
    normalised = [game for game in games if game.human is not None]
    own = {game.game: [run.mean for run in game.runs] for game in normalised}
    published = {
        agent.name: {game: agent.scores[game] for game in own} for agent in published_agents()
    }
    return Group(
        preset=first.preset,
        env_steps=first.env_steps,
        protocol=first.protocol,
        special=special,
        games=games,
        aggregates=_aggregates(own),
        published_aggregates={name: _aggregates(raw) for name, raw in published.items()},
    )


def _game(game: str, runs: list[RunResult]) -> GameScores:
    mean = mean_over_seeds([run.mean for run in runs])
    random, human = RANDOM_HUMAN.get(game, (None, None))
    return GameScores(
        game=game,
        runs=runs,
        mean=mean,
        random=random,
        human=human,
        human_normalised=human_normalised(game, mean.value) if human is not None else None,
        published={
            agent.name: sum(agent.scores[game]) / len(agent.scores[game])
            for agent in published_agents()
            if game in agent.scores
        },
    )


def _aggregates(raw: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Of raw scores by game; all games have human scores. Empty without a game."""
    if not raw:
        return {}
    scores = {
        game: [(score - RANDOM_HUMAN[game][0]) / (RANDOM_HUMAN[game][1] - RANDOM_HUMAN[game][0])
               for score in values]
        for game, values in raw.items()
    }  # fmt: skip
    return aggregate(scores)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _commit(path: Path) -> str | None:
    """What wmfast was at when the run began, if env.json says."""
    file = path / ENV_FILE
    commit = _read_object(file).get("commit") if file.is_file() else None
    return None if commit is None else str(commit)


def _read_object(file: Path) -> dict[str, Any]:
    with one_line_errors("read", file):
        data = file.read_bytes()
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: not a JSON object")
    return value
