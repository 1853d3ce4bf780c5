"""How the tests run: one thread a process, and GPU tests only where a GPU is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Triton's interpreter needs a process of its own: test_interpreted.py starts it.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


def pytest_configure() -> None:
    # The tests' networks are tiny; on a busy machine two threads that wait for each other are many
    # times slower than one. Subprocesses inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished `smoke` run of Breakout, not to be changed, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    code = "from wmfast.cli import main_train; main_train()"
    arguments = ["--game", "Breakout", "--preset", "smoke", "--run-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout
