"""The wheel, built and then used from outside the source tree, as a stranger's machine has it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USE_IT = """
import sys
import numpy as np
import wmfast
from wmfast import TokenReplay

assert "torch" not in sys.modules
replay = TokenReplay(64, 2, seed=1)
rng = np.random.default_rng(0)
for _ in range(20):
    replay.add(
        rng.integers(512, size=(2, 336), dtype=np.uint16),
        np.array([0, 1]),
        np.ones(2, np.float32),
        np.zeros(2, bool),
        np.zeros(2, bool),
    )
assert len(replay) == 40
assert replay.sample(8)["state"].shape == (8, 4, 336)

import torch
from wmfast.kernels import nearest_code

codebook = torch.eye(5)
assert nearest_code(codebook[[3, 1]], codebook).tolist() == [3, 1]
import wmfast._core, wmfast.kernels

for module in (wmfast, wmfast._core, wmfast.kernels):
    print(module.__file__)
"""


@pytest.mark.slow
def test_the_wheel_is_complete_and_works_outside_the_source_tree(tmp_path: Path) -> None:
    build = [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--config-settings", f"build-dir={tmp_path / 'build'}"),
        *("--config-settings", "cmake.build-type=Debug"),  # quicker to compile
        *("--wheel-dir", str(tmp_path), str(ROOT)),
    ]
    cores = os.environ | {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    subprocess.run(build, check=True, cwd=tmp_path, env=cores)
    (wheel,) = tmp_path.glob("wmfast-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wmfast"}
    assert any(name.startswith("wmfast/_core.") and name.endswith(".so") for name in names)
    assert "wmfast/py.typed" in names
    assert "wmfast/published_scores.json" in names
    for folder, inside in (("wmfast", "wmfast"), ("kernels", "wmfast/kernels")):
        for path in (ROOT / folder).rglob("*.py*"):
            if "__pycache__" not in path.parts:
                assert f"{inside}/{path.relative_to(ROOT / folder)}" in names

    # Without the site module no editable install's import hook can lead back to the source tree.
    done = subprocess.run(
        [sys.executable, "-S", "-c", USE_IT],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{sysconfig.get_path('platlib')}"},
        capture_output=True,
        text=True,
    )
    assert len(done.stdout.splitlines()) == 3
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(site)
