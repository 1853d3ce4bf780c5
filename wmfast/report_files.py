"""``wmfast report``: from run folders to a screen, JSON, markdown and pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from wmfast.disk import one_line_errors, write_atomic
from wmfast.errors import UserError
from wmfast.report import make_report
from wmfast.report_curves import save_report_curves
from wmfast.report_pages import print_report, report_json, report_markdown
from wmfast.wording import print_plain


def report_runs(
    runs: Sequence[Path],
    *,
    policy: str = "greedy",
    ignore: Sequence[str] = (),
    json_file: Path | None = None,
    out: Path | None = None,
    markdown: bool = False,
) -> None:
    """Report runs, see `wmfast.report.make_report`; files are written before anything is printed.

    Args:
        json_file: where the report goes as JSON.
        out: folder for report.md and a PNG of learning curves for each game.
        markdown: print markdown in place of tables.

    Raises:
        UserError: no run is given or found, none is finished, or a file can't be read or written.
    """
    if not runs:
        raise UserError("no run to report: name run folders, or folders that hold some")
    report = make_report(runs, policy=policy, ignore=ignore)
    if json_file is not None:
        with one_line_errors("write", json_file):
            write_atomic(json_file, json.dumps(report_json(report), indent=1).encode())
    if out is not None:
        pictures = save_report_curves(out, report)
        linked = {game: Path(picture.name) for game, picture in pictures.items()}
        with one_line_errors("write", out):
            write_atomic(out / "report.md", report_markdown(report, linked).encode())
    if markdown:
        print_plain(report_markdown(report), sys.stdout)
    else:
        print_report(report)
