"""The run folder: ``runs/<game>/<preset>-s<seed>-<utc>/``, its config, environment and lock.

    config.json  the resolved `Config`        env.json    versions, device, commit, protocol
    run.lock     flocked while a process      media/      pictures
                 trains here

metrics.jsonl and checkpoints/ belong to `wmfast.metrics` and `wmfast.checkpoint`.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from wmfast.config import Config
from wmfast.config_json import config_from_json, config_to_json
from wmfast.disk import one_line_errors, require_space, write_atomic
from wmfast.errors import UserError

CONFIG_FILE = "config.json"
ENV_FILE = "env.json"
LOCK_FILE = "run.lock"
PACKAGES = ("torch", "numpy", "ale-py", "gymnasium", "wmfast", "triton")


@dataclass(frozen=True)
class RunDir:
    """A run folder that this process holds; no other process can train in it until `close`, or
    until the kernel drops the lock of a killed process."""

    path: Path
    config: Config
    """As the run began; its `run_dir` and `resume` are as given then."""
    lock: int
    """File descriptor of the flocked run.lock."""

    @property
    def media(self) -> Path:
        """The folder of pictures, made on first use."""
        return self._folder("media")

    @property
    def models(self) -> Path:
        """The folder of model files, made on first use."""
        return self._folder("models")

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        with one_line_errors("make", folder):
            folder.mkdir(exist_ok=True)
        return folder

    def close(self) -> None:
        """Lets another process train here."""
        os.close(self.lock)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_run(
    config: Config,
    *,
    device: str,
    protocol: Mapping[str, object],
    need_bytes: int = 256_000_000,
    root: Path = Path("runs"),
) -> RunDir:
    """Makes and locks the folder of a new run and writes config.json and env.json.

    Args:
        config: resolved (its preset is not `auto`, its game is the canonical name).
        device: "cpu" or "cuda".
        protocol: what scores depend on (sticky, noop_max, ...), written into env.json.
        need_bytes: free space the run will need (checkpoints with their replay buffers).
        root: parent of the game folders when `config.run_dir` is None.

    Raises:
        UserError: `config.run_dir` holds a run or foreign files or is in use, it can't be
            written, or the disk has less than `need_bytes` free.
    """
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = config.run_dir or root / config.game / f"{config.preset}-s{config.seed}-{stamp}"
    if config.run_dir is None:
        path = _unused(path)
    _refuse_foreign(path)
    require_space(path, need_bytes)
    with one_line_errors("make the run folder", path):
        path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        _refuse_foreign(path, locked=True)  # another process may have been quicker
        # config.json comes last: a folder is a run from then on.
        facts = environment(device, protocol)
        with one_line_errors("write", path):
            write_atomic(path / ENV_FILE, _pretty(facts))
            write_atomic(path / CONFIG_FILE, _pretty(config_to_json(config)))
    except BaseException:
        os.close(lock)
        raise
    return RunDir(path, config, lock)


def resume_run(
    config: Config,
    *,
    device: str,
    protocol: Mapping[str, object],
    need_bytes: int = 256_000_000,
    root: Path = Path("runs"),
) -> RunDir:
    """Locks the folder `config.run_dir`, or that of the newest run of the same game, preset and
    seed, and notes in env.json that it goes on here; arguments as for `create_run`.

    Raises:
        UserError: there is no such run, it is of another game or in use, config.json is damaged,
            the folder can't be written, or the disk has less than `need_bytes` free.
    """
    path = config.run_dir or find_run(config.game, config.preset, config.seed, root=root)
    saved = load_config(path)
    if saved.game != config.game:
        raise UserError(
            f"{path} holds a run of {saved.game}, not of {config.game}: "
            f"pass --game {saved.game}, or another --run-dir"
        )
    require_space(path, need_bytes)
    lock = _lock(path)
    try:
        facts = _load_json(path / ENV_FILE)
        resumed = facts.setdefault("resumed", [])
        if not isinstance(resumed, list):
            raise UserError(f"{path / ENV_FILE} is damaged: 'resumed' is not a list")
        resumed.append(environment(device, protocol))
        # What may change on resume (more steps, say) holds for the next resume too.
        going_on = replace(config, run_dir=saved.run_dir, resume=saved.resume)
        with one_line_errors("write", path):
            write_atomic(path / ENV_FILE, _pretty(facts))
            write_atomic(path / CONFIG_FILE, _pretty(config_to_json(going_on)))
    except BaseException:
        os.close(lock)
        raise
    return RunDir(path, going_on, lock)


def find_run(game: str, preset: str, seed: int, *, root: Path = Path("runs")) -> Path:
    """The newest run folder of this game, preset and seed.

    Raises:
        UserError: there is none.
    """
    pattern = re.compile(re.escape(f"{preset}-s{seed}-") + r"(\d{8}T\d{6}Z)(?:-(\d+))?")
    found = [
        (match[1], int(match[2] or 1), file.parent)
        for file in (root / game).glob(f"*/{CONFIG_FILE}")
        if (match := pattern.fullmatch(file.parent.name))
    ]
    if not found:
        raise UserError(
            f"no run of {game} with preset {preset} and seed {seed} under {root} to resume"
        )
    return max(found)[2]


def load_config(path: Path) -> Config:
    """The `Config` in a run folder's config.json.

    Raises:
        UserError: no run is there, or a field is unknown, missing or of the wrong type.
    """
    file = path / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{path} holds no run: it has no {CONFIG_FILE}")
    return config_from_json(Config, _load_json(file), str(file))


def environment(device: str, protocol: Mapping[str, object]) -> dict[str, object]:
    """Versions, processor, device, commit, time and protocol: what a result depends on."""
    return {
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "device": _device_name(device),
        "commit": _commit(),
        "protocol": dict(protocol),
    }


def _lock(path: Path) -> int:
    file = path / LOCK_FILE
    with one_line_errors("lock", file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(f"{path} is in use by another process (pid {holder})") from error
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _refuse_foreign(path: Path, *, locked: bool = False) -> None:
    """A new run goes into an absent or empty folder, or one whose run never began."""
    with one_line_errors("read", path):
        names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if CONFIG_FILE in names:
        if LOCK_FILE in names and not locked:
            os.close(_lock(path))  # tell of a live process rather than of a finished run
        raise UserError(
            f"{path} holds another run: add --resume to go on with it, or choose another --run-dir"
        )
    foreign = sorted(n for n in names - {LOCK_FILE, ENV_FILE} if not n.endswith(".tmp"))
    if foreign:
        raise UserError(
            f"{path} is not empty and holds no run (it has {foreign[0]}): choose another --run-dir"
        )


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _load_json(file: Path) -> dict[str, object]:
    with one_line_errors("read", file):
        data = file.read_bytes()
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: not a JSON object")
    return value


def _pretty(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch  # only a GPU's name needs it

    return f"{device}: {torch.cuda.get_device_name(device)}"


def _commit() -> str | None:
    """Commit of the checkout that wmfast runs from, "+changes" where files differ; None if none."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout)]
    try:
        head, status = (
            subprocess.run(git + words, capture_output=True, text=True, timeout=10, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
