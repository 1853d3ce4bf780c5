"""Checkpoints survive any crash whole, name what is damaged, and continue bit for bit."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wmfast.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from wmfast.errors import UserError
from wmfast.model_file import read_model, save_model
from wmfast.rng_state import restore_rng, rng_state
from wmfast.weights import load_weights


def small_save(run_dir: Path, env_step: int, *, keep: int = 2, replay: bytes = b"replay") -> Path:
    return save_checkpoint(
        run_dir,
        env_step,
        modules={"agent": nn.Linear(3, 2)},
        optimizers={},
        state={"train_step": env_step // 4},
        writers={"replay.bin": lambda path: path.write_bytes(replay)},
        keep=keep,
    )


def read_all(run_dir: Path) -> None:
    checkpoint = load_checkpoint(run_dir)
    checkpoint.restore_module("agent", nn.Linear(3, 2))
    checkpoint.file("replay.bin")


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, random: torch.Generator
) -> None:
    for _ in range(steps):
        x = torch.randn(8, 5, generator=random)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_training_continues_bit_for_bit(tmp_path: Path, options: dict[str, bool]) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.AdamW, torch.Generator]:
        torch.manual_seed(0)
        # channels last: the moments of such a weight must come back in its own memory layout
        conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(27), nn.Linear(27, 1))
        model = nn.Sequential(nn.Linear(5, 32), nn.Unflatten(1, (2, 4, 4)), conv, head)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, betas=(0.8, 0.95), **options)
        return model, optimizer, torch.Generator().manual_seed(1)

    straight, optimizer, random = fresh()
    train(straight, optimizer, 6, random)

    model, optimizer, random = fresh()
    optimizer.param_groups[0]["lr"] = 3e-3  # a schedule's value, unlike the constructor's
    train(model, optimizer, 3, random)
    save_checkpoint(
        tmp_path,
        12,
        modules={"agent": model},
        optimizers={"agent": optimizer},
        state={"rng": rng_state({"data": random})},
        writers={},
        keep=1,
    )
    train(model, optimizer, 3, random)

    resumed, optimizer_2, random_2 = fresh()
    train(resumed, optimizer_2, 1, random_2)  # restoring must overwrite, not merge
    checkpoint = load_checkpoint(tmp_path)
    checkpoint.restore_module("agent", resumed)
    checkpoint.restore_optimizer("agent", optimizer_2)
    restore_rng({"data": random_2}, checkpoint.state["rng"])
    train(resumed, optimizer_2, 3, random_2)

    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
        assert value.dtype == resumed.state_dict()[key].dtype
    first, second = optimizer.state_dict(), optimizer_2.state_dict()
    assert first["param_groups"] == second["param_groups"]
    for index, entries in first["state"].items():
        for name, value in entries.items():
            other = second["state"][index][name]
            assert torch.equal(value, other), name
            assert (value.dtype, value.device) == (other.dtype, other.device)
    weight = "0.weight"
    assert not torch.equal(straight.state_dict()[weight], resumed.state_dict()[weight])  # other lr


def test_random_streams_continue() -> None:
    generators = {
        "torch": torch.Generator().manual_seed(3),
        "pcg": np.random.default_rng(4),
        "mt": np.random.Generator(np.random.MT19937(5)),
    }
    generators["pcg"].standard_normal(3)
    saved = json.loads(json.dumps(rng_state(generators)))

    def draw() -> list[float]:
        torch_draw = torch.rand(2, generator=generators["torch"]).tolist()
        return torch_draw + [float(generators[k].random()) for k in ("pcg", "mt")]

    first, later = draw(), draw()
    restore_rng(generators, saved)
    assert draw() == first != later
    with pytest.raises(UserError, match=r"'other'.*there is torch, pcg, mt"):
        restore_rng({"other": generators["pcg"]}, saved)
    with pytest.raises(UserError, match="'pcg' does not fit"):
        restore_rng({"pcg": generators["pcg"]}, {"pcg": saved["torch"]})


def test_layout_and_newest_kept(tmp_path: Path) -> None:
    for step in (8, 90, 100):
        small_save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["100", "90", "latest"]
    assert (folder / "latest").read_text() == "100\n"
    assert {p.name for p in (folder / "100").iterdir()} == {
        "agent.safetensors",
        "replay.bin",
        "state.json",
        "manifest.json",
    }
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.env_step, checkpoint.state) == (100, {"train_step": 25})
    assert checkpoint.file("replay.bin").read_bytes() == b"replay"


def test_second_save_at_a_step_replaces_the_first(tmp_path: Path) -> None:
    small_save(tmp_path, 8, replay=b"first")
    small_save(tmp_path, 8, replay=b"second")
    assert load_checkpoint(tmp_path).file("replay.bin").read_bytes() == b"second"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["8", "latest"]


KILL_AT_EACH_FILE_OPERATION = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from wmfast.checkpoint import load_checkpoint, save_checkpoint

run_dir = Path(sys.argv[1])
os.fsync = lambda descriptor: None  # the kernel outlives the process; this test need not wait
FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}

def save(step, content):
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, content)
    save_checkpoint(run_dir, step, modules={"agent": model}, optimizers={},
                    state={"content": content}, keep=1,
                    writers={"replay.bin": lambda path: path.write_text(str(content))})

def content():
    checkpoint, model = load_checkpoint(run_dir), nn.Linear(1, 1)
    checkpoint.restore_module("agent", model)
    replay = int(checkpoint.file("replay.bin").read_text())
    assert model.weight.item() == replay == checkpoint.state["content"]  # one whole, not a mixture
    return replay

def killed(step, number, at):
    pid = os.fork()
    if pid == 0:
        seen = 0
        def hook(event, args):
            nonlocal seen
            if event in FILE_EVENTS and "checkpoints" in str(args[0]):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        save(step, number)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

save(0, 0)
old, outcomes, kills = 0, set(), 0
for next_step in (lambda old: old + 1, lambda old: old):  # a later step, then the same once more
    step, at, number = next_step(old), 0, old
    while True:
        at, number = at + 1, number + 1
        was_killed = killed(step, number, at)
        now = content()
        assert now in (old, number), (old, number, now)
        outcomes.add(now == number)
        if not was_killed:
            assert now == number
            break
        kills, old = kills + 1, now
    old = number
    leftovers = [p.name for p in (run_dir / "checkpoints").iterdir() if p.name.startswith(".")]
    assert not leftovers, leftovers
assert outcomes == {True, False}
print(kills)
"""


def test_kill_9_at_every_file_operation_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_EACH_FILE_OPERATION, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 30


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    small_save(tmp_path, 4)

    def write_to_full_disk(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"cannot save the checkpoint .*8: the disk is full"):
        save_checkpoint(
            tmp_path,
            8,
            modules={},
            optimizers={},
            state={},
            writers={"replay.bin": write_to_full_disk},
            keep=1,
        )
    assert load_checkpoint(tmp_path).env_step == 4
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "latest"]


def test_an_interrupted_save_is_tidied_and_the_interrupt_passes(tmp_path: Path) -> None:
    small_save(tmp_path, 4)

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(
            tmp_path,
            8,
            modules={},
            optimizers={},
            state={},
            writers={"replay.bin": interrupt},
            keep=1,
        )
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "latest"]


@pytest.mark.parametrize("name", ["agent.safetensors", "replay.bin", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_named_in_one_line(tmp_path: Path, name: str, damage: str) -> None:
    file = small_save(tmp_path, 8) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flipped" else data[:-1])
    with pytest.raises(UserError, match=f"damaged checkpoint: .*{name}") as caught:
        read_all(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_of_the_manifest_is_caught(tmp_path: Path) -> None:
    manifest = small_save(tmp_path, 8) / "manifest.json"
    good = manifest.read_bytes()
    meaning = json.loads(good)
    for position in range(0, len(good), 3):
        bad = bytearray(good)
        bad[position] ^= 4
        manifest.write_bytes(bad)
        try:
            if json.loads(bad) == meaning:
                continue  # white space
        except ValueError:
            pass
        with pytest.raises(UserError):
            read_all(tmp_path)


def test_deleting_the_damaged_checkpoint_falls_back(tmp_path: Path) -> None:
    small_save(tmp_path, 4)
    newest = small_save(tmp_path, 8)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert load_checkpoint(tmp_path).env_step == 4


def test_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match="has no checkpoint"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    train(nn.Sequential(nn.Linear(5, 3), model), optimizer, 1, torch.Generator())
    save_checkpoint(
        tmp_path,
        8,
        modules={"agent": model},
        optimizers={"agent": optimizer},
        state={},
        writers={},
        keep=1,
    )
    checkpoint, other = load_checkpoint(tmp_path), nn.Linear(4, 2)
    with pytest.raises(UserError, match=r"agent.safetensors does not fit.*\(2, 3\), not \(2, 4\)"):
        checkpoint.restore_module("agent", other)
    with pytest.raises(UserError, match=r"exp_avg\w* of parameter 0 is \(2, 3\), not \(2, 4\)"):
        checkpoint.restore_optimizer("agent", torch.optim.AdamW(other.parameters()))
    with pytest.raises(UserError, match=r"in each group \[2\], not \[1\]"):
        checkpoint.restore_optimizer("agent", torch.optim.AdamW([other.weight]))
    with pytest.raises(UserError, match=r"no world_model\.safetensors; it has agent\.safetensors"):
        checkpoint.restore_module("world_model", other)


@dataclass(frozen=True)
class Sizes:
    width: int = 3


def test_model_file_round_trip(tmp_path: Path) -> None:
    path, model = tmp_path / "tokenizer.safetensors", nn.Linear(3, 2).to(torch.bfloat16)
    save_model(path, model, "tokenizer", Sizes(), {"game": "pong"})
    config, weights = read_model(path, "tokenizer")
    assert config == {"width": 3}
    other = nn.Linear(3, 2).to(torch.bfloat16)
    load_weights(other, weights, str(path))
    assert torch.equal(other.weight, model.weight)


def test_model_file_refusals(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, nn.Linear(3, 2), "world_model", Sizes(), {})
    with pytest.raises(UserError, match="holds a world_model: a wmfast tokenizer file"):
        read_model(path, "tokenizer")

    good = path.read_bytes()
    for position in (-1, good.index(b"width")):  # a weight, the configuration
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(UserError, match="is damaged"):
            read_model(path, "world_model")
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="is damaged or no safetensors"):
        read_model(path, "world_model")

    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(UserError, match="is a pickle, which is never loaded"):
        read_model(path, "world_model")
    with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
        read_model(tmp_path / "absent", "agent")
    with pytest.raises(UserError, match="Is a directory"):
        read_model(tmp_path, "agent")
    foreign = small_save(tmp_path, 8) / "agent.safetensors"
    with pytest.raises(UserError, match="safetensors but no wmfast model"):
        read_model(foreign, "agent")
