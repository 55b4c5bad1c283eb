"""Keeps what an engine has said until its run is over, so that a run that was cut short goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path

from .engine import Engine

KEPT_SECONDS = 30 * 24 * 3600
"""How long the file of a run that nobody goes on with is kept, in seconds (30 days)."""


class Journal:
    """Keeps a file with a line for each picture: its digest and the engine's words. Another engine, other settings or
    another seed have another file."""

    def __init__(self, folder: Path, engine: Engine, seed: int) -> None:
        key = hashlib.sha256(json.dumps([engine.name, engine.settings, engine.max_side, seed]).encode()).hexdigest()
        self._path = folder / f"{key[:32]}.jsonl"

    def read(self) -> dict[str, str]:
        """Returns the engine's words by the digest of the picture. A line that a crash cut off does not count."""
        said = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    digest, words = json.loads(line)
                    said[digest] = words
        return said

    def note(self, digest: str, words: str) -> None:
        """Adds a picture to the file. The line break comes first, to end a line that a crash cut off."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([digest, words]))

    def remove(self) -> None:
        """Removes the file of a run that is over. Files in which nothing was written for KEPT_SECONDS are
        removed as well."""
        self._path.unlink(missing_ok=True)
        for path in self._path.parent.glob("*.jsonl"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - KEPT_SECONDS:
                    path.unlink()
