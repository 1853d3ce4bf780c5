"""How the tests run: one thread a process, and GPU tests only where a GPU is."""

from __future__ import annotations

import os

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
