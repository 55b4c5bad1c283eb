"""Reads captions from a table beside images: Hugging Face's `metadata.jsonl` and `metadata.csv`, or any other table."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from ..captions import table
from ..naming import name_some

NAMES = ("metadata.jsonl", "metadata.csv")


def beside(folder: Path) -> tuple[dict[Path, str], list[str]]:
    """Returns the captions that a folder's table gives to images, and sentences about it. Both are empty if there is no
    table."""
    there = [folder / name for name in NAMES if os.path.isfile(folder / name)]
    if not there:
        return {}, []
    captions, said = read(there[0])
    if there[1:]:
        said.append(f"'{there[1].name}' in '{folder.name}' is not read, because '{there[0].name}' is there too.")
    return captions, said


def read(path: Path) -> tuple[dict[Path, str], list[str]]:
    """Returns each file that a table names and that is there, with its caption or "", and a sentence about the others.

    Raises ValueError if the table cannot be read, has no column with captions, leads out of its folder, has rows for
    one file that differ, or names none that is there."""
    rows = table.read(path)
    column = next((c for c in table.TEXTS if any(c in row for row in rows.values())), None)
    if not column:
        has = sorted({c for row in rows.values() for c in row})
        raise ValueError(f"'{path}' has no column with captions (only {name_some(has) or 'empty rows'}). Put "
                         "them in a column called text.")
    folder = path.parent
    if outside := [name for name in rows if _inside(folder, name) is None]:
        raise ValueError(f"'{path}' names files outside its folder: {name_some(outside)}. Move them into it, and name "
                         "them from there, like train/cat.png.")
    found: dict[Path, str] = {}
    absent = []
    for name, row in rows.items():
        file = _there(folder, name)
        if not file:
            absent.append(name)
        elif file in found and found[file] != row.get(column, ""):
            raise ValueError(f"'{path}' has several rows for {file.name} that differ. Take all but one of them out.")
        else:
            found[file] = row.get(column, "").strip()
    if not found:
        raise ValueError(f"None of the {len(rows)} files that '{path}' names are there: {name_some(absent)}. Put them "
                         "beside it, or correct the names.")
    missing = f"{len(absent)} files that '{path.name}' names are not there: {name_some(absent)}."
    return found, [missing] if absent else []


def _inside(folder: Path, name: str) -> Path | None:
    """Returns the path that a name means, which is absolute or begins at `folder`. None: it lies outside `folder`."""
    home, place = os.path.abspath(folder), os.path.abspath(folder / name.strip().replace("\\", "/"))
    inside = os.path.normcase(place).startswith(os.path.normcase(os.path.join(home, "")))
    return folder / os.path.relpath(place, home) if inside else None


def _there(folder: Path, name: str) -> Path | None:
    """Returns the file of that name, also if another system wrote it with backslashes, or é as two characters. None: it
    is not there."""
    exact = folder / name
    if ".." not in exact.parts and not Path(name).is_absolute() and os.path.isfile(exact):
        return exact
    for form in ("NFC", "NFD"):
        file = _inside(folder, unicodedata.normalize(form, name))
        if file and os.path.isfile(file):  # unlike pathlib's, it is False for a name that no disk takes
            return file
    return None
