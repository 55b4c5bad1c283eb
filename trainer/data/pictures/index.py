"""Keeps on disk what is known of the pictures of a folder, so that a second start reads none of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...disk.files import write_atomic
from . import images
from .images import Facts

log = logging.getLogger(__name__)

VERSION = 1
"""The version of the files. Raise it when `images.examine` finds other facts in the same picture."""
MOST_THREADS = 16
"""The most threads at once. Each holds a decoded picture in memory."""


class Index:
    """Keeps one JSON file for each folder with pictures. If something goes wrong with it, that costs only time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def examine(self, paths: Sequence[Path], tell: Callable[[int, int], None]) -> list[Facts | ValueError]:
        """Returns the facts of each picture, or why it cannot be used, in the order of `paths`.

        A picture whose file still has the size and the times it had is not read again. `tell` is called with the number
        of pictures that are done and the number of all. If it raises, the work ends, and what is examined is kept."""
        stamps = {path: _stamp(path) for path in paths}
        remembered = {place: self._remembered(place) for place in {path.parent for path in stamps}}
        found: dict[Path, Facts | ValueError] = {}
        for path, stamp in stamps.items():
            if stamp and (entry := remembered[path.parent].get(path.name)) and entry["stamp"] == stamp:
                found[path] = _facts(entry["facts"])
        tell(len(found), len(stamps))
        new = [path for path in stamps if path not in found]
        try:
            for path, result in _each(new):
                found[path] = result
                tell(len(found), len(stamps))
        finally:
            for path in new:
                if isinstance(facts := found.get(path), Facts):
                    remembered[path.parent][path.name] = {"stamp": stamps[path], "facts": asdict(facts)}
            for place in {path.parent for path in new if isinstance(found.get(path), Facts)}:
                self._remember(place, remembered[place])
        return [found[path] for path in paths]

    def _file(self, place: Path) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(place.absolute())).hexdigest()[:32]}.json"

    def _remembered(self, place: Path) -> dict[str, Any]:
        """Returns the stamp and the facts of the pictures in a folder, by their names."""
        try:
            kept = json.loads(self._file(place).read_bytes())
            entries = kept["pictures"] if kept["version"] == VERSION else {}
            return {name: entry for name, entry in entries.items() if entry["stamp"] and _facts(entry["facts"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as err:
            log.warning("What is known of the pictures in %s cannot be read (%s) and is found anew", place, err)
            return {}

    def _remember(self, place: Path, entries: dict[str, Any]) -> None:
        """Writes what is known of the pictures in a folder, without those that are no longer there."""
        try:
            there = {*os.listdir(place)}
            kept = {name: entry for name, entry in entries.items() if name in there}
            content = {"version": VERSION, "folder": str(place.absolute()), "pictures": kept}
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file(place), json.dumps(content).encode())  # as ASCII: a name need not be UTF-8
        except OSError as err:
            log.warning("What is known of the pictures in %s cannot be kept (%s)", place, err)


def _each(paths: Sequence[Path]) -> Iterator[tuple[Path, Facts | ValueError]]:
    """Examines pictures in threads, and yields each as soon as it is done. Threads help because pillow lets others run
    while it decodes."""
    threads = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), "livelora-pictures")
    try:
        futures = {threads.submit(_examine, path): path for path in paths}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        threads.shutdown(cancel_futures=True)


def _examine(path: Path) -> Facts | ValueError:
    try:
        return images.examine(path)
    except ValueError as err:
        return err.with_traceback(None)  # the traceback's frames would keep the picture in memory


def _stamp(path: Path) -> list[int] | None:
    """Returns a file's size in bytes and its times in nanoseconds, which change with it; None if it is not there. A
    file that was replaced by an older one has another time of change (except on Windows)."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _facts(kept: dict[str, Any]) -> Facts:
    """Returns the facts that were kept as JSON. Raises TypeError if they are not those that `Facts` has."""
    return Facts(**{**kept, "size": tuple(kept["size"])})
