"""Files that are whole or absent, and the disk's errors in one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmfast.errors import UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`; a crash at any moment leaves the old file or the new one.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Forces a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def one_line_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError within into ``UserError("cannot <doing> <path>: <reason>")``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk is full ({_size(free_bytes(path))} free)"
        raise UserError(f"cannot {doing} {path}: {reason}") from error


def require_space(folder: Path, need_bytes: int) -> None:
    """Raises UserError unless `folder`, which may not exist yet, has `need_bytes` to write."""
    free = free_bytes(folder)
    if free < need_bytes:
        raise UserError(
            f"too little disk space for {folder}: {_size(free)} free, {_size(need_bytes)} needed"
        )


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path` or would hold it."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
