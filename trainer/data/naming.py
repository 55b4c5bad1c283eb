"""What files are called in messages, tables and reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .item import Dataset

NAMED = 5
"""How many files a message names."""


def name_some(names: Sequence[str]) -> str:
    """The first few of many names. What is no character, in a name that is not UTF-8, is written as its number."""
    some = (name.encode("utf-8", "backslashreplace").decode() for name in names[:NAMED])
    return ", ".join(some) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def file_names(dataset: Dataset) -> dict[Path, str]:
    """Each picture's path → its name, such as `10_cat/a.png`: below the dataset's folder; where it is no folder that
    holds them all (an archive, a configuration), below the folder that does; else the whole path."""
    paths = dict.fromkeys(item.path for item in dataset.items)
    home = _home(dataset.folder, list(paths))
    return {path: (path.relative_to(home) if home else path).as_posix() for path in paths}


def _home(folder: Path, paths: list[Path]) -> Path | None:
    if all(path.is_relative_to(folder) for path in paths):
        return folder
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # on two drives, or some absolute and some not
        return None
