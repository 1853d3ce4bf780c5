"""Who may import whom, read from the sources; the rules are tried on made-up offenders first."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Parts that others build on: what each may import of wmfast. `wmfast` alone is the package's own
# door (TokenReplay). Parts that wire these together are free, but for the rules that hold for all.
ARROWS: dict[str, set[str]] = {
    "kernels": {"kernels", "_core"},
    "types": set(),
    "agent_config": set(),
    "config": {"agent_config"},
    "errors": set(),
    "games": set(),
    "envs": {"config", "games"},
    "token_history": {"types"},
    "models": {"models", "kernels", "types", "config"},
    "replay": {"wmfast", "_core", "types", "replay_staging"},
    "replay_staging": {"_core", "types"},
    "agent": {"models", "types", "config"},
    "imagine": {"models", "types", "config"},
    "step": {"types"},
    "collect": {"wmfast", "replay", "envs", "token_history", "types", "stopwatch"},
    "evaluate": {"envs", "games", "token_history", "types", "config"},
    "quality": {"models", "types"},
    "open_loop": {"models", "types", "quality"},
}
# Of other packages, beside the standard library; parts without a row may import any.
THIRD_PARTY: dict[str, set[str]] = {
    "wmfast": {"numpy"},
    "kernels": {"torch", "triton"},
    "types": {"torch"},
    "agent_config": set(),
    "config": set(),
    "errors": set(),
    "games": {"ale_py"},
    "envs": {"ale_py", "numpy"},
    "models": {"torch"},
}
BANNED_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "data2", "tmp"}


def package_sources() -> dict[str, str]:
    """Source by module name, as imported: ``wmfast.kernels.x`` lies in kernels/."""
    files = {"wmfast": ROOT / "wmfast", "wmfast.kernels": ROOT / "kernels"}
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts])
        .removesuffix(".__init__"): path.read_text()
        for package, folder in files.items()
        for path in sorted(folder.rglob("*.py"))
    }  # fmt: skip


def imports(source: str) -> Iterator[str]:
    """Every imported dotted name, those inside functions too, but none that only mypy sees."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{name.name}" for name in node.names)
        else:
            pending += ast.iter_child_nodes(node)


def part_of(module: str) -> str:
    """``wmfast.models.kmeans`` belongs to ``models``; the package itself is ``wmfast``."""
    return module.removeprefix("wmfast").lstrip(".").split(".")[0] or "wmfast"


def violations(sources: dict[str, str]) -> list[str]:
    """One line for each import that breaks a rule."""
    found: list[str] = []
    graph: dict[str, set[str]] = {module: set() for module in sources}
    for module, source in sources.items():
        part = part_of(module)
        for name in imports(source):
            top = name.split(".")[0]
            if name.startswith("."):
                found.append(f"{module}: relative import {name}")
            elif top == "kernels":
                found.append(f"{module}: {name} is wmfast.{name}, not a module of its own")
            elif top == "wmfast":
                # `from a import b`: b is a module, or else something in module a.
                target = (
                    name if name in sources or part_of(name) == "_core" else name.rpartition(".")[0]
                )
                graph[module].add(target)
                goal = part_of(target)
                if goal == "cli":
                    found.append(f"{module}: nothing imports cli")
                elif goal not in ARROWS.get(part, {goal}):
                    found.append(f"{module}: {part} may not import {goal}")
            elif top not in sys.stdlib_module_names | THIRD_PARTY.get(part, {top}):
                found.append(f"{module}: {part} may not import {top}")
    return found + [" -> ".join(cycle) for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One cycle of imports for each module that can reach itself first through it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, set())):
                visit(target, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


def test_the_arrows_hold() -> None:
    assert violations(package_sources()) == []


def test_the_sources_are_all_there() -> None:
    sources = package_sources()
    some = {"wmfast", "wmfast.config", "wmfast.kernels", "wmfast.models.transformer"}
    assert some <= set(sources)
    assert {"wmfast.config.EnvConfig", "numpy.typing.NDArray"} <= set(
        imports(sources["wmfast.envs"])
    )


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("wmfast.types", "import wmfast.config", "types may not import config"),
        ("wmfast.config", "import torch", "config may not import torch"),
        ("wmfast.models.x", "from wmfast import train", "models may not import train"),
        ("wmfast.models.x", "from wmfast import TokenReplay", "models may not import wmfast"),
        ("wmfast.models.x", "import numpy as np", "models may not import numpy"),
        (
            "wmfast.agent",
            "def f():\n    from wmfast.envs import AtariEnvs",
            "agent may not import envs",
        ),
        ("wmfast.kernels.x", "from wmfast.types import HISTORY", "kernels may not import types"),
        ("wmfast.train", "from wmfast.cli import main", "nothing imports cli"),
        ("wmfast.train", "from wmfast import cli", "nothing imports cli"),
        ("wmfast.train", "from kernels import nearest_code", "not a module of its own"),
        ("wmfast.train", "from . import agent", "relative import"),
        (
            "wmfast.envs",
            "try:\n    import torch\nexcept ImportError:\n    pass",
            "may not import torch",
        ),
    ],
)
def test_an_offender_is_caught(module: str, source: str, complaint: str) -> None:
    known = dict.fromkeys(
        ["wmfast", "wmfast.cli", "wmfast.config", "wmfast.envs", "wmfast.train"], ""
    )
    assert violations(known) == []
    (found,) = violations(known | {module: source})
    assert complaint in found


def test_what_only_mypy_sees_is_allowed() -> None:
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from wmfast.cli import main"
    assert violations({"wmfast.train": hidden, "wmfast.cli": ""}) == []


def test_a_cycle_is_caught() -> None:
    ring = {
        "wmfast.a": "import wmfast.b",
        "wmfast.b": "from wmfast.c import x",
        "wmfast.c": "def f():\n    from wmfast import a",
    }
    assert violations(ring) == ["wmfast.a -> wmfast.b -> wmfast.c -> wmfast.a"]


def test_importing_wmfast_and_its_replay_needs_no_torch() -> None:
    check = (
        "import sys, wmfast; assert 'torch' not in sys.modules, 'wmfast';"
        "wmfast.TokenReplay; assert 'torch' not in sys.modules, 'TokenReplay'"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_no_module_is_named_for_nothing() -> None:
    folders = [ROOT / name for name in ("wmfast", "kernels", "csrc", "tests", "bench")]
    names = {path.stem: path for folder in folders for path in folder.rglob("*")}
    assert {name: names[name] for name in BANNED_NAMES & set(names)} == {}


def test_nothing_outside_the_package_imports_kernels_either() -> None:
    for folder in ("tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports(path.read_text())}
            assert "kernels" not in tops, path
