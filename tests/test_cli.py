"""Bad input: one clear line on stderr that names the value, exit status 2, nothing harmed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wmfast.cli import main, main_train
from wmfast.launch import disk_bytes
from wmfast.presets import PRESETS


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, train: bool = True) -> str:
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        (main_train if train else main)([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err
    return printed.err


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--game", "mspackman"], ["'mspackman'", "ms_pacman"]),
        (["--steps", "-1"], ["--steps -1", "at least 1"]),
        (["--steps", "0"], ["--steps 0", "at least 1"]),
        (["--steps", "abc"], ["--steps", "'abc'"]),
        (["--steps", "500"], ["--steps 500", "warm-up"]),
        (["--seed", "-3"], ["--seed -3", "at least 0"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--preset", "gpu"], ["'gpu'", "'cpu'", "'v3'"]),
        (["--device", "tpu"], ["'tpu'", "'cpu'", "'cuda'"]),
        (["--stepz", "3"], ["--stepz"]),
        (["--env.sticky", "1.5"], ["--env.sticky 1.5", "0..1"]),
        (["--agent.kind", "mlp"], ["'mlp'", "'conv'"]),
        (["--loop.mode", "fast"], ["'fast'", "'staged'", "'frozen'", "'full'"]),
        (["--vqvae", "absent.safetensors"], ["absent.safetensors"]),
        (["--wm", "absent.safetensors"], ["absent.safetensors"]),
        (["--agent.d-model", "0"], ["--agent.d-model 0", "at least 1"]),
        (["--agent.learning-rate", "nan"], ["--agent.learning-rate nan", "finite"]),
        (["--world-model.grad-clip", "-1"], ["--world-model.grad-clip -1.0", "positive"]),
        (["--agent.kind", "transformer", "--agent.heads", "3"], ["--agent", "heads = 3"]),
        (["--agent.reset-every", "-1"], ["--agent.reset-every -1", "at least 0"]),
        (["--agent.token-dropout", "1.5"], ["--agent.token-dropout 1.5", "0..1"]),
        (
            [
                "--loop.mode",
                "full",
                "--steps",
                "100000000000",
                "--continual.window-frames",
                "100000000000",
            ],
            ["--continual.window-frames 100000000000", "GB of memory, this machine has"],
        ),
        (["--agent.bins", "1"], ["--agent.bins 1", "at least 2"]),
        (
            ["--agent.value-head", "c51", "--agent.value-range", "2", "--agent.n-step-start", "5"],
            ["--agent.value-range 2.0", "4.90"],
        ),
        (
            ["--agent.value-head", "c51", "--agent.value-range", "0", "--agent.gamma", "1"],
            ["--agent.value-range 0", "--agent.gamma"],
        ),
        (
            ["--agent.curiosity", "0.1", "--agent.n-step", "5"],
            ["--agent.curiosity 0.1", "at most 4 steps"],
        ),
        (
            ["--agent.curiosity", "0.1", "--agent.gamma", "1"],
            ["--agent.curiosity 0.1", "--agent.gamma between 0 and 1"],
        ),
        (["--agent.gamma-start", "1"], ["--agent.gamma-start 1.0", "at most --agent.gamma"]),
        (
            ["--agent.gamma-start", "0.9", "--agent.gamma", "1"],
            ["--agent.gamma-start 0.9", "below 1"],
        ),
        (["--tokenizer.codebook-size", "70000"], ["--tokenizer.codebook-size 70000", "65536"]),
        (["--env.max-frames", "4"], ["--env.max-frames 4", "at least 16"]),
        (["--loop.replay-capacity", "50"], ["--loop.replay-capacity 50", "warm-up"]),
        (["--resume"], ["resume"]),
        (["--resume", "--run-dir", "absent"], ["absent"]),
    ],
)
def test_bad_train_arguments(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(capsys, *arguments)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []  # nothing was made


def test_cuda_without_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(capsys, "--device", "cuda")
    assert "--device cuda" in line
    assert "cpu" in line


def test_files_that_are_no_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x93not a model" * 10)
    assert "garbage.safetensors" in refused(capsys, "--vqvae", garbage)
    assert "garbage.safetensors" in refused(capsys, "--wm", garbage)


def test_the_frames_of_mode_full_need_space_on_the_disk_too() -> None:
    config = PRESETS["smoke"]
    full = replace(config, steps=10_000, loop=replace(config.loop, mode="full"))
    frozen = replace(full, loop=replace(config.loop, mode="frozen"))
    files = config.loop.keep_checkpoints + 1
    rehearsal = 4 * config.tokenizer.codebook_size
    for window, held in ((240, 240), (9_000, 9_000), (10**12, 10_000)):
        wide = replace(full, continual=replace(full.continual, window_frames=window))
        more = (disk_bytes(wide) - disk_bytes(frozen)) / (files * (held + rehearsal))
        assert 1_900 < more < 4_000  # bytes of a frame of MsPacman, and not much above


def test_folders_that_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert "another run" in refused(capsys, "--preset", "smoke", "--run-dir", other)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("my only copy")
    assert "foreign" in refused(capsys, "--preset", "smoke", "--run-dir", foreign)
    assert (foreign / "thesis.tex").read_text() == "my only copy"
    file = tmp_path / "file"
    file.write_text("")
    assert "file" in refused(capsys, "--preset", "smoke", "--run-dir", file / "run")


def test_dream_and_eval_refuse_what_they_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--run-dir", "absent"]
    assert "--seed -3" in refused(capsys, "dream", *run, "--seed", -3, train=False)
    assert "--steps 1000000" in refused(capsys, "dream", *run, "--steps", 1000000, train=False)
    assert "--temperature nan" in refused(
        capsys, "dream", *run, "--temperature", "nan", train=False
    )
    cold = ["--top-k", 5, "--temperature", 0]
    assert "needs a --temperature" in refused(capsys, "dream", *run, *cold, train=False)
    assert "--top-k -1" in refused(capsys, "dream", *run, "--top-k", -1, train=False)
    assert "must end in .gif" in refused(capsys, "dream", *run, "--out", "d.png", train=False)
    assert "--seed -1" in refused(capsys, "eval", *run, "--seed", -1, train=False)


@pytest.mark.parametrize(
    ("kind", "option", "other"),
    [
        ("--world-model", ["--episodes", "0"], "--run-dir"),
        ("--world-model", ["--epsilon", "0.0"], "--run-dir"),
        ("--world-model", ["--sticky", "0.25"], "--run-dir"),
        ("--world-model", ["--seed", "0"], "--run-dir"),
        ("--run-dir", ["--tier", "fast"], "--world-model"),
        ("--run-dir", ["--gold", "gold_indices.json"], "--world-model"),
    ],
)
def test_eval_refuses_what_would_do_nothing(
    kind: str, option: list[str], other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "eval", kind, "absent", *option, train=False)
    assert f"{' '.join(option)}: is for" in line
    assert other in line


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'fly'" in refused(capsys, "fly", train=False)
    assert "absent" in refused(capsys, "eval", "--run-dir", "absent", train=False)
    assert "absent" in refused(capsys, "dream", "--run-dir", "absent", train=False)
    assert "--run-dir" in refused(capsys, "eval", train=False)
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "train" in capsys.readouterr().out


def test_help_shows_what_the_fields_say_without_torch() -> None:
    code = (
        "import sys; from wmfast.cli import main\n"
        "try: main(['eval', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Probability of a random action" in done.stdout
