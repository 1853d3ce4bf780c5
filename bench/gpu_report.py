"""Everything about the GPU in one command of under ten minutes: right first, then how fast.

    python bench/gpu_report.py             # bench/results/<device>/<date>-<commit>.json and .md
    python bench/gpu_report.py --dry-run   # tiny sizes, on a CPU too: that the report works

Sections: the build, correctness of every op and of a captured step on the device, times of the ops
beside their rivals, times of acting and of the updates of the presets v3 and cpu, eager, compiled
and captured. A section that fails does not stop the others: its error is in the report, and the
exit status is 1. Sections share the time that is left; what it does not suffice for is listed as
left out. Times of ops on a GPU are medians of CUDA-graph replays with 20 calls each.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "vector-quantize-pytorch", "flash-kmeans", "wmfast")
Row = dict[str, Any]


def build() -> list[Row]:
    """Install the package where it is not, without touching any other."""
    try:
        import wmfast.kernels
    except ImportError:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-e", str(ROOT)]
        done = subprocess.run([*command, "--no-build-isolation"], capture_output=True, text=True)
        if done.returncode:
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not build wmfast: {done.stderr[-500:]}") from None
        # The editable finder of a fresh install is read at the start of a process.
        status = subprocess.run([sys.executable, *sys.argv], check=False).returncode
        raise SystemExit(status) from None
    return [{"name": "wmfast", "result": str(Path(wmfast.kernels.__file__).parent)}]


def _version(package: str) -> str:
    try:
        return metadata.version(package) or "unknown"
    except metadata.PackageNotFoundError:
        return "not installed"
    except (KeyError, TypeError, AttributeError):  # its METADATA is missing or broken
        return "unknown"


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(git, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"


def environment() -> Row:
    """Device, versions and commit."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


_DRY_RUN = (
    "Tiny sizes: no time here means anything. Nothing is compiled for speed, and on a CPU nothing "
    "is captured: `captured` and `compiled` rows show that their code runs."
)


def run_section(work: Callable[[], list[Row]]) -> Row:
    """Its rows, seconds and error; an error leaves the next section untouched."""
    start = time.perf_counter()
    section: Row = {"rows": [], "error": None}
    try:
        section["rows"] = work()
    except Exception:
        section["error"] = traceback.format_exc(limit=-4)
    section["seconds"] = round(time.perf_counter() - start, 2)
    return section


def failures(report: Row) -> list[str]:
    """One line for each section that broke and each row of ours that failed."""
    found = []
    for name, section in report["sections"].items():
        if section["error"]:
            found.append(f"{name}: {section['error'].strip().splitlines()[-1]}")
        found += [
            f"{name}: {row['name']}: {row['error']}"
            for row in section["rows"]
            if "error" in row and not row.get("rival")
        ]
    return found


def _rows(report: Row) -> list[Row]:
    return [row for section in report["sections"].values() for row in section["rows"]]


def table(report: Row) -> str:
    """The report for a person, in Markdown."""
    head = report["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in head["versions"].items() if v != "not installed")
    dry = "Dry run: " if report["dry_run"] else ""
    lines = [f"# {dry}{head['device']}, {head['date']}", ""]
    if dry:
        lines += [_DRY_RUN, ""]
    lines += [f"Commit {head['commit']}; {versions}.", ""]
    for name, section in report["sections"].items():
        lines += [f"## {name} ({section['seconds']} s)", ""]
        if section["error"]:
            lines += ["```", section["error"].strip(), "```", ""]
        if section["rows"]:
            lines += ["| what | way | result |", "|---|---|---|"]
        for row in section["rows"]:
            result = row.get("error") or row.get("result") or f"{row['us']:.1f} us"
            if "times_best_rival" in row:
                result += f" ({row['times_best_rival']:.2f}x the speed of the best rival)"
            lines.append(f"| {row['name']} | {row.get('way', '')} | {result} |")
        lines.append("")
    broken = failures(report)
    lines += ["## Verdict", "", *(f"- FAILED {line}" for line in broken)]
    left_out = sum(row.get("result", "").startswith("left out") for row in _rows(report))
    lines += [] if broken else ["- nothing failed"]
    lines += [f"- {left_out} rows were left out for want of time"] if left_out else []
    return "\n".join(lines) + "\n"


def save(report: Row, folder: Path) -> Path:
    """Write the JSON and the table; the path of the JSON."""
    head = report["environment"]
    device = "-".join("".join(c if c.isalnum() else " " for c in head["device"]).lower().split())
    dry = "-dry" if report["dry_run"] else ""
    path = folder / device / f"{head['date'][:10]}-{head['commit']}{dry}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(report))
    return path


def _run_all(report: Row, dry: bool, deadline: float) -> None:
    """Fill the report's sections; a module that can't be imported is a section that failed."""
    sections: dict[str, Callable[[Any], list[Row]]] = {}
    for module in ("report_ops", "report_models"):

        def load(module: str = module) -> list[Row]:
            sections.update(importlib.import_module(module).SECTIONS)
            return []

        loaded = run_section(load)
        if loaded["error"]:
            report["sections"][module] = loaded
    if not sections:
        return
    from report_clock import Clock  # the modules have imported it too

    clock = Clock(dry, deadline)
    for done, (name, work) in enumerate(sections.items()):
        # What is left is shared, so that compiling one section's rivals starves no other.
        now = time.perf_counter()
        clock.deadline = now + max(0.0, deadline - now) / (len(sections) - done)
        report["sections"][name] = run_section(lambda work=work: work(clock))


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes; works on a CPU")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--budget", type=float, default=540, help="seconds; the rest is left out")
    options = parser.parse_args(argv)
    deadline = time.perf_counter() + options.budget

    report: Row = {"dry_run": options.dry_run, "sections": {"build": run_section(build)}}
    import torch

    report["environment"] = environment()
    if report["sections"]["build"]["error"] is None:
        if not (options.dry_run or torch.cuda.is_available()):
            print("gpu_report: no CUDA device is visible here; try --dry-run", file=sys.stderr)
            return 2
        _run_all(report, options.dry_run, deadline)
    path = save(report, options.output)
    print(table(report))
    print(f"written: {path}")
    return int(bool(failures(report)))


if __name__ == "__main__":
    sys.exit(main())
