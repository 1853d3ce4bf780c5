"""Checkpoints that a kill -9 can't tear: ``checkpoints/<env_step>/`` and ``latest``.

    <module>.safetensors             weights and buffers
    optimizer-<name>.safetensors     the optimiser's tensors; its numbers stand in state.json
    <writer>                         what a writer wrote, the replay buffer for one
    state.json                       counters, schedules, random states
    manifest.json                    size and SHA-256 of each file above

A checkpoint is written in a hidden folder beside, each file and the folder fsynced, then renamed;
`latest` is replaced last. Loading reads safetensors and JSON only, nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wmfast.disk import one_line_errors, sync, write_atomic
from wmfast.errors import UserError
from wmfast.optimizer_state import restore_optimizer, split_optimizer
from wmfast.weights import host_copies, host_weights, load_weights

FORMAT = "wmfast-checkpoint-1"
MANIFEST = "manifest.json"
STATE = "state.json"
_READ_BYTES = 1 << 20


def save_checkpoint(
    run_dir: Path,
    env_step: int,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    writers: Mapping[str, Callable[[Path], object]],
    keep: int,
) -> Path:
    """Writes ``checkpoints/<env_step>/`` and points `latest` at it.

    Args:
        modules, optimizers: by name; file names are made of the names.
        state: JSON values (`rng_state` makes them of generators).
        writers: file name to a function that writes that file, e.g. ``replay.save``.
        keep: newest checkpoints kept, at least 1.

    Returns:
        The new folder.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are whole, the leftovers
            are gone.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, must be at least 1")
    folder = run_dir / "checkpoints"
    beside, final = folder / f".saving-{env_step}", folder / str(env_step)
    with one_line_errors("save the checkpoint", final):
        folder.mkdir(exist_ok=True)
        _tidy(folder)
        try:
            beside.mkdir()
            _write_all(beside, env_step, modules, optimizers, state, writers)
            if final.exists():  # a second save at this step; `_find` looks at both names
                final.rename(_replaced(final))
            beside.rename(final)
            sync(folder)
            write_atomic(folder / "latest", f"{env_step}\n".encode())
        except BaseException:
            _tidy(folder)
            raise
        for step in _steps(folder)[:-keep]:
            if step < env_step:
                # A folder with a number is always whole, even if the process dies in rmtree.
                (folder / str(step)).rename(folder / f".dropped-{step}")
        _tidy(folder)
    return final


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Folder of the checkpoint that `latest` names, or else of the newest; None without any."""
    folder = run_dir / "checkpoints"
    pointer = folder / "latest"
    names = [pointer.read_text().strip()] if pointer.is_file() else []
    names += [str(step) for step in reversed(_steps(folder))]
    for name in names:
        if name.isdecimal():
            # Between the two renames of a second save at one step only the old name is there.
            for candidate in (folder / name, _replaced(folder / name)):
                if candidate.is_dir():
                    return candidate
    return None


def load_checkpoint(run_dir: Path) -> Checkpoint:
    """Opens the latest checkpoint; sizes are checked here, each checksum when its file is read.

    Raises:
        UserError: there is none, or a file is missing or damaged; the message names it.
    """
    path = latest_checkpoint(run_dir)
    if path is None:
        raise UserError(f"{run_dir} has no checkpoint to go on from")
    manifest = _parse_json(_read(path / MANIFEST), path / MANIFEST)
    try:
        if manifest["format"] != FORMAT:
            raise UserError(f"{path} has format {manifest['format']!r}, this reads {FORMAT!r}")
        files = {
            name: FileSum(int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in manifest["files"].items()
        }
        env_step = int(manifest["env_step"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path / MANIFEST, f"no valid {error}") from error
    if path.name.removeprefix(".replaced-") != str(env_step):
        raise _damaged(path / MANIFEST, f"its env_step is {env_step}")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise _damaged(file, "missing")
        if file.stat().st_size != expected.size:
            raise _damaged(file, f"{file.stat().st_size} bytes in place of {expected.size}")
    checkpoint = Checkpoint(path, env_step, files, {}, {})
    state = _parse_json(checkpoint._bytes(STATE), path / STATE)
    try:
        return Checkpoint(path, env_step, files, state["state"], state["optimizers"])
    except KeyError as error:
        raise _damaged(path / STATE, f"no {error}") from error


@dataclass(frozen=True)
class FileSum:
    """Size in bytes and hexadecimal SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; every method raises UserError where a file is missing or damaged."""

    path: Path
    env_step: int
    files: Mapping[str, FileSum]
    state: Mapping[str, Any]
    """The JSON values given to `save_checkpoint`."""
    optimizer_numbers: Mapping[str, Any]

    def restore_module(self, name: str, module: nn.Module) -> None:
        """Loads weights and buffers, strictly; they keep the module's device and dtype."""
        file = f"{name}.safetensors"
        load_weights(module, self._tensors(file), str(self.path / file))

    def restore_optimizer(self, name: str, optimizer: Optimizer) -> None:
        """Loads the optimiser's state bit for bit. How it runs (fused, foreach, capturable) stays
        as the optimiser was built, since that depends on the device."""
        file = f"optimizer-{name}.safetensors"
        tensors = self._tensors(file)
        restore_optimizer(optimizer, tensors, self.optimizer_numbers[name], str(self.path / file))

    def file(self, name: str) -> Path:
        """Path of a writer's file, its checksum verified."""
        path = self.path / name
        if name not in self.files:
            raise UserError(f"{self.path} has no {name}; it has {', '.join(sorted(self.files))}")
        with one_line_errors("read", path):
            found = _sum(path)
        if found != self.files[name]:
            raise _damaged(path, "its checksum is wrong")
        return path

    def _bytes(self, name: str) -> bytes:
        return _read(self.file(name))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return safetensors.torch.load(self._bytes(name))


def _write_all(
    folder: Path,
    env_step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    writers: Mapping[str, Callable[[Path], object]],
) -> None:
    numbers = {}
    for name, module in modules.items():
        weights = host_weights(module)
        (folder / f"{name}.safetensors").write_bytes(safetensors.torch.save(weights))
    for name, optimizer in optimizers.items():
        tensors, numbers[name] = split_optimizer(optimizer)
        data = safetensors.torch.save(host_copies(tensors))
        (folder / f"optimizer-{name}.safetensors").write_bytes(data)
    for name, write in writers.items():
        write(folder / name)
    text = json.dumps({"state": dict(state), "optimizers": numbers}, indent=1)
    (folder / STATE).write_text(text)
    sums = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        found = _sum(file)
        sums[file.name] = {"bytes": found.size, "sha256": found.sha256}
    manifest = {"format": FORMAT, "env_step": env_step, "files": sums}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def _steps(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _replaced(final: Path) -> Path:
    return final.with_name(f".replaced-{final.name}")


def _tidy(folder: Path) -> None:
    """Removes what a killed or failed save left; puts back a checkpoint whose successor is not
    there."""
    for path in folder.glob(".replaced-*"):
        final = folder / path.name.removeprefix(".replaced-")
        if final.exists():
            shutil.rmtree(path)
        else:
            path.rename(final)
    for path in [*folder.glob(".saving-*"), *folder.glob(".dropped-*")]:
        shutil.rmtree(path)
    for path in folder.glob(".latest.*.tmp"):  # of `write_atomic`
        path.unlink()


def _sum(file: Path) -> FileSum:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return FileSum(size, digest.hexdigest())


def _read(file: Path) -> bytes:
    with one_line_errors("read", file):
        return file.read_bytes()


def _parse_json(data: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(file, "not a JSON object")
    return value


def _damaged(file: Path, what: str) -> UserError:
    return UserError(
        f"damaged checkpoint: {file}: {what}; "
        f"delete {file.parent} to go on from the checkpoint before it"
    )
