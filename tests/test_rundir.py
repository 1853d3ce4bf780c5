"""A run folder tells what was run, belongs to one process, and never takes in another run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wmfast.config import Config, EnvConfig, WorldModelConfig
from wmfast.config_json import config_from_json, config_to_json
from wmfast.errors import UserError
from wmfast.rundir import RunDir, create_run, find_run, load_config, resume_run

CONFIG = Config(
    game="pong",
    preset="cpu",
    seed=3,
    vqvae=Path("a/b.safetensors"),
    env=EnvConfig(sticky=0.25),
    world_model=WorldModelConfig(tubelet=(4, 2, 2)),
)


def create(root: Path, config: Config = CONFIG) -> RunDir:
    return create_run(config, device="cpu", protocol={"sticky": 0.25}, need_bytes=1, root=root)


def resume(root: Path, config: Config = CONFIG) -> RunDir:
    return resume_run(config, device="cpu", protocol={"sticky": 0.25}, need_bytes=1, root=root)


def test_a_new_run_says_what_it_is(tmp_path: Path) -> None:
    with create(tmp_path) as run, create(tmp_path) as second:
        assert run.path != second.path  # even within one second
        assert run.path.parent == tmp_path / "pong"
        assert run.path.name.startswith("cpu-s3-20")
        assert load_config(run.path) == CONFIG
        facts = json.loads((run.path / "env.json").read_text())
        assert run.media.is_dir()
    assert facts["packages"].keys() >= {"torch", "numpy", "ale-py", "gymnasium", "wmfast", "triton"}
    assert facts["packages"]["torch"].startswith("2.")
    assert (facts["device"], facts["protocol"]) == ("cpu", {"sticky": 0.25})
    assert facts["cpu"]
    assert facts["cores"] >= 1


def test_resume_finds_the_newest_run_of_the_same_kind(tmp_path: Path) -> None:
    first, second = create(tmp_path), create(tmp_path)
    for run in (first, second, create(tmp_path, replace(CONFIG, seed=30))):
        run.close()
    assert find_run("pong", "cpu", 3, root=tmp_path) == second.path
    with resume(tmp_path, replace(CONFIG, steps=5)) as run:
        assert (run.path, run.config) == (second.path, replace(CONFIG, steps=5))
        facts = json.loads((run.path / "env.json").read_text())
        assert [entry["device"] for entry in facts["resumed"]] == ["cpu"]
    assert load_config(second.path).steps == 5  # so that the next resume goes on to there as well
    with pytest.raises(UserError, match="no run of pong with preset v3 and seed 3"):
        find_run("pong", "v3", 3, root=tmp_path)


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    there = replace(CONFIG, run_dir=tmp_path / "mine")
    create(tmp_path, there).close()
    before = (tmp_path / "mine" / "config.json").read_bytes()
    with pytest.raises(UserError, match="mine holds another run: add --resume"):
        create(tmp_path, replace(there, seed=4))
    with pytest.raises(UserError, match="holds a run of pong, not of breakout"):
        resume(tmp_path, replace(there, game="breakout"))
    assert (tmp_path / "mine" / "config.json").read_bytes() == before
    resume(tmp_path, there).close()


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"not empty and holds no run \(it has thesis\.tex\)"):
        create(tmp_path, replace(CONFIG, run_dir=tmp_path))
    with pytest.raises(UserError, match="holds no run"):
        resume(tmp_path, replace(CONFIG, run_dir=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


HOLD = """
import sys, time
from pathlib import Path
from wmfast.config import Config
from wmfast.rundir import create_run
run = create_run(Config(game="pong", preset="cpu", run_dir=Path(sys.argv[1])), device="cpu",
                 protocol={}, need_bytes=1)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    config = replace(CONFIG, run_dir=tmp_path / "mine")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(config.run_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        in_use = rf"mine is in use by another process \(pid {holder.pid}\)"
        with pytest.raises(UserError, match=in_use):
            create(tmp_path, config)
        with pytest.raises(UserError, match=in_use):
            resume(tmp_path, config)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    resume(tmp_path, config).close()  # the kernel dropped the dead process's lock


def test_a_run_killed_before_it_began_leaves_the_folder_usable(tmp_path: Path) -> None:
    create(tmp_path, replace(CONFIG, run_dir=tmp_path)).close()
    (tmp_path / "config.json").unlink()
    (tmp_path / ".config.json.123.tmp").touch()
    create(tmp_path, replace(CONFIG, run_dir=tmp_path)).close()
    assert load_config(tmp_path).game == "pong"


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the run folder .*: Not a directory"):
        create(tmp_path, replace(CONFIG, run_dir=tmp_path / "file" / "run"))
    with pytest.raises(UserError, match=r"cannot (make|write|lock) .*/proc/"):
        create_run(
            replace(CONFIG, run_dir=Path("/proc/wmfast")), device="cpu", protocol={}, need_bytes=0
        )


def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path) -> None:
    config = replace(CONFIG, run_dir=tmp_path / "mine")
    with pytest.raises(UserError, match=r"too little disk space for .*mine: .* free, 10{6}\.0 GB"):
        create_run(config, device="cpu", protocol={}, need_bytes=10**15)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turbo": 1}, "x.json: unknown field turbo"),
        ({"seed": "3"}, "x.json: seed is '3', not int"),
        ({"seed": True}, "x.json: seed is True, not int"),
        ({"preset": "huge"}, "x.json: preset is 'huge', not one of 'auto', 'cpu'"),
        ({"env": 4}, "x.json: env is not an object: 4"),
        ({"agent": {}}, "x.json: missing field agent.act_with_target, agent.adam_epsilon"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    data = json.loads(json.dumps(config_to_json(CONFIG))) | change
    with pytest.raises(UserError) as caught:
        config_from_json(Config, data, "x.json")
    assert str(caught.value).startswith(message)


def test_a_wrong_tuple_is_named() -> None:
    data = config_to_json(WorldModelConfig(tubelet=(4, 2, 2)))
    assert config_from_json(WorldModelConfig, data, "x").tubelet == (4, 2, 2)
    for wrong in ([4, 2], [4, 2, "2"], "422"):
        with pytest.raises(UserError, match="x: tubelet is"):
            config_from_json(WorldModelConfig, data | {"tubelet": wrong}, "x")
