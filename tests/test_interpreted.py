"""The kernels' numerics without a GPU, each file of ``tests/interpreted`` in its own process.

Triton decides at the import of a kernel whether it compiles or interprets it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def test_the_files_are_there() -> None:
    assert "test_harness.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--durations=3", str(FOLDER / file)]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ passed in", done.stdout, re.M), done.stdout[-500:]  # and none skipped
