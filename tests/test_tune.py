"""The tuner's choice, with a timer that reads its times from a list."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from wmfast.kernels import film_attention_cases, launch, nearest_code_cases, tune
from wmfast.kernels.tune import Tunable, pick, tuned

CURRENT, FAST, WRONG, LARGE = ({"BLOCK_N": size} for size in (16, 32, 64, 128))


class Bench:
    """A kernel that takes a config; it notes what was called, and a fake clock answers by it."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.last = 0

    def call(self, config: launch.Config) -> Tensor:
        self.last = config["BLOCK_N"]
        if config == LARGE:
            raise RuntimeError("out of resource: shared memory\nand more")
        return torch.tensor([7 if config == WRONG else 3])

    def timer(self, call: object) -> float:
        call()  # type: ignore[operator]
        return self.seconds[self.last]

    def tunable(self) -> Tunable:
        return Tunable("op", "any", "d64", (FAST, CURRENT, WRONG, LARGE), self.call)


def test_the_fastest_with_the_right_answer_is_taken() -> None:
    bench = Bench({16: 3e-6, 32: 2e-6, 64: 1e-6})
    best, lines = pick(bench.tunable(), CURRENT, bench.timer)
    assert best == FAST
    assert "ANOTHER ANSWER" in lines[2]
    assert lines[3].endswith("RuntimeError: out of resource: shared memory")
    assert len(lines) == 4  # the one in the table is timed once


def test_a_config_within_the_noise_changes_nothing() -> None:
    bench = Bench({16: 2e-6, 32: 1.97e-6, 64: 9e-6})
    assert pick(bench.tunable(), CURRENT, bench.timer)[0] == CURRENT


def test_a_config_of_the_table_that_does_not_run_makes_room_for_the_next() -> None:
    bench = Bench({16: 3e-6, 32: 2e-6, 64: 1e-6})
    best, lines = pick(bench.tunable()._replace(candidates=(CURRENT, FAST)), LARGE, bench.timer)
    assert best == FAST
    assert lines[0].endswith("(in the table): RuntimeError: out of resource: shared memory")
    assert len(lines) == 3


def test_where_no_config_runs_the_table_stays() -> None:
    best, lines = pick(Bench({}).tunable()._replace(candidates=(LARGE,)), LARGE, Bench({}).timer)
    assert best == LARGE
    assert lines[-1] == "no config runs here, the table stays"


def test_the_new_table_differs_in_the_tuned_entry_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"op": {"sm90": {"any": {"d64": CURRENT, "d256": LARGE}}, "sm80": {"any": {}}}}
    bench = Bench({16: 3e-6, 32: 2e-6, 64: 1e-6})
    (new,) = tuned(table, [bench.tunable()], 90, bench.timer)
    assert table["op"]["sm90"]["any"]["d64"] == CURRENT
    assert new == {"op": {"sm90": {"any": {"d64": FAST, "d256": LARGE}}, "sm80": {"any": {}}}}
    assert "op sm90 any d64" in capsys.readouterr().out
    tune.write(new, tmp_path / "configs.json")
    assert json.loads((tmp_path / "configs.json").read_text()) == new
    assert len(list(tmp_path.iterdir())) == 1
    tune.write(launch.table(), tmp_path / "configs.json")
    assert (tmp_path / "configs.json").read_text() == launch.TABLE_FILE.read_text()


def test_the_table_is_given_after_each_entry_and_a_budget_is_shared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = {"op": {"sm90": {"any": {"d64": CURRENT, "d256": CURRENT}}}}
    bench, now = Bench({16: 3e-6, 32: 2e-6, 48: 1e-6}), [0.0]

    def timer(call: object) -> float:
        now[0] += 1  # a second a config
        return bench.timer(call)

    first = bench.tunable()._replace(candidates=(FAST, {"BLOCK_N": 48}))
    both = [first, first._replace(bucket="d256")]
    tables = tuned(table, both, 90, timer, budget=5, clock=lambda: now[0])
    assert next(tables)["op"]["sm90"]["any"] == {"d64": {"BLOCK_N": 48}, "d256": CURRENT}
    assert now[0] == 3  # the third began within its half, 2.5 s
    assert next(tables)["op"]["sm90"]["any"] == {"d64": {"BLOCK_N": 48}, "d256": FAST}
    assert list(tables) == []
    assert capsys.readouterr().out.endswith("1 of 3 configs left out: no time left\n")


def test_without_time_the_table_stays() -> None:
    assert pick(Bench({}).tunable(), CURRENT, Bench({}).timer, lambda: True) == (
        CURRENT,
        ["4 of 4 configs left out: no time left"],
    )


def test_entries_are_selected_by_name() -> None:
    tunables = list(nearest_code_cases.tunables(torch.device("meta")))
    names = [tunable.name for tunable in tunables]
    assert {"nearest_code any d64", "nearest_code any d64-few"} <= set(names)
    assert tune.select(tunables, "") == tunables
    assert [t.name for t in tune.select(tunables, "nearest_code any d64")] == [
        "nearest_code any d64"
    ]
    assert {t.name for t in tune.select(tunables, "d64")} == {n for n in names if "d64" in n}
    assert tune.select(tunables, "attention") == []


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_answers_are_the_same_but_for_the_rounding_of_floats() -> None:
    floats = torch.tensor([1.0, 100.0])
    assert tune.same(floats + 1, floats)
    assert not tune.same(floats + 3, floats)
    assert not tune.same(floats * torch.nan, floats)
    assert not tune.same(torch.tensor([101]), torch.tensor([100]))


def test_a_config_on_trial_is_taken_in_place_of_the_table() -> None:
    x = torch.zeros(1)
    table = launch.config_of("nearest_code", x, "d64")
    with launch.trying("nearest_code", FAST):
        assert launch.config_of("nearest_code", x, "d64") == FAST
        assert launch.config_of("code_sums", x, "all") != FAST
    assert launch.config_of("nearest_code", x, "d64") == table


def test_film_attention_is_tuned_where_the_table_has_a_row() -> None:
    tunables = list(film_attention_cases.tunables(torch.device("meta")))
    assert len({(t.op, t.bucket) for t in tunables}) == 6
    for t in tunables:
        assert t.bucket in launch.table()[t.op]["sm90"][t.dtype]
        assert set(t.candidates[0]) == set(launch.table()[t.op]["sm90"][t.dtype][t.bucket])


def test_every_op_of_the_table_is_tuned() -> None:
    found = [importlib.import_module(m).tunables(torch.device("meta")) for m in tune.MODULES]
    assert {t.op for tunables in found for t in tunables} == set(launch.table())


def test_every_row_of_nearest_code_can_be_tuned() -> None:
    entries = {entry.bucket for entry in launch.entries("nearest_code")}
    tunables = list(nearest_code_cases.tunables(torch.device("meta")))
    assert {tunable.bucket for tunable in tunables} == entries
    for sm in launch.SHARED_BYTES:
        assert set(launch.table()["nearest_code"][f"sm{sm}"]["any"]) == entries
