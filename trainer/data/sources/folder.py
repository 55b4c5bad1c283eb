"""Finds which files of a dataset folder are images to train on, how often each comes, and how much it counts."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..captions import files as captions
from ..naming import name_some
from ..pictures import images, masks
from . import table as metadata
from .found import Found

WEIGHTS = "weights.json"
"""The name of a file with the weights of images, such as {"cat.png": 0.5}. It lies in a dataset folder or in one of its
subfolders."""
MOST_BYTES = 16 * 2**20
"""The largest weights file that is read, in bytes."""


def find(folder: Path) -> tuple[list[Found], list[str]]:
    """Returns the images of `folder` and of its `N_name` subfolders, by name, and sentences for the report about what
    is left out or differs.

    A `metadata.jsonl` or `metadata.csv` gives captions, also to images in other subfolders that it names. A mask
    picture is no image. Raises ValueError if there are no images, or if a folder, a table or a `weights.json` cannot be
    read."""
    check_folder(folder)
    rows, said = metadata.beside(folder)
    places, unread = _places(folder)
    for place in places:
        if place != folder and places[place]:
            own, about = metadata.beside(place)
            rows |= own
            said += about
    named = sorted({file.parent for file in rows} - {*places})
    said += [why for place, why in unread.items() if not any(place in (sub, *sub.parents) for sub in named)]
    pictures: dict[Path, list[Path]] = {}
    for place in (place for place, num_repeats in places.items() if num_repeats):
        pictures[place], left_out = list_pictures(place)
        said += left_out
    found = _entries(pictures | {place: _listed(place, rows) for place in named}, places)
    if not found:
        raise ValueError(" ".join([f"No images in '{folder}' {_what_else(folder)}. Choose a folder with .png, .jpg or "
                                   ".webp files.", *said]))
    found, about = _captioned(found, rows)
    return found, said + about + shared_captions(found)


def find_named(path: Path) -> tuple[list[Found], list[str]]:
    """Returns the images that a table names, folder by folder in the order of its rows, and sentences for the report
    about what is left out or differs.

    Raises ValueError if none is an image, or if a folder, the table or a `weights.json` cannot be read."""
    rows, said = metadata.read(path)
    found = _entries({place: _listed(place, rows) for place in dict.fromkeys(file.parent for file in rows)}, {})
    if not found:
        raise ValueError(f"None of the {len(rows)} files that '{path}' names are images: "
                         f"{name_some([file.name for file in rows])}.")
    found, about = _captioned(found, rows)
    return found, said + about + shared_captions(found)


def check_folder(folder: Path) -> None:
    """Raises ValueError if there is no such folder, or if its name is not Unicode, which no file could hold."""
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise ValueError(f"The dataset folder '{name_some([str(folder)])}' {what}. Choose a folder with .png, .jpg or "
                         ".webp files.")
    if not _is_unicode(str(folder)):
        raise ValueError(f"The name of the dataset folder '{name_some([str(folder)])}' is not UTF-8. Rename it.")


def list_pictures(place: Path) -> tuple[list[Path], list[str]]:
    """Returns the picture files of a folder, mask pictures too, by name, and sentences about those that are left out.

    Raises ValueError if the folder cannot be read."""
    names = [path.name for path in _listdir(place) if path.suffix.lower() in images.EXTENSIONS]
    seen = [name for name in names if not name.startswith(".")]
    hidden = [name for name in names if re.match(r"\.[^_]", name)]  # ._cat.png is no picture: macOS adds it
    odd = [name for name in seen if not _is_unicode(name)]
    broken = [name for name in seen if os.path.islink(place / name) and not os.path.exists(place / name)]
    left_out = f"pictures in '{place.name}' are left out, because"
    said = _sentences((hidden, f"{left_out} their names begin with a dot", ""),
                      (odd, f"{left_out} their names are not UTF-8", " Rename them."),
                      (broken, f"{left_out} they are links that lead nowhere", ""))
    return [place / name for name in seen if name not in odd and os.path.isfile(place / name)], said


def shared_captions(found: Sequence[Found]) -> list[str]:
    """Returns a sentence if several images take one text file as their caption."""
    files: dict[Path, list[str]] = {}
    for path, extension in {(f.path, f.caption_extension): None for f in found if f.caption is None}:
        files.setdefault(captions.caption_path(path, extension), []).append(path.name)
    shared = sorted(name for names in files.values() if len(names) > 1 for name in names)
    return _sentences((shared, "images share a caption file, because their names differ only behind the dot",
                       " Rename one of each if they show different things."))


def _entries(pictures: dict[Path, list[Path]], places: dict[Path, int]) -> list[Found]:
    """Returns the pictures of each folder that are no masks, with their weights and the repeats of their folder. Raises
    ValueError if weights cannot be used."""
    found: list[Found] = []
    problems: list[str] = []
    for place, these in pictures.items():
        chosen = with_masks(these)
        weights, wrong = _read_weights(place / WEIGHTS, [p.name for p in chosen])
        found += [Found(p, places.get(place, 1), weights.get(p.name, 1.0), own) for p, own in chosen.items()]
        problems += wrong
    if problems:
        raise ValueError("The weights of images cannot be used:\n" + "\n".join(problems))
    return found


def with_masks(pictures: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    """Returns the pictures that are no masks, each with its masks, the one to use first. Raises ValueError if a mask
    folder cannot be read."""
    try:
        beside = masks.beside(pictures)
    except OSError as err:
        raise ValueError(f"A mask folder beside '{pictures[0]}' cannot be read ({err.strerror}). Look at its "
                         "permissions.") from err
    no_images = {mask for masks in beside.values() for mask in masks}
    return {picture: own for picture, own in beside.items() if picture not in no_images}


def _captioned(found: Sequence[Found], rows: dict[Path, str]) -> tuple[list[Found], list[str]]:
    """Returns the images with the captions of tables, and sentences about where tables and text files differ. A row
    without a caption counts as no row."""
    given = [replace(entry, caption=rows.get(entry.path) or None) for entry in found]
    tables = {file.parent for file in rows}
    without = [entry.path.name for entry in given if entry.caption is None and entry.path.parent in tables]
    differ = [entry.path.name for entry in given if entry.caption is not None and _differs(entry.path, entry.caption)]
    others = [file.name for file in {*rows} - {entry.path for entry in found}]
    return given, _sentences(
        (differ, "images have another caption in their text file than in the table; the table's are used",
         " Take the table away to use the text files."),
        (without, "images have no caption in the table, so their text files are read", ""),
        (sorted(others), "files that the table names are not images to train on", ""))


def _sentences(*groups: tuple[Sequence[str], str, str]) -> list[str]:
    """Returns what is said of each group of files (names, what they are, what to do) that has any."""
    return [f"{len(names)} {what}: {name_some(names)}.{then}" for names, what, then in groups if names]


def _differs(image: Path, caption: str) -> bool:
    try:
        text = captions.read(image)
    except ValueError:  # the file is not used, so it need not be readable
        return False
    return bool(text) and captions.one_line(text) != captions.one_line(caption)


def _listed(place: Path, rows: dict[Path, str]) -> list[Path]:
    """Returns the pictures in `place` that a table names."""
    return [p for p in rows if p.parent == place and p.suffix.lower() in images.EXTENSIONS and _is_unicode(str(p))]


def _listdir(place: Path) -> list[Path]:
    try:
        os.stat(os.path.join(place, "."))  # a folder may list its files but not let them be opened
        return sorted(place.iterdir())
    except OSError as err:
        raise ValueError(f"The folder '{place}' cannot be read ({err.strerror}). Look at its permissions.") from err


def _is_unicode(name: str) -> bool:
    """Tells whether a name can be written to a file. Python has surrogates in place of bytes that are not UTF-8."""
    return not re.search("[\ud800-\udfff]", name)


def _what_else(folder: Path) -> str:
    others = [p.name for p in _listdir(folder)]
    return f"(0 of {len(others)} entries are images: {name_some(others)})" if others else "(it is empty)"


def _places(folder: Path) -> tuple[dict[Path, int], dict[Path, str]]:
    """Returns the folders to read with their repeats, which may be 0, and the reasons why others are not read."""
    places, unread = {folder: 1}, {}
    for sub in (p for p in _listdir(folder) if os.path.isdir(p) and not p.name.startswith(".")):
        name = name_some([sub.name])
        if not _is_unicode(sub.name):
            unread[sub] = f"folder '{name}': its name is not UTF-8. Rename it."
        elif match := re.match(r"(\d+)_", sub.name):
            places[sub] = int(match[1])
        elif sub.name.lower() not in masks.FOLDERS:
            unread[sub] = (f"folder '{name}': only subfolders named like 10_name (number of repeats, name) are read.")
    return places, unread


def _read_weights(path: Path, names: list[str]) -> tuple[dict[str, float], list[str]]:
    """Returns the weights that a file gives to the images beside it, and what is wrong with it. Both are empty if there
    is no file."""
    if not os.path.isfile(path):
        return {}, []
    try:
        given = json.loads(captions.read_text(path, MOST_BYTES), parse_int=float)
    except (ValueError, RecursionError) as err:  # JSONDecodeError is a ValueError
        return {}, [f"'{path}' is not JSON in UTF-8 ({err}). Write it like {{\"cat.png\": 0.5}}."]
    if not isinstance(given, dict):
        return {}, [f"'{path}' must be names with weights like {{\"cat.png\": 0.5}}, got {str(given)[:40]!r}."]
    problems, unknown = [], sorted({*given} - {*names})
    if unknown:
        problems.append(f"'{path}' names {len(unknown)} images that are not in its folder: {name_some(unknown)}. "
                        "Correct the names (with .png or .jpg), or take them out.")
    bad = [f"{name}: {value!r}" for name, value in given.items()
           if not isinstance(value, float) or not 0 <= value < math.inf]
    if bad:
        problems.append(f"'{path}' has weights that are not numbers of at least 0: {name_some(bad)}. 1 is usual.")
    return given, problems
