"""Finds which files of a dataset folder are images to train on, how often each comes, and how much it counts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...disk.text import counted, is_unicode
from ..captions import files as captions
from ..captions.files import CaptionFiles
from ..naming import Files, Names, name_some, sentences
from ..parsing import parse_json
from ..pictures import masks
from ..pictures.listing import entries, list_pictures
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
    named = {file.parent for file in rows} - {*places}
    above = {place for sub in named for place in (sub, *sub.parents)}
    said += [why for place, why in unread.items() if place not in above]
    found, left_out = _entries({p: n for p, n in places.items() if n} | dict.fromkeys(sorted(named), 1), rows, named)
    if not found:
        raise ValueError(" ".join([f"No images in '{folder}' {_what_else(folder)}. Choose a folder with .png, .jpg or "
                                   ".webp files.", *said, *left_out]))
    found, about = _captioned(found, rows)
    return found, said + about + left_out


def find_named(path: Path) -> tuple[list[Found], list[str]]:
    """Returns the images that a table names, folder by folder in the order of its rows, and sentences for the report
    about what is left out or differs.

    Raises ValueError if none is an image, or if a folder, the table or a `weights.json` cannot be read."""
    rows, said = metadata.read(path)
    places = dict.fromkeys((file.parent for file in rows), 1)
    found, left_out = _entries(places, rows, places)
    if not found:
        raise ValueError(f"'{path}' names {counted(len(rows), 'file')}, and none is an image: "
                         f"{name_some([file.name for file in rows])}.")
    found, about = _captioned(found, rows)
    return found, said + about + left_out


def check_folder(folder: Path) -> None:
    """Raises ValueError if there is no such folder, or if its name is not Unicode, which no file could hold."""
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise ValueError(f"The dataset folder '{name_some([str(folder)])}' {what}. Choose a folder with .png, .jpg or "
                         ".webp files.")
    if not is_unicode(str(folder)):
        raise ValueError(f"The name of the dataset folder '{name_some([str(folder)])}' is not UTF-8. Rename it.")


def shared_captions(found: Sequence[Found]) -> list[str]:
    """Returns a sentence if several images take one text file as their caption."""
    users: dict[Path | None, set[str]] = {}
    for entry in (entry for entry in found if entry.caption is None):
        users.setdefault(entry.caption_file, set()).add(entry.path.name)
    shared = sorted(name for names in users.values() if len(names) > 1 for name in names)
    return sentences((shared, "image", "that share a caption file, because their names differ only behind the dot",
                      " Rename one of each if they show different things."))


def unused_captions(used: Mapping[Path, Path], files: CaptionFiles, more: Iterable[Path] = ()) -> list[str]:
    """Returns a sentence about the caption files beside images, or in `more` folders, that are no image's. `used`: the
    file of each image."""
    taken, places = {*used.values()}, dict.fromkeys([*more, *(image.parent for image in used)])
    return sentences(([name for place in places for name in files.unused(place, taken)],
                      "caption file", "not read, because no image has that name or another file goes before", ""))


def _entries(places: Mapping[Path, int], rows: Mapping[Path, str], named: Collection[Path]) -> tuple[list[Found],
                                                                                                    list[str]]:
    """Returns the images of folders, each with the repeats of its folder, and sentences about what is left out.

    `rows`: the captions that tables give. `named`: the folders of which only the pictures in `rows` are trained, in
    their order. Raises ValueError if weights cannot be used."""
    found, said, problems, files = [], [], [], CaptionFiles()
    beside: dict[Path, Path] = {}
    ordered: dict[Path, list[Path]] = {}
    for file in rows:
        ordered.setdefault(file.parent, []).append(file)
    for place, num_repeats in places.items():
        pictures, left_out = list_pictures(place)
        chosen, about_masks = with_masks(place, pictures)
        weights, wrong = _read_weights(place, [p.name for p in chosen])
        beside |= {picture: files.of(picture) for picture in chosen}
        wanted = [picture for picture in ordered[place] if picture in chosen] if place in named else chosen
        found += [Found(p, num_repeats, weights.get(p.name, 1.0), chosen[p], caption_file=beside[p]) for p in wanted]
        unnamed = sorted(p.name for p in {*chosen} - {*wanted})
        said += left_out + about_masks + sentences(
            (unnamed, "picture", f"in '{place.name}' left out, which the table does not name", ""))
        problems += wrong
    if problems:
        raise ValueError("The weights of images cannot be used:\n" + "\n".join(problems))
    return found, said + unused_captions(beside, files, places)


def with_masks(place: Path, pictures: Sequence[Path]) -> tuple[masks.Found, list[str]]:
    """Returns the pictures of a folder that are no masks, each with its masks, and sentences about masks that are left
    out. Raises ValueError as `masks.beside` does."""
    beside, said = masks.beside(place, pictures)
    no_images = {mask for masks in beside.values() for mask in masks}
    return {picture: own for picture, own in beside.items() if picture not in no_images}, said


def _captioned(found: Sequence[Found], rows: Mapping[Path, str]) -> tuple[list[Found], list[str]]:
    """Returns the images with the captions of tables, and sentences about where tables and text files differ. A row
    without a caption counts as no row."""
    given = [replace(entry, caption=rows.get(entry.path) or None) for entry in found]
    tables = {file.parent for file in rows}
    without = [entry.path.name for entry in given if entry.caption is None and entry.path.parent in tables]
    differ = [entry.path.name for entry in given if entry.caption is not None and _differs(entry)]
    others = [file.name for file in {*rows} - {entry.path for entry in found}]
    said = sentences(
        (differ, "image", "with another caption in a text file than in the table; the table's is used",
         " Take the table away to use the text files."),
        (without, "image", "with no caption in the table, captioned by a text file", ""),
        (sorted(others), "file", "named by the table that cannot be trained on", "")) + shared_captions(given)
    return [entry if entry.caption is None else replace(entry, caption_file=None) for entry in given], said


def _differs(entry: Found) -> bool:
    """Tells whether an image has another caption in its file than in the table."""
    try:
        text = captions.read(entry.caption_file) if entry.caption_file else None
    except ValueError:  # the file is not used, so it need not be readable
        return False
    return bool(text) and captions.one_line(text) != captions.one_line(entry.caption or "")


def _what_else(folder: Path) -> str:
    others = [entry.name for entry in entries(folder)]
    return f"(it holds no image, but {name_some(others)})" if others else "(it is empty)"


def _places(folder: Path) -> tuple[dict[Path, int], dict[Path, str]]:
    """Returns the folders to read with their repeats, which may be 0, and the reasons why others are not read."""
    places, unread = {folder: 1}, {}
    for sub in subfolders(folder):
        name = name_some([sub.name])
        if not is_unicode(sub.name):
            unread[sub] = f"folder '{name}': its name is not UTF-8. Rename it."
        elif match := re.match(r"(\d+)_", sub.name):
            places[sub] = int(match[1])
            if not places[sub]:
                unread[sub] = f"folder '{name}': its pictures are left out, because its name says 0 times."
            unread |= {deep: f"folder '{name}/{name_some([deep.name])}': subfolders of '{name}' are not read."
                       for deep in (subfolders(sub) if places[sub] else [])}
        else:
            unread[sub] = f"folder '{name}': only subfolders named like 10_name (number of repeats, name) are read."
    return places, unread


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder that can hold images."""
    return [folder / entry.name for entry in entries(folder) if not entry.is_file(follow_symlinks=False)
            and not entry.name.startswith(".") and entry.name.lower() not in masks.FOLDERS
            and os.path.isdir(entry.path)]


def _read_weights(place: Path, pictures: list[str]) -> tuple[dict[str, float], list[str]]:
    """Returns the weights that a folder's file gives to its images, and what is wrong with it. Both are empty if there
    is no file."""
    try:
        path = Files().find(place, WEIGHTS)
    except ValueError as err:
        return {}, [f"'{place}': {err}"]
    if not path:
        return {}, []
    try:
        given = parse_json(captions.read_text(path, MOST_BYTES), parse_int=float)
    except ValueError as err:
        return {}, [f"'{path}' is not JSON in UTF-8 ({err}). Write it like {{\"cat.png\": 0.5}}."]
    if not isinstance(given, dict):
        return {}, [f"'{path}' must be names with weights like {{\"cat.png\": 0.5}}, got {str(given)[:40]!r}."]
    weights, unknown, problems, names = {}, [], [], Names(pictures, given)
    for name, value in given.items():
        try:
            picture = names.find(name)
            if picture in weights:
                problems.append(f"'{path}' names {picture} twice. Take one of its names out.")
            elif picture:
                weights[picture] = value
            else:
                unknown.append(name)
        except ValueError as err:
            problems.append(f"'{path}': {err}")
    if unknown:
        problems.append(f"'{path}' names {counted(len(unknown), 'image')} not to be found in its folder: "
                        f"{name_some(sorted(unknown))}. Correct the names (with .png or .jpg), or take them out.")
    bad = [f"{name}: {value!r}" for name, value in given.items()
           if not isinstance(value, float) or not 0 <= value < math.inf]
    if bad:
        problems.append(f"'{path}' has weights that are not numbers of at least 0: {name_some(bad)}. 1 is usual.")
    return weights, problems
