"""Keeps latents and encoded captions on disk, so that each is computed once, whatever jobs need it.

A key is a hash of all that the value depends on, so no value is ever stale. The values that were unused for longest
are removed first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk.files import remove_folder, sweep, write_tensors

log = logging.getLogger(__name__)

MOST_BYTES = 20 * 2**30
"""The most bytes that all files together may have. Latents of 512 × 512 pixels are 0.26 MB, a caption of 256 tokens of
T5-XXL is 4 MB."""

STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
"""The types of numbers that are kept, by their names in safetensors."""


def key(*parts: Any) -> str:
    """Returns the key of a value that depends on `parts`. Each needs a `repr` that tells it apart from others."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Keeps safetensors files by key in a folder. If it fails, that costs time, but never the training."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes, self._broken = folder, most_bytes, False

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns the tensors and plain values of a key by name, or None if they are not there or cannot be read. The
        tensors lie in the file, mapped into memory: the system reads what is used, and may drop it again when memory is
        short. They must not be written to."""
        path = self._path(key)
        try:
            tensors, metadata = mapped(path) if os.name == "nt" else _opened(path)
            found = {**tensors, **json.loads(metadata["plain"])}
            os.utime(path)
        except OSError as err:  # it may be readable another time
            if not isinstance(err, FileNotFoundError):
                log.warning("%s cannot be read now (%s); what is in it is made anew", path, err)
            return None
        except (SafetensorError, KeyError, ValueError, RuntimeError) as err:
            log.warning("%s is broken (%s: %s) and is made anew", path, type(err).__name__, err)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return found

    def keep(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        """Writes a value to disk, tensors and whatever else JSON can hold, and returns it as `get` does. A value is
        returned as it is if it has no tensors, if something in it cannot be stored, or if it cannot be written."""
        return self.get(key) or value if self._written(key, value) else value

    def _written(self, key: str, value: dict[str, Any]) -> bool:
        tensors = {name: part.contiguous() for name, part in value.items() if torch.is_tensor(part)}
        plain = {name: part for name, part in value.items() if name not in tensors}
        try:
            text = json.dumps(plain)
        except TypeError:
            return False
        if json.loads(text) != plain or not tensors or not {t.dtype for t in tensors.values()} <= {*STORED.values()}:
            return False
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, {"plain": text})
        except OSError as err:
            if not self._broken:
                log.warning("What was encoded cannot be kept in %s (%s); it is encoded again next time", self._folder,
                            err)
            self._broken = True
            return False
        return True

    def trim(self) -> None:
        """Removes what a killed process left, and then the values that were unused for longest, until the rest is
        within the limit."""
        for folder in self._folder.glob("??"):
            sweep(folder)
        trim(self._folder, "??/*.safetensors", self._most_bytes)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict


def mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file, mapped into memory to be read only. safetensors
    itself maps a file so that it could be written to. Windows counts that as memory in use, and torch ends the process
    when there is none left. On other systems, mapping it like this would keep a file open for each mapping. Format:
    https://github.com/huggingface/safetensors#format

    Raises OSError if the file cannot be read, and ValueError, KeyError or RuntimeError if it is of another kind."""
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    metadata = header.pop("__metadata__", {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        content = torch.from_numpy(raw)[start:]
    return {name: content[slice(*entry["data_offsets"])].view(STORED[entry["dtype"]]).view(entry["shape"])
            for name, entry in header.items()}, metadata


def trim(folder: Path, pattern: str, most_bytes: int = MOST_BYTES) -> None:
    """Removes files and folders in `folder` that match `pattern`, those changed longest ago first, until the rest is
    within the limit."""
    with contextlib.suppress(OSError):
        found = sorted(((path, path.stat().st_mtime_ns, _size(path)) for path in folder.glob(pattern)),
                       key=lambda entry: entry[1])
        total = sum(size for *_, size in found)
        for path, _, size in found:
            if total <= most_bytes:
                break
            with contextlib.suppress(OSError):  # on Windows a file that a training has mapped cannot be removed
                remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)
                total -= size


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size
