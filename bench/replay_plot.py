"""The picture of replay.json: time of every rival over ours, a line of dots for each work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rivals import RIVALS

MARKS = {
    "numpy": ("numpy by hand", "#888888", "s"),
    "cpprb": ("cpprb", "#d1495b", "o"),
    "cpprb_compressed": ("cpprb, compressed", "#edae49", "o"),
    "tianshou": ("tianshou", "#66a182", "o"),
    "sb3": ("stable-baselines3", "#2e4057", "o"),
    "torchrl": ("torchrl", "#8d6a9f", "o"),
    "flashbax": ("flashbax", "#00798c", "o"),
}
TICKS = (1, 2, 3, 5, 10, 20, 50, 100)


def draw(
    pieces: dict[str, Any],
    titles: dict[str, str],
    targets: dict[str, float],
    caption: str,
    path: Path,
) -> None:
    """``titles`` and ``targets`` by row; memory has its own row, of bytes over our bytes."""
    ratios = {
        key: {
            name: pieces[name]["rows"][key]["ratio"]["median"]
            for name in RIVALS
            if key in pieces.get(name, {}).get("rows", {})
        }
        for key in titles
    }
    memory = pieces.get("memory", {})
    if memory:
        titles = titles | {"memory": "bytes a step stored"}
        ratios["memory"] = {
            name: memory[name]["bytes"] / memory["wmfast"]["bytes"]
            for name in RIVALS
            if "bytes" in memory.get(name, {})
        }
    with mpl.rc_context({"font.size": 10, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(9, 0.42 * len(titles) + 1.6), layout="constrained")
        axes = figure.subplots()
        for y, key in enumerate(titles):
            axes.axhline(y, color="#e6e6e6", lw=1, zorder=0)
            for name, ratio in ratios[key].items():
                label, colour, marker = MARKS[name]
                shown = None if label in axes.get_legend_handles_labels()[1] else label
                axes.plot(ratio, y, marker, color=colour, ms=8, label=shown, alpha=0.9)
            if key in targets:
                shown = "target for the nearest library" if y == 0 else None
                axes.plot([targets[key]] * 2, [y - 0.33, y + 0.33], "k-", lw=2, label=shown)
        axes.axvline(1, color="#1b7837", lw=2)
        axes.text(1, -0.75, "wmfast", color="#1b7837", ha="center", weight="bold")
        axes.set_xscale("log")
        axes.set_xticks(TICKS, [f"{tick}x" for tick in TICKS])
        axes.minorticks_off()
        axes.set_yticks(range(len(titles)), list(titles.values()))
        axes.set_ylim(len(titles) - 0.5, -0.6)
        axes.set_xlabel("time (last row: memory) over that of wmfast.TokenReplay; right is slower")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(caption, fontsize=10)
        figure.savefig(path, dpi=120)
