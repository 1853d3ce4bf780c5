"""The kernel report on tiny shapes, so that it cannot rot between its runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import kernels_report
import pytest


def test_the_table_names_rivals_targets_and_what_is_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_report, "PIECES_DIR", tmp_path)
    monkeypatch.setattr(kernels_report, "measured", brief)
    monkeypatch.setattr(
        kernels_report,
        "PIECES",
        {
            "nearest": lambda: kernels_report.nearest_rows(48, (100,)),
            "sums": lambda: kernels_report.sums_rows(200),
        },
    )
    for piece in kernels_report.PIECES:
        kernels_report.measure(piece)
    kernels_report.merge(tmp_path / "results")
    text = (tmp_path / "results" / "kernels.md").read_text()
    for words in ("| **wmfast** |", "| addmm_chunks |", "product alone, bfloat16 (not the whole"):
        assert words in text
    assert "Target 0.95x without AMX: " in text
    pieces = json.loads((tmp_path / "results" / "kernels.json").read_text())
    amx = pieces["nearest"]["environment"]["amx"]
    assert ("the AMX path is unmeasured here" in text) is not amx


def brief(ways: dict[str, kernels_report.Way], seconds: float, **about: object) -> object:
    return MEASURED(ways, 0.0, **about)


MEASURED = kernels_report.measured


def test_a_target_is_judged_against_the_rival_it_names() -> None:
    row = kernels_report.Row(
        op="x",
        shape="y",
        ms={},
        ratio={"wmfast": 1.0, "dense_mask": 1.7, "slices": 0.9, "part": 0.2},
        target="1.6x",
        against="dense_mask",
        floors=["part"],
    )
    assert row.best() == "slices"
    assert kernels_report.verdict(row, amx=False) == "1.6x: **holds**"
    row = kernels_report.Row(**{**asdict(row), "against": ""})
    assert kernels_report.verdict(row, amx=False) == "1.6x: **missed**"
    row.target = "0.8x without AMX, 6x with AMX"
    assert (
        kernels_report.verdict(row, amx=False)
        == "0.8x without AMX: **holds**, 6x with AMX: unmeasured"
    )
    assert kernels_report.verdict(row, amx=True).endswith("unmeasured, 6x with AMX: **missed**")
