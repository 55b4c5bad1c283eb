"""Reads a dataset from any source: a folder, a zip of one, a table, or another trainer's dataset configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...disk.text import is_unicode
from ..captions import table
from ..naming import name_some
from . import ai_toolkit, archive, sd_scripts
from . import folder as find
from .found import Found

CONFIGURATIONS = (".yaml", ".yml", ".json")
"""The suffixes of ai-toolkit's configurations."""


def find_any(source: Path, scratch: Path) -> tuple[list[Found], list[str]]:
    """Returns the images of a dataset, and sentences about what is passed over or not followed.

    `scratch`: where a zip is unpacked. Raises ValueError that says what is wrong and what to do."""
    kind = _kind(source)
    if kind == ".zip":
        folder = archive.unpack(source, scratch)
        with archive.naming(source, folder) as named:
            found, said = find.find(folder)
            return found, [named(sentence) for sentence in archive.passed_over(folder) + said]
    if kind == ".toml":
        return sd_scripts.read_toml(source)
    if kind in CONFIGURATIONS:
        return ai_toolkit.read_config(source)
    return find.find_named(source) if kind in table.SUFFIXES else find.find(source)


def folders(source: Path) -> Iterator[Path]:
    """Yields the folders and files that a configuration is read from. Raises ValueError if that cannot be known."""
    if (kind := _kind(source)) == ".toml":
        yield from sd_scripts.folders(source)
    elif kind in CONFIGURATIONS:
        yield from ai_toolkit.folders(source)


def check(source: Path) -> None:
    """Raises ValueError if a dataset cannot be read. Unpacks no zip and opens no picture."""
    if _kind(source) == ".zip":
        archive.check(source)
    else:
        find_any(source, source)  # it is no zip, so nothing is unpacked


def _kind(source: Path) -> str:
    """Returns the suffix of a dataset file in lower case, or "" for a folder. Raises ValueError for any other file, and
    for a dataset file that is not there."""
    if os.path.isdir(source):
        return ""
    kind, name = source.suffix.lower(), name_some([str(source)])
    known = (".zip", ".toml", *CONFIGURATIONS, *table.SUFFIXES)
    if kind in known and not os.path.isfile(source):
        raise ValueError(f"The dataset '{name}' does not exist. Choose a file or a folder that does.")
    if kind in known and not is_unicode(str(source)):
        raise ValueError(f"The path of the dataset '{name}' is not UTF-8. Rename what has no such name.")
    if kind not in known and os.path.exists(source):
        raise ValueError(f"The dataset '{name}' is a file. Choose a folder with .png, .jpg or .webp files, a zip of "
                         "one, or a dataset file: .toml (sd-scripts), .yaml or .json (ai-toolkit), .csv or .jsonl.")
    return kind if kind in known else ""
