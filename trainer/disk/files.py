"""Writes files whole or not at all: every write goes to a temporary neighbour first and is renamed into place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

WINDOWS_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()
"""Seconds between attempts to rename. Windows refuses to rename a file while it is open, for example in a virus scanner
that looks at what was just written. That passes."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a file in a temporary folder beside `path` to write to. On success it is flushed to disk and renamed to
    `path`; on failure it is removed and `path` stays as it was."""
    folder = _neighbour(path)  # safetensors 0.8 writes beside it, to a file that a kill leaves behind
    folder.mkdir()
    temporary = folder / "new"  # without a suffix, so that ComfyUI does not list it among its LoRAs
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the system's umask wants it: safetensors makes files that only we can read
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        _rename(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def creating_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` for files that belong together. On success the files are flushed to disk
    and the folder is renamed to `path`, in place of a folder that was there; on failure it is removed."""
    temporary = _neighbour(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        remove_folder(path)
        _rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes the half-written files that a killed process has left in a folder."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


def remove_folder(path: Path) -> None:
    """Removes a folder. It is renamed first, so that it is gone at once. Raises OSError if that is not possible."""
    if path.exists():
        gone = _neighbour(path)
        _rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex[:8]}.tmp")  # short: Windows allows 247 characters


def _rename(path: Path, target: Path) -> None:
    for seconds in WINDOWS_WAITS:
        try:
            return os.replace(path, target)
        except PermissionError:
            time.sleep(seconds)
    os.replace(path, target)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Writes or replaces a file."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def keep_once(path: Path) -> None:
    """Keeps what a file holds as it is now, with .bak added to its name, unless something is kept there already."""
    backup = path.with_name(path.name + ".bak")
    if path.exists() and not backup.exists():
        write_atomic(backup, path.read_bytes())


def append_whole(path: Path, content: bytes) -> None:
    """Adds `content` to the end of a file, whole or not at all. Raises OSError."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # else what is added next would go on where this was cut off
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes or replaces a JSON file. Half a character becomes its escape, which JSON reads as the same half."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes or replaces a safetensors file."""
    with replacing(path) as temporary:
        save_tensors(temporary, tensors, metadata)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file. Raises OSError, also where safetensors raises an error of its own for a full disk."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as err:
        raise OSError(str(err)) from err
