"""TokenReplay beside every rival: runs the pieces, writes replay.json, replay.md and replay.png.

``make bench-replay`` does all of it. ``python bench/replay_report.py --merge`` only merges what
``python bench/replay_pieces.py <piece>`` left in build/bench-replay.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from replay_pieces import CAPACITY, FILLED, PIECES_DIR
from replay_plot import draw
from replay_timing import ROWS
from rivals import RIVALS

import wmfast

RESULTS = Path("bench/results/cpu")
HAND_WRITTEN = "numpy"  # no library: shown beside the best library, not as one

# How many times faster than the best library.
TARGETS = {
    "loop_256": 3.4,
    "per_256": 2.8,
    "window_256": 3.0,
    "uniform_32": 2.4,
    "uniform_256": 2.2,
    "uniform_1024": 2.0,
    "update_256": 2.2,
    "update_1024": 2.2,
}
ADD_TARGET = 3.2e6  # transitions a second
BYTES_TARGET = 700.0
GROWTH_TARGET = 2.0


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    work: str
    rival: str
    theirs: str
    ours: str
    by_hand: str  # ours against the hand-written numpy rings
    ratio: str
    target: str
    met: bool


def read_pieces() -> dict[str, dict[str, Any]]:
    paths = {name: PIECES_DIR / f"{name}.json" for name in (*RIVALS, "memory", "growth")}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def best_library(pieces: dict[str, Any], key: str) -> str | None:
    """The one nearest to us, each judged in its own run."""
    ratios = {
        name: pieces[name]["rows"][key]["ratio"]["median"]
        for name in RIVALS
        if name != HAND_WRITTEN and key in pieces.get(name, {}).get("rows", {})
    }
    return min(ratios, key=ratios.__getitem__) if ratios else None


def timed_line(pieces: dict[str, Any], key: str) -> Line | None:
    by_hand = pieces.get(HAND_WRITTEN, {}).get("rows", {}).get(key)
    name = best_library(pieces, key) or HAND_WRITTEN
    result = pieces.get(name, {}).get("rows", {}).get(key)
    if result is None:
        return None
    ratio, ours = result["ratio"], result["wmfast_us"]
    ours_text = f"{ours['median']:.1f} us"
    theirs_text = f"{result['rival_us']['median']:.1f} us"
    if key in TARGETS:
        target, met = f"{TARGETS[key]}x", ratio["median"] >= TARGETS[key]
    else:
        rate = 8e6 / ours["median"]
        target, met = f"{ADD_TARGET / 1e6:.1f}M/s", rate >= ADD_TARGET
        ours_text += f" = {rate / 1e6:.2f}M/s"
        theirs_text += f" = {8 / result['rival_us']['median']:.2f}M/s"
    return Line(
        work=ROWS[key].title,
        rival=f"{name} ({pieces[name]['mode']})",
        theirs=theirs_text,
        ours=ours_text,
        by_hand=f"{by_hand['ratio']['median']:.2f}x" if by_hand else "-",
        ratio=f"**{ratio['median']:.2f}x** ({ratio['q1']:.2f}-{ratio['q3']:.2f})",
        target=target,
        met=met,
    )


def memory_line(memory: dict[str, Any]) -> Line:
    ours = memory["wmfast"]["bytes"]
    with_priorities = {
        name: found["bytes"]
        for name, found in memory.items()
        if name not in ("wmfast", HAND_WRITTEN) and found.get("prioritized")
    }
    name = min(with_priorities, key=with_priorities.__getitem__, default=HAND_WRITTEN)
    theirs = memory[name]["bytes"]
    return Line(
        work="memory a step, priorities included",
        rival=name,
        theirs=f"{theirs:.0f} B",
        ours=f"{ours:.0f} B",
        by_hand=f"{memory[HAND_WRITTEN]['bytes'] / ours:.2f}x",
        ratio=f"**{theirs / ours:.2f}x**",
        target=f"{BYTES_TARGET:.0f} B",
        met=ours <= BYTES_TARGET,
    )


def growth_line(growth: dict[str, Any]) -> Line:
    ours = growth["wmfast"]
    rivals = {name: found for name, found in growth.items() if "growth" in found}
    name = "cpprb" if "cpprb" in rivals else HAND_WRITTEN

    def shown(found: dict[str, Any]) -> str:
        small, large = found["us"][0]["median"], found["us"][-1]["median"]
        return f"{small:.1f} -> {large:.1f} us ({found['growth']['median']:.2f}x)"

    ratio = rivals[name]["us"][-1]["median"] / ours["us"][-1]["median"]
    by_hand = rivals[HAND_WRITTEN]["us"][-1]["median"] / ours["us"][-1]["median"]
    return Line(
        work="draw 256 + update 256, 10k -> 10M steps stored, frames of one token",
        rival=name,
        theirs=shown(rivals[name]),
        ours=shown(ours),
        by_hand=f"{by_hand:.2f}x",
        ratio=f"**{ratio:.2f}x** at 10M",
        target=f"grows under {GROWTH_TARGET:.0f}x",
        met=ours["growth"]["median"] < GROWTH_TARGET,
    )


def lines_of(pieces: dict[str, Any]) -> list[Line]:
    lines = [line for key in ROWS if (line := timed_line(pieces, key))]
    if "memory" in pieces:
        lines.append(memory_line(pieces["memory"]))
    if "growth" in pieces:
        lines.append(growth_line(pieces["growth"]))
    return lines


def this_commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine(commit: str) -> dict[str, Any]:
    cpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in cpu.splitlines() if ":" in line)
    model = fields["Model name"].strip()
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "cpu": f"{model}, family {fields['CPU family'].strip()} model {fields['Model'].strip()}",
        "cores": int(fields["CPU(s)"]),
        "l3": fields.get("L3 cache", "?").strip(),
        "memory_gib": round(int(meminfo["MemTotal"].split()[0]) / 2**20, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "wmfast": wmfast.__version__,
        "commit": commit,
        "date": date.today().isoformat(),
    }


def markdown(found: dict[str, Any], pieces: dict[str, Any], lines: list[Line]) -> str:
    text = [
        "# TokenReplay beside other replay buffers",
        "",
        f"8 envs, 336 uint16 tokens a frame, histories of 4, {FILLED // 1000}k steps in a buffer"
        f" for {CAPACITY // 1000}k, episodes of 100 to 1500 steps, 30 % truncated; alpha 0.6, beta"
        " 0.4, a fresh priority at each visit. Through Python, both sides in turn within one run,"
        " answers compared first. Median of the rounds, quartiles of the ratio in brackets. The"
        " best library of a work is the one nearest to wmfast, each judged in its own run.",
        "",
        "Tokens are below 512, which wmfast packs into 9 bits; the rivals store 16. glibc is told"
        " to keep freed memory: otherwise it may hand a batch's 5 MB back to the system each time,"
        " and the page faults cost more than the work. wmfast keeps its output blocks itself, the"
        " rivals would pay.",
        "",
        f"{found['cpu']}, {found['cores']} cores, {found['l3']} L3, {found['memory_gib']} GiB;"
        f" Python {found['python']}, numpy {found['numpy']}; commit {found['commit']},"
        f" {found['date']}. Regenerated by `make bench-replay`.",
        "",
        "| work | best library | its time | wmfast | faster | against hand-written numpy"
        " | target | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    text += [
        f"| {x.work} | {x.rival} | {x.theirs} | {x.ours} | {x.ratio} | {x.by_hand} | {x.target}"
        f" | {'yes' if x.met else '**no**'} |"
        for x in lines
    ]
    text += ["", "## Every rival", ""]
    text += ["Microseconds a call; in brackets how many times faster wmfast was in the same run."]
    names = list(RIVALS)
    text += ["", "| work | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for key, row in ROWS.items():
        cells = [cell(pieces.get(name, {}), key) for name in names]
        text.append(f"| {row.title} | " + " | ".join(cells) + " |")
    memory = pieces.get("memory", {})
    cells = [f"{memory[n]['bytes']:.0f} B" if "bytes" in memory.get(n, {}) else "-" for n in names]
    text.append("| bytes a step | " + " | ".join(cells) + " |")
    text += ["", "## The answers", ""]
    text += [f"- {name}: {remark(pieces.get(name))}" for name in names]
    return "\n".join(text) + "\n"


def cell(piece: dict[str, Any], key: str) -> str:
    result = piece.get("rows", {}).get(key)
    if result is None:
        return "-"
    return f"{result['rival_us']['median']:.1f} ({result['ratio']['median']:.2f}x)"


def remark(piece: dict[str, Any] | None) -> str:
    if piece is None:
        return "not run"
    if "missing" in piece:
        return f"not run: {piece['missing']}"
    about = f"{piece['version']} {piece['mode']}".strip()
    for kind, sides in piece["answers"].items():
        right = sides["rival"]["right"]
        wrong = [f"{name} {share:.4f}" for name, share in right.items() if share < 1]
        about += f"; {kind}: " + (f"right but for {', '.join(wrong)}" if wrong else "all right")
    reasons = sorted({reason for reason in piece["not_done"].values() if reason})
    return about + "".join(f"; not prioritized: {reason}" for reason in reasons)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merge", action="store_true", help="run nothing, merge what is there")
    parser.add_argument("--commit", help="of the wmfast that was measured, if not this one")
    options = parser.parse_args()
    if not options.merge:
        for piece in (*RIVALS, "memory", "growth"):
            subprocess.run([sys.executable, "bench/replay_pieces.py", piece], check=True)
    pieces = read_pieces()
    found, lines = machine(options.commit or this_commit()), lines_of(pieces)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "replay.json").write_text(json.dumps({"machine": found, **pieces}, indent=1) + "\n")
    (RESULTS / "replay.md").write_text(markdown(found, pieces, lines))
    titles = {key: row.title for key, row in ROWS.items()}
    caption = f"8 envs, 336 tokens a frame, 195k steps; {found['cpu'].split(',')[0]},"
    caption += f" {found['cores']} cores, {found['date']}"
    draw(pieces, titles, TARGETS, caption, RESULTS / "replay.png")
    print((RESULTS / "replay.md").read_text())


if __name__ == "__main__":
    main()
