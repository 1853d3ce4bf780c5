"""The kernels beside every rival on a CPU: writes kernels.json and kernels.md in bench/results/cpu.

``make bench-kernels`` does all of it. ``python bench/kernels_report.py <piece> ...`` measures some
pieces, each under 90 seconds, into build/bench-kernels; ``--merge`` makes the table of what lies
there.

The ways of a piece take turns, so that a slow moment of the machine meets all of them. A turn is a
rest, in which the threads of the way before stop spinning (libgomp's do for milliseconds, on a core
that the next way wants), a call, and the call that is timed. Times are medians; a ratio is the
median of the turns' own ratios. Every way must give the answer of wmfast before the clock starts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import bench_film_attention as attention
import bench_nearest_code as nearest
import torch
from torch import Tensor
from wmfast.kernels import code_sums, film_attention, nearest_code

PIECES_DIR = Path("build/bench-kernels")
RESULTS = Path("bench/results/cpu")
OURS = "wmfast"
REST = 0.01
Way = Callable[[], Any]


@dataclass
class Row:
    """One line of the table: what was computed, and each way's milliseconds."""

    op: str
    shape: str
    ms: dict[str, float]
    ratio: dict[str, float]  # a way's time over ours
    target: str = ""  # of the issue
    against: str = ""  # the way that the target speaks of; empty: the best rival
    floors: list[str] = field(default_factory=list)  # ways that do less than the work
    notes: str = ""
    rounds: int = 0

    def best(self) -> str:
        rivals = {k: v for k, v in self.ratio.items() if k != OURS and k not in self.floors}
        return min(rivals, key=rivals.__getitem__)


def take_turns(ways: dict[str, Way], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Milliseconds of each way, turn after turn, for at least so many turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm, compiled
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[OURS]) < least:
        for name, way in ways.items():
            time.sleep(REST)
            way()
            start = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def measured(ways: dict[str, Way], seconds: float, **about: Any) -> Row:
    times = take_turns(ways, seconds)
    pairs = {n: [t / ours for t, ours in zip(times[n], times[OURS], strict=True)] for n in ways}
    return Row(
        ms={name: statistics.median(turns) for name, turns in times.items()},
        ratio={name: statistics.median(turns) for name, turns in pairs.items()},
        rounds=len(times[OURS]),
        **about,
    )


def nearest_rows(d: int, sizes: tuple[int, ...] = (336, 2688, 43008)) -> Iterator[Row]:
    k, generator = 512, torch.Generator().manual_seed(0)
    codebook = torch.randn(k, d, generator=generator)
    for n in sizes:
        x = torch.randn(n, d, generator=generator)
        truth = nearest_code(x, codebook)
        assert torch.equal(truth, torch.cdist(x.double(), codebook.double()).argmin(1))
        distance = (x - codebook[truth]).double().square().sum(1)
        ways: dict[str, Way] = {OURS: partial(nearest_code, x, codebook)}
        wrong: list[str] = []
        for name, make in nearest.rivals().items():
            if name in ("nearest_code", "torch_body", *nearest.PATHS):
                continue
            search = make(codebook)
            found = search(x)
            theirs = (x - codebook[found]).double().square().sum(1)
            torch.testing.assert_close(theirs, distance, rtol=1e-4, atol=1e-4)
            differing = int((found != truth).sum())
            wrong += [f"{name} {differing}"] if differing else []
            ways[name] = partial(search, x)
        half = x.bfloat16(), codebook.t().bfloat16().contiguous()
        ways["product alone, float32"] = partial(torch.mm, x, codebook.t(), out=torch.empty(n, k))
        out = torch.empty(n, k, dtype=torch.bfloat16)
        ways["product alone, bfloat16"] = partial(torch.mm, *half, out=out)
        yield measured(
            ways,
            {336: 6.0, 2688: 8.0}.get(n, 30.0),
            op="nearest_code",
            shape=f"N {n}, K {k}, D {d}, float32",
            target="0.95x without AMX" + (", 6x with AMX" if d == 256 else ", 4x with AMX"),
            floors=["product alone, float32", "product alone, bfloat16"],
            notes=f"indices that differ from the exact ones: {', '.join(wrong) or 'none'}",
        )


def attention_rows(backward: bool, batch: int = 8) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    heads, width, length = attention.HEADS, attention.WIDTH, attention.LENGTH
    fused = torch.randn(batch, length, 3, heads, width, generator=generator)
    vectors = torch.randn(2, batch, heads, width, generator=generator)
    gradient = torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)
    leaves = [
        x.detach().requires_grad_(backward) for x in (*fused.permute(2, 0, 3, 1, 4), *vectors)
    ]
    q, k, v, gamma, beta = leaves

    def ours(*inputs: Tensor) -> Tensor:
        return film_attention(*inputs, frame_causal=attention.TOKENS)

    def call(attend: attention.Attend) -> list[Tensor]:
        out = attend(q, k, v, gamma, beta)
        return [out, *torch.autograd.grad(out, leaves, gradient)] if backward else [out]

    attends: dict[str, attention.Attend] = {
        OURS: ours,
        "dense_mask": attention.dense_mask,
        "four_slices": attention.four_slices,
        "torch_compile": torch.compile(attention.dense_mask),
    }
    if not backward:  # FlexAttention has no backward on a CPU
        attends["flex_attention"] = attention.flex()
    truth = call(ours)
    for attend in attends.values():
        for got, want in zip(call(attend), truth, strict=True):
            assert (got - want).norm() < 1e-4 * want.norm()
    yield measured(
        {name: partial(call, attend) for name, attend in attends.items()},
        20.0,
        op="film_attention, frame causal, " + ("forward + backward" if backward else "forward"),
        shape=f"B {batch}, {heads} heads of {width}, 4 frames of 336, float32",
        target="1.3x" if backward else "1.6x",
        against="dense_mask",
        notes="FlexAttention has no backward on a CPU" if backward else "",
    )


def sums_rows(n: int = 43008) -> Iterator[Row]:
    k, d, generator = 512, 256, torch.Generator().manual_seed(0)
    codebook = torch.randn(k, d, generator=generator)
    x = torch.randn(n, d, generator=generator)
    index = nearest_code(x, codebook)

    def one_hot() -> tuple[Tensor, Tensor]:
        hot = torch.nn.functional.one_hot(index, k).float()
        return hot.sum(0), hot.t() @ x

    ways: dict[str, Way] = {OURS: lambda: code_sums(x, index, k), "one_hot product": one_hot}
    for way in ways.values():
        for got, want in zip(way(), ways[OURS](), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
    ways["nearest_code"] = lambda: nearest_code(x, codebook)
    yield measured(
        ways,
        6.0,
        op="code_sums",
        shape=f"N {n}, K {k}, D {d}, float32",
        floors=["nearest_code"],
        notes="nearest_code: the lookup before it, for comparison",
    )


PIECES: dict[str, Callable[[], Iterator[Row]]] = {
    "nearest_256": lambda: nearest_rows(256),
    "nearest_48": lambda: nearest_rows(48),
    "attention_forward": lambda: attention_rows(False),
    "attention_backward": lambda: attention_rows(True),
    "code_sums": sums_rows,
}


def environment() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    model = fields.get("model name", platform.machine())
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    git = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "date": date.today().isoformat(),
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "cpu": f"{model} ({family})",
        "avx512_bf16": "avx512_bf16" in flags,
        "amx": "amx_bf16" in flags,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "faiss-cpu", "scikit-learn", "vector-quantize-pytorch")
            if importlib.util.find_spec(nearest.MODULES.get(name, name))
        },
    }


def measure(piece: str) -> None:
    rows = [asdict(row) for row in PIECES[piece]()]
    PIECES_DIR.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), "rows": rows}, indent=1)
    (PIECES_DIR / f"{piece}.json").write_text(text + "\n")


def verdict(row: Row, amx: bool) -> str:
    """Whether each target holds; what this machine can't tell is called unmeasured."""
    said = []
    for target in row.target.split(", "):
        least, _, where = target.partition("x")
        holds = row.ratio[row.against or row.best()] >= float(least)
        told = {" without AMX": not amx, " with AMX": amx}.get(where, True)
        word = ("**holds**" if holds else "**missed**") if told else "unmeasured"
        said.append(f"{target}: {word}")
    return ", ".join(said)


def table(pieces: dict[str, dict[str, Any]]) -> str:
    first = next(iter(pieces.values()))["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    commits = sorted({piece["environment"]["commit"] for piece in pieces.values()})
    lines = [
        "# The kernels beside their rivals on a CPU",
        "",
        f"{first['date']}, commit {', '.join(commits)}; {first['cpu']}, {first['threads']} "
        f"threads, AVX-512 bfloat16: {'yes' if first['avx512_bf16'] else 'no'}, AMX: "
        f"{'yes' if first['amx'] else '**no, so the AMX path is unmeasured here**'}; {versions}.",
        "",
        "Median milliseconds of ways that took turns, answers compared first; ratio: a rival's",
        "time over ours, the median of the turns' own ratios. Made by `make bench-kernels`.",
    ]
    for piece in pieces.values():
        for row in (Row(**row) for row in piece["rows"]):
            rivals = sorted(set(row.ms) - {OURS}, key=row.ratio.__getitem__)
            lines += ["", f"## {row.op}: {row.shape}", "", "| way | ms | ratio |", "|---|---|---|"]
            lines.append(f"| **{OURS}** | **{row.ms[OURS]:.3g}** | 1 |")
            for name in rivals:
                shown = f"{name} (not the whole work)" if name in row.floors else name
                lines.append(f"| {shown} | {row.ms[name]:.3g} | {row.ratio[name]:.2f} |")
            best = row.best()
            said = [f"Best rival: {best}, {row.ratio[best]:.2f}x.", f"{row.rounds} turns."]
            if row.target:
                against = f" over {row.against}" if row.against else ""
                said.append(f"Target{against} {verdict(row, first['amx'])}.")
            said += [row.notes[0].upper() + row.notes[1:] + "."] if row.notes else []
            lines += ["", " ".join(said)]
    return "\n".join(lines) + "\n"


def merge(results: Path = RESULTS) -> None:
    files = {name: PIECES_DIR / f"{name}.json" for name in PIECES}
    pieces = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    if not pieces:
        sys.exit(f"nothing to merge in {PIECES_DIR}: measure a piece first")
    results.mkdir(parents=True, exist_ok=True)
    (results / "kernels.json").write_text(json.dumps(pieces, indent=1) + "\n")
    (results / "kernels.md").write_text(table(pieces))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pieces", nargs="*", metavar="piece", help=", ".join(PIECES))
    parser.add_argument("--merge", action="store_true", help="make the table of what was measured")
    args = parser.parse_args()
    unknown = [name for name in args.pieces if name not in PIECES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: allowed are {', '.join(PIECES)}")
    if not args.pieces and not args.merge:  # a process each
        for piece in PIECES:
            subprocess.run([sys.executable, __file__, piece], check=True)
    for piece in args.pieces:
        measure(piece)
    if args.merge or not args.pieces:
        merge()


if __name__ == "__main__":
    main()
