"""``wmfast report``: who is put together with whom, who is left out, and what is shown."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wmfast.cli import main
from wmfast.errors import UserError
from wmfast.report import Report, make_report
from wmfast.report_curves import mean_curve, save_report_curves, short_name
from wmfast.report_pages import print_report, report_json, report_markdown

Make = Callable[..., Path]
SPECIAL = {"agent.every", "agent.gamma", "agent.n_step"}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a run folder as wmfast leaves it, as far as a report reads it."""

    def make(
        name: str,
        *,
        game: str = "ms_pacman",
        seed: int = 0,
        scores: tuple[float, ...] = (1000.0, 2000.0),
        steps: int = 1000,
        preset: str = "cpu",
        sticky: float = 0.0,
        max_frames: int | None = None,
        finished: bool = True,
        **settings: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = {"game": game, "preset": preset, "seed": seed, "steps": steps}
        config |= {"run_dir": name, "agent": {"n_step": 3, **settings}, "loop": {"log_every": seed}}
        if max_frames is not None:
            config["env"] = {"max_frames": max_frames}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "env.json").write_text(json.dumps({"commit": "0123456789"}))
        rows = [
            {
                "env_step": step, "train_step": step, "wall_s": 0.6 * step * (seed + 1),
                "collect/return": scores[0] + step,
            }
            for step in range(0, steps // 2 + 1, 100)
        ]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text)
        protocol = {
            "sticky": sticky, "noop_max": 30, "max_steps": (max_frames or 108_000) // 4,
            "epsilon": 0.0, "full_games": True, "reward_clipping": False, "env_seeds": [seed],
        }  # fmt: skip
        played = {"scores": scores, "cut_off": [False] * len(scores), "protocol": protocol}
        result = {"game": game, "preset": preset, "seed": seed, "env_steps": steps}
        result["scores"] = {"greedy": played}
        if finished:
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


def games_of(report: Report) -> dict[str, dict[str, list[int]]]:
    return {
        group.name: {game.game: [run.seed for run in game.runs] for game in group.games}
        for group in report.groups
    }


def test_seeds_and_games_are_put_together(make: Make, tmp_path: Path) -> None:
    make("a", seed=1, scores=(1000.0, 2000.0))
    make("b", seed=0, scores=(2500.0,))
    make("c", game="breakout", scores=(10.0, 20.0))
    report = make_report([tmp_path / "runs"])
    assert games_of(report) == {"cpu, 1,000 env steps": {"breakout": [0], "ms_pacman": [0, 1]}}
    (group,) = report.groups
    breakout, pacman = group.games
    assert pacman.mean.value == pytest.approx(2000.0)
    normalised = [(15 - 1.7) / 28.8, (2000 - 307.3) / 6644.3]
    assert pacman.human_normalised == pytest.approx(normalised[1])
    assert group.aggregates["mean"].value == pytest.approx(sum(normalised) / 2)
    runs = [(15 - 1.7) / 28.8, (1500 - 307.3) / 6644.3, (2500 - 307.3) / 6644.3]
    assert group.aggregates["iqm"].value == pytest.approx(sum(runs) / 3)
    assert breakout.mean.low is None
    assert breakout.published["IRIS"] == pytest.approx(83.7, abs=0.05)
    assert pacman.published["STORM"] == pytest.approx(2673.5, abs=0.05)


def test_unlike_runs_are_never_mixed(make: Make, tmp_path: Path) -> None:
    make("plain")
    make("longer", steps=2000)
    make("other", preset="atari100k")
    make("sticky", sticky=0.25)
    make("changed", seed=1, n_step=5)
    make("newer", seed=2, dyna=True)  # a setting that the other version did not have
    found = games_of(make_report([tmp_path / "runs"]))
    assert len(make_report([tmp_path / "runs"]).groups) == 6
    assert set(found) == {
        "atari100k, 1,000 env steps",
        "cpu, 1,000 env steps, agent.dyna absent, agent.n_step 3, sticky 0.0",
        "cpu, 1,000 env steps, agent.dyna absent, agent.n_step 3, sticky 0.25",
        "cpu, 1,000 env steps, agent.dyna absent, agent.n_step 5, sticky 0.0",
        "cpu, 1,000 env steps, agent.dyna True, agent.n_step 3, sticky 0.0",
        "cpu, 2,000 env steps, agent.dyna absent, agent.n_step 3, sticky 0.0",
    }
    merged = make_report(
        [tmp_path / "runs" / name for name in ("plain", "changed", "newer")],
        ignore=["agent.n_step", "agent.dyna"],
    )
    assert games_of(merged) == {"cpu, 1,000 env steps": {"ms_pacman": [0, 1, 2]}}


def test_the_protocol_is_ignored_by_either_of_its_names(make: Make, tmp_path: Path) -> None:
    make("whole", max_frames=108_000)
    make("short", seed=1, max_frames=1200)
    runs = [tmp_path / "runs"]
    names = {f"cpu, 1,000 env steps, env.max_frames {frames}" for frames in (108_000, 1200)}
    assert set(games_of(make_report(runs))) == names  # once, not as max_steps too
    make("older", seed=2)  # whose config.json does not say it
    for name in ("env.max_frames", "max_steps"):
        report = make_report(runs, ignore=[name])
        assert games_of(report) == {"cpu, 1,000 env steps": {"ms_pacman": [0, 1, 2]}}
        assert "cut off after 300 or 27,000 steps" in report_markdown(report)


def test_unfinished_runs_and_twins_are_named_and_left_out(make: Make, tmp_path: Path) -> None:
    make("a")
    twin, unfinished = make("b"), make("c", seed=2, finished=False)
    again = tmp_path / "runs" / "b" / ".." / "a"  # one run twice counts once
    report = make_report([tmp_path / "runs", again])
    assert report.left_out == {
        str(twin): f"the same game and seed as {tmp_path / 'runs' / 'a'}",
        str(unfinished): "unfinished: at env step 500 of 1,000",
    }
    assert len(report.groups[0].runs) == 1
    for text in (report_markdown(report), json.dumps(report_json(report))):
        assert "unfinished: at env step 500 of 1,000" in text
    with pytest.raises(UserError, match=r"no finished run to report: .*/c: unfinished"):
        make_report([unfinished])


def test_a_game_without_human_score_is_shown_but_not_aggregated(make: Make) -> None:
    known, unknown = make("a"), make("b", game="tetris", scores=(5.0,))
    report = make_report([known, unknown])
    (group,) = report.groups
    assert group.aggregates["mean"].value == pytest.approx((1500 - 307.3) / 6644.3)
    tetris = group.games[1]
    assert (tetris.mean.value, tetris.human, tetris.published) == (5.0, None, {})
    assert "No human score, so in no aggregate: tetris." in report_markdown(report)
    alone = make_report([unknown])
    assert alone.groups[0].aggregates == {}
    assert "tetris" in report_markdown(alone)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("result.json", '{"game": "ms_pac', r"result\.json is damaged"),
        ("result.json", '{"scores": {}}', "no scores of policy 'greedy'"),
        ("result.json", '{"scores": {"greedy": {}}}', r"damaged: no valid 'scores'"),
        ("result.json", "[]", r"damaged: not a JSON object"),
        ("config.json", "{", r"config\.json is damaged"),
        ("metrics.jsonl", "garbage\n{}\n", r"metrics\.jsonl: line 1 is damaged"),
    ],
)
def test_damaged_files_are_named(make: Make, file: str, text: str, words: str) -> None:
    folder = make("a")
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=words):
        make_report([folder])


def test_what_is_no_run_and_what_was_not_evaluated(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent holds no run: it has no config\.json"):
        make_report([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"no scores of policy 'lazy': it has greedy"):
        make_report([make("a")], policy="lazy")
    with pytest.raises(UserError, match=r"--ignore agent\.n_stepp: no run has such a setting"):
        make_report([make("b")], ignore=["agent.n_stepp"])


def test_mean_curves_are_read_where_all_runs_have_points(make: Make) -> None:
    report = make_report([make("a"), make("b", seed=1, scores=(3000.0,), steps=700)])
    runs = [run for group in report.groups for run in group.runs]
    curve = mean_curve(runs, "collect/return")
    assert curve is not None
    steps, mean, low, high = curve
    assert steps.tolist() == [0, 100, 200, 300]  # the shorter run's
    assert mean == pytest.approx(2000 + steps)
    half = 12.706 * np.std([1000, 3000], ddof=1) / 2**0.5
    assert high - mean == pytest.approx(half)
    assert mean - low == pytest.approx(half)
    assert mean_curve(runs, "eval/greedy/return") is None
    timed = mean_curve(runs, "collect/return", "wall_s")
    assert timed is not None
    minutes, mean = timed[:2]
    assert minutes[[0, -1]].tolist() == [0, 5]  # when the faster run ended
    assert mean == pytest.approx(2000 + 100 * (minutes + minutes / 2) / 2)  # one twice as fast


def test_curves_are_drawn_for_each_game(make: Make, tmp_path: Path) -> None:
    report = make_report([make("a"), make("b", seed=1), make("c", game="pong", scores=(-20.0,))])
    pictures = save_report_curves(tmp_path / "out", report)
    assert set(pictures) == {"ms_pacman", "pong"}
    for path in pictures.values():
        with Image.open(path) as picture:
            shown = np.asarray(picture.convert("RGB")).astype(int)
        blue = (shown[..., 2] - shown[..., 0] > 60).sum(axis=0)
        steps, minutes, evaluation = np.array_split(blue, 3)
        assert min(steps.sum(), minutes.sum()) > 500  # the curve
        assert evaluation.sum() == 0  # no evaluation in the metrics


def test_many_settings_leave_the_curves_their_room(make: Make, tmp_path: Path) -> None:
    for group in range(7):
        settings = {f"setting_number_{number}": group * number for number in range(40)}
        for seed in range(2):
            make(f"{group}-{seed}", seed=seed, scores=(1000.0 * group,), **settings)
    report = make_report([tmp_path / "runs"])
    assert len({len(group.special) for group in report.groups}) == 1
    path = save_report_curves(tmp_path / "out", report)["ms_pacman"]  # a collapsed one warns
    with Image.open(path) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    dark = (shown.max(axis=2) < 60).sum(axis=0)
    edges = np.flatnonzero(dark > 330)  # the panels' left and right sides
    for panel in range(3):
        sides = edges[edges * 3 // shown.shape[1] == panel]
        assert np.ptp(sides) > 400
    assert shown.shape[0] < 1_000


def test_a_curve_is_named_by_what_is_rare(make: Make, tmp_path: Path) -> None:
    for at, settings in enumerate([{}, {"n_step": 5}, {"n_step": 5, "every": 2}, {"every": 2}]):
        make(f"{at}", **{"every": 4, "gamma": at < 3, **settings})
    groups = make_report([tmp_path / "runs"]).groups
    assert all(group.special.keys() == SPECIAL for group in groups)
    names = [short_name(group, groups) for group in groups]
    assert len(set(names)) == 4
    assert names[-1] == "cpu, 1,000 env steps, agent.gamma False, agent.every 2, agent.n_step 3"
    assert "gamma" not in "".join(names[:-1])  # as most have it


def test_the_command_prints_and_writes_everything(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a", scores=(1000.0, 2000.0))
    make("b", seed=1, scores=(1700.0,))
    runs, out, file = str(tmp_path / "runs"), tmp_path / "out", tmp_path / "r.json"
    main(["report", runs, "--json", str(file), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "cpu, 1,000 env steps" in printed
    assert "2 runs, 1 game; policy greedy (epsilon 0), 1-2 full games a run" in printed
    assert "protocol: sticky 0, up to 30 no-ops" in printed
    assert "wmfast 0123456" in printed
    assert "Published agents: 100,000 env steps, these runs 1,000." in printed
    assert "STORM (0.25)" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("ms_pacman")]
    assert " ".join(row.split()) == "ms_pacman 0 1 1,600 329.4 to 2,871 307.3 6,952 19.5 %"
    group = json.loads(file.read_text())["groups"][0]
    assert group["games"]["ms_pacman"]["value"] == 1600.0
    assert group["aggregates"]["iqm"]["value"] == pytest.approx((1600 - 307.3) / 6644.3)
    text = (out / "report.md").read_text()
    assert "| ms_pacman | 0 1 | 1,600 |" in text
    assert "](curves-ms_pacman.png)" in text
    assert (out / "curves-ms_pacman.png").exists()
    main(["report", runs, "--markdown"])
    assert "| these runs |" in capsys.readouterr().out


def test_the_screen_fits_eighty_columns(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in {"TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    for seed in range(3):
        make(f"{seed}", seed=seed, scores=(1000.0 * seed,))
    stream = Terminal()
    print_report(make_report([tmp_path / "runs"]), stream=stream)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    (row,) = [line for line in lines if "these runs" in line and "[" in line]
    assert row.count("]") == 3  # mean, median and IQM on one line: nothing was folded


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "no run to report"), (["absent"], "absent holds no run"), (["--fast"], "--fast")],
)
def test_bad_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert words in printed
