"""The GPU report in its dry run, so that it cannot rot where no GPU is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gpu_report
import pytest
import torch


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """The dry run takes one thread; the benches after it shall not."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("default")  # rivals and compilers may warn; the report is the subject
def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_report.main(["--dry-run", "--output", str(tmp_path)]) == 0, capsys.readouterr().out
    (file,) = tmp_path.rglob("*.json")
    report = json.loads(file.read_text())
    assert report["environment"]["versions"]["torch"] != "not installed"
    sections = report["sections"]
    assert {"build", "nearest_code: correctness", "film_attention: speed", "steps: speed"} <= set(
        sections
    )
    for name, section in sections.items():
        assert section["rows"], name
        ours = [row for row in section["rows"] if not row.get("rival")]
        assert all("us" in row or "result" in row for row in ours), name
    timed = [row for row in sections["nearest_code: speed"]["rows"] if "us" in row]
    assert {"wmfast", "cdist", "addmm_chunks", "torch.compile"} <= {row["way"] for row in timed}
    assert any("times_best_rival" in row for row in timed)
    text = file.with_suffix(".md").read_text()
    assert file.stem.endswith("-dry")
    assert text.startswith("# Dry run: ")
    assert "nothing failed" in text
    if not torch.cuda.is_available():
        assert "no host sync |  | not checked on a CPU" in text


def test_rows_that_found_no_time_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import report_models
    import report_ops

    late = [{"name": "a", "way": "b", "result": "left out: no time left"}] * 3
    monkeypatch.setattr(report_ops, "SECTIONS", {"late": lambda clock: late})
    monkeypatch.setattr(report_models, "SECTIONS", {})
    assert gpu_report.main(["--dry-run", "--output", str(tmp_path)]) == 0
    assert "3 rows were left out for want of time" in capsys.readouterr().out


def test_checks_of_answers_heed_the_time_too() -> None:
    import report_answers
    from report_clock import Clock

    clock = Clock(dry=True, deadline=0)
    for check in (
        report_answers.nearest_code_correctness,
        report_answers.film_attention_correctness,
    ):
        rows = check(clock)
        assert len(rows) > 6
        assert all(row["result"] == "left out: no time left" for row in rows)


def test_an_attention_of_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import report_answers
    from report_clock import Clock

    def spoilt(*inputs: torch.Tensor, frame_causal: int | None = None) -> torch.Tensor:
        return real(*inputs, frame_causal=frame_causal) * torch.nan

    real = report_answers.film_attention
    monkeypatch.setattr(report_answers, "film_attention", spoilt)
    rows = report_answers.film_attention_correctness(Clock(dry=True, deadline=math.inf))
    accuracy = [row for row in rows if row["name"].startswith("B ")]
    assert len(accuracy) == 6
    assert all("nan times" in row["error"] for row in accuracy)
    assert "nan from eager" in next(r["error"] for r in rows if r["name"].endswith("compiled"))


def test_a_broken_section_leaves_the_others_and_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import report_models
    import report_ops

    def broken(clock: object) -> list[object]:
        raise RuntimeError("no luck today")

    fine = [{"name": "a", "way": "b", "us": 3.0}]
    monkeypatch.setattr(report_ops, "SECTIONS", {"broken": broken, "fine": lambda clock: fine})
    monkeypatch.setattr(report_models, "SECTIONS", {})
    assert gpu_report.main(["--dry-run", "--output", str(tmp_path)]) == 1
    (file,) = tmp_path.rglob("*.json")
    sections = json.loads(file.read_text())["sections"]
    assert sections["fine"]["rows"] == fine
    assert "no luck today" in sections["broken"]["error"]
    assert "FAILED broken: RuntimeError: no luck today" in capsys.readouterr().out


def test_a_section_that_cannot_be_imported_is_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import report_models

    fine = [{"name": "a", "way": "b", "us": 3.0}]
    monkeypatch.setattr(report_models, "SECTIONS", {"fine": lambda clock: fine})
    monkeypatch.setitem(sys.modules, "report_ops", None)
    assert gpu_report.main(["--dry-run", "--output", str(tmp_path)]) == 1
    (file,) = tmp_path.rglob("*.json")
    sections = json.loads(file.read_text())["sections"]
    assert "report_ops" in sections["report_ops"]["error"]
    assert sections["fine"]["rows"] == fine
    assert "FAILED report_ops: ModuleNotFoundError" in capsys.readouterr().out


def test_sections_need_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import report_ops, report_models"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_the_head_needs_neither_git_nor_whole_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken-1.0", "flash_kmeans-1.0"):  # any package, and one that is looked up
        (tmp_path / f"{name}.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    head = gpu_report.environment()
    assert head["commit"] == "unknown"
    assert head["versions"]["torch"] == torch.__version__
    assert head["versions"]["flash-kmeans"] == "unknown"


def test_a_wrong_row_of_ours_fails_and_a_rival_does_not() -> None:
    rows = [{"name": "x", "error": "3 rows are wrong"}, {"name": "y", "error": "?", "rival": True}]
    report = {"sections": {"s": {"rows": rows, "error": None, "seconds": 0}}}
    assert gpu_report.failures(report) == ["s: x: 3 rows are wrong"]
