"""Reads captions from a table beside images: Hugging Face's `metadata.jsonl` and `metadata.csv`, or any other table."""

from __future__ import annotations

import os
from pathlib import Path

from ...disk.text import counted
from ..captions import table
from ..naming import Files, Names, name_some, named_in_table, sentences
from ..pictures.listing import entries

NAMES = ("metadata.jsonl", "metadata.csv")
FOREIGN = "metadata.json"
TABLES = (*table.SUFFIXES, ".tsv", ".parquet")
"""The extensions of files that look like tables of captions."""


def beside(folder: Path) -> tuple[dict[Path, str], list[str]]:
    """Returns the captions that a folder's table gives to images, and sentences about it. Both are empty if there is no
    table."""
    names = Names(entry.name for entry in entries(folder) if entry.name.lower().startswith("metadata."))
    there = {name: found for name in (*NAMES, FOREIGN) if (found := names.find(name))}
    tables = [folder / there[name] for name in NAMES if name in there and os.path.isfile(folder / there[name])]
    captions, said = read(tables[0]) if tables else ({}, [])
    if tables[1:]:
        said.append(f"'{tables[1].name}' in '{folder.name}' is not read, because '{tables[0].name}' is there too.")
    if FOREIGN in there:
        said.append(f"'{there[FOREIGN]}' in '{folder.name}' is not read. If it is a list for sd-scripts, choose a "
                    f".toml that names it as metadata_file. If not, turn it into {NAMES[0]}, an object on each line.")
    others = [entry.name for entry in entries(folder) if entry.name not in there.values() and os.path.isfile(entry.path)
              and entry.name.lower().endswith(TABLES) and not entry.name.startswith(".")]
    return captions, said + sentences((others, "table", f"in '{folder.name}' not read",
                                       f" Save one as {NAMES[1]} if it holds the captions."))


def read(path: Path) -> tuple[dict[Path, str], list[str]]:
    """Returns each file that a table names and that is there, with its caption or "", and sentences about the others
    and about captions from several columns.

    Raises ValueError if the table cannot be read, has no column with captions, leads out of its folder, has rows for
    one file that differ, or names none that is there."""
    rows = table.read(path)
    columns = [c for c in table.TEXTS if any(c in row for row in rows.values())]
    if not columns:
        has = sorted({c for row in rows.values() for c in row})
        raise ValueError(f"'{path}' has no column with captions (only {name_some(has) or 'empty rows'}). Put "
                         "them in a column called text.")
    folder = path.parent
    if outside := [name for name in rows if _inside(folder, name) is None]:
        raise ValueError(f"'{path}' names files outside its folder: {name_some(outside)}. Move them into it, and name "
                         "them from there, like train/cat.png.")
    found: dict[Path, str] = {}
    absent, from_other, files = [], [], Files()
    for name, row in rows.items():
        caption, column = next(((text, c) for c in columns if (text := row.get(c, "").strip())), ("", columns[0]))
        file = _there(folder, name, files)
        if not file:
            absent.append(name)
        elif file in found and found[file] != caption:
            raise ValueError(f"'{path}' has several rows for {file.name} that differ. Take all but one of them out.")
        else:
            found[file] = caption
            from_other += [] if column == columns[0] else [name]
    if not found:
        raise ValueError(f"'{path}' names {counted(len(rows), 'file')}, and none is there: {name_some(absent)}. Put "
                         "them beside it, or correct the names.")
    return found, sentences(
        (absent, "file", f"named by '{path.name}' and not there", ""),
        (from_other, "image", f"with nothing in the column {columns[0]} of '{path.name}', captioned by "
         f"{' or '.join(columns[1:])}", ""))


def _inside(folder: Path, name: str) -> Path | None:
    """Returns the path that a name means, which is absolute or begins at `folder`. None: it lies outside `folder`."""
    home, place = os.path.abspath(folder), os.path.abspath(folder / named_in_table(name))
    inside = os.path.normcase(place).startswith(os.path.normcase(os.path.join(home, "")))
    return folder / os.path.relpath(place, home) if inside else None


def _there(folder: Path, name: str, files: Files) -> Path | None:
    """Returns the file of that name, also if another system wrote it with backslashes or in another writing. None: it
    is not there."""
    if ".." not in Path(name).parts and not Path(name).is_absolute() and (exact := files.find(folder, name)):
        return exact
    inside = _inside(folder, name)
    return files.find(folder, inside.relative_to(folder).as_posix()) if inside else None
