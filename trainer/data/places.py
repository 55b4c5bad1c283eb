"""Knows the places that a dataset is read from, and tells whether something in them has changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .captions import table
from .naming import Names, named_in_table
from .pictures import masks
from .sources import choose
from .sources.table import NAMES

Reads = Callable[[str], bool]
"""(name of a subfolder) → whether it is read together with the folder that it lies in."""


def fingerprint(source: Path) -> str:
    """Returns a text that changes when a file appears, changes or goes in a place that a dataset is read from.

    Each such folder is listed a few times at most, and each of its files is asked once for its size and times. Other
    folders are not looked into, however many files lie there."""
    digest = hashlib.sha256()
    for place in sorted({source, *_elsewhere(source)}):
        for listing in _listings(str(place), _has_repeats, _has_masks):
            digest.update(listing.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _elsewhere(source: Path) -> Iterator[Path]:
    """Yields the folders that are read beside those that `_listings` finds by their names: what a table or a
    configuration names."""
    if os.path.isdir(source):
        with contextlib.suppress(OSError):
            listed = {source: os.listdir(source)}
            for place in (source / name for name in listed[source] if _has_repeats(name)):
                listed[place] = os.listdir(place) if os.path.isdir(place) else []
            for path in (place / name for place, names in listed.items() for name in names if name.lower() in NAMES):
                yield from _named(path) if os.path.isfile(path) else ()
    elif source.suffix.lower() in table.SUFFIXES:
        yield from _named(source)
    else:
        with contextlib.suppress(ValueError):
            yield from choose.folders(source)


def _named(path: Path) -> Iterator[Path]:
    """Yields the folders of the files that a table names."""
    with contextlib.suppress(ValueError, OSError):
        named = {named_in_table(name).rpartition("/")[0] for name in table.read(path)}
        below = {os.path.relpath(path.parent / folder, path.parent) for folder in named}
        listed: dict[Path, Names] = {}
        yield from (place for folder in below for place in _alike(path.parent, folder, listed))


def _alike(folder: Path, name: str, listed: dict[Path, Names]) -> list[Path]:
    """Returns the folders below a folder that have a name, in any writing of it. `listed` holds those that were listed
    before."""
    found = [folder]
    for part in Path(name).parts:
        for place in found:
            if place not in listed:
                listed[place] = Names(os.listdir(place))
        there = [place / other for place in found for other in listed[place].alike(part)]
        found = [place for place in there if os.path.isdir(place)]
    return found


def _listings(place: str, *reads: Reads) -> Iterator[str]:
    """Yields a line for a file, or the entries of a folder and of the subfolders that are read with it. `reads` says
    which these are, once for each further level."""
    folders, files = [], []
    try:
        if not os.path.isdir(place):
            yield _line(place, os.stat(place))
            return
        with os.scandir(place) as found:
            for entry in found:
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    files.append(_line(entry.name, entry.stat()) if entry.is_file() else entry.name)
    except (OSError, ValueError):
        yield f"{place} cannot be read"
        return
    yield "\0".join([place, *sorted(folders), "", *sorted(files)])
    for name in sorted(folders) if reads else ():
        if reads[0](name):
            yield from _listings(os.path.join(place, name), *reads[1:])


def _line(name: str, facts: os.stat_result) -> str:
    """Returns a file's name with its size and times. A file that was replaced by an older one has another time of
    change (except on Windows)."""
    return f"{name} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def _has_repeats(name: str) -> bool:
    return bool(re.match(r"\d+_", name)) or _has_masks(name)


def _has_masks(name: str) -> bool:
    return name.lower() in masks.FOLDERS
