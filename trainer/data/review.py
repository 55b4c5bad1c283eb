"""Edits captions in bulk: writes them as a table and reads it again, searches and replaces, keeps accepted images."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..disk.files import keep_once
from ..disk.text import check_text, counted
from ..recipe.blocks import problem_with_regex
from .captions import files as captions
from .captions import table
from .item import Dataset, check_editable, check_writable
from .naming import Names, name_some, named_in_table

CAPTION, ACCEPTED = "caption", "accepted"
"""The columns of a table besides file_name."""
YES, NO = ("yes", "true", "1", "1.0"), ("no", "false", "0", "0.0", "")
"""What a person or a spreadsheet writes into `accepted`."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Holds a dataset with what was taken from a table."""

    dataset: Dataset
    accepted: frozenset[Path] | None = None
    """The pictures whose row accepts them. None: all of them, because no table was read."""
    notes: tuple[str, ...] = ()
    """Sentences about rows without a picture and pictures without a row."""


def rows(dataset: Dataset, accepted: frozenset[Path] | None = None) -> dict[str, table.Row]:
    """Returns one row for each picture, by its name below the dataset's folder. A missing caption is empty.

    `accepted`: the pictures that are accepted. None: all of them."""
    first = {item.path: item for item in reversed(dataset.items)}
    return {name: {CAPTION: first[path].own_caption, ACCEPTED: "yes" if accepted is None or path in accepted else "no"}
            for path, name in dataset.names().items()}


def as_text(rows: Mapping[str, table.Row]) -> str:
    """Returns the rows as CSV, for other nodes."""
    out = io.StringIO(newline="")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow([table.KEY, CAPTION, ACCEPTED])
    lines.writerows([name, row[CAPTION], row[ACCEPTED]] for name, row in rows.items())
    return out.getvalue()


def write_table(path: Path, dataset: Dataset, accepted: frozenset[Path] | None = None) -> None:
    """Writes a .csv or .jsonl. What was there before is kept once, with .bak added to its name.

    Raises ValueError if it cannot be written."""
    try:
        keep_once(path)
        table.write(path, rows(dataset, accepted))
    except OSError as err:
        raise ValueError(f"The table '{path}' cannot be written ({err.strerror}). Choose a folder that is there and "
                         "that you may write to, and close the table in other programs.") from err


def read_table(path: Path, dataset: Dataset) -> Taken:
    """Returns the dataset with the captions of a table. Rows for pictures that are not in the dataset are passed over
    and named, and pictures without a row keep their captions.

    Raises ValueError if there is no such table, if it has no caption column, if no row fits, or if `accepted` is
    neither yes nor no."""
    if not os.path.isfile(path):
        raise ValueError(f"The table '{path}' does not exist. Write one first (action 'write table'), or correct its "
                         "name.")
    found = table.read(path)
    names = dataset.names()
    meant = _meant(path, found, names)
    here = {picture: meant[name] for picture, name in names.items() if name in meant}
    if not here:
        raise ValueError(f"{path.name} has {counted(len(found), 'row')}, and none is for an image in '{dataset.folder}'"
                         f": {name_some([*found]) or 'nothing'}. The images are {name_some([*names.values()])}.")
    if without := [names[picture] for picture, row in here.items() if CAPTION not in row]:
        raise ValueError(f"{path.name} has no {CAPTION} for {name_some(without)}. Each row needs one.")
    unknown = sorted({*found} - {row[table.KEY] for row in here.values()})
    rest = [name for picture, name in names.items() if picture not in here]
    notes = [f"{counted(len(unknown), 'row')} of {path.name} for images not in the dataset: {name_some(unknown)}"
             ] if unknown else []
    notes += [f"{counted(len(rest), 'image')} without a row in {path.name}, with captions as before: {name_some(rest)}"
              ] if rest else []
    return Taken(_with_rows(dataset, here), _accepted(path, here, names), tuple(notes))


def search_and_replace(dataset: Dataset, find: str, replacement: str, regular_expression: bool) -> Dataset:
    """Returns the dataset with each `find` in its captions replaced. Case counts. An empty `find` changes nothing.

    Regular expressions are Python's, with groups as \\1 in the replacement. They run on captions only. One that takes
    for ever (such as `(a+)+$`) cannot be stopped, so keep it simple. Raises ValueError if `find` is no regular
    expression, or if `replacement` does not fit it."""
    change = _replacer(find, replacement, regular_expression)
    return recaptioned(dataset, [change(item.own_caption) if item.own_caption else "" for item in dataset.items])


def only_accepted(dataset: Dataset, accepted: frozenset[Path], source: str) -> Dataset:
    """Returns the dataset with only the accepted pictures. `source`: the name of the table that accepts them.

    Raises ValueError if it accepts none."""
    kept = tuple(item for item in dataset.items if item.path in accepted)
    names = dataset.names()
    left_out = [name for picture, name in names.items() if picture not in accepted]
    if not kept:
        raise ValueError(f"{source} accepts no image of {len(names)}. Write yes into its column "
                         f"'{ACCEPTED}', or set use to 'all'.")
    images = counted(len(left_out), "image")
    reason = (f"{images} that {source} does not accept: {name_some(left_out)}",) if left_out else ()
    return replace(dataset, items=kept, skipped=(*dataset.skipped, *reason))


def recaptioned(dataset: Dataset, texts: Sequence[str]) -> Dataset:
    """Returns the same images with these captions. An empty one counts as missing.

    Raises ValueError if a caption to change was encoded already."""
    pairs = [*zip(dataset.items, texts, strict=True)]
    changed = [(item, text) for item, text in pairs if text != item.own_caption]
    check_editable(item for item, _ in changed)
    for item, text in changed:
        check_text(f"The caption for {item.path.name}", text)
    items = (item if text == item.own_caption else
             item.captioned(text if text.strip() else "", dataset.trigger_word) for item, text in pairs)
    return replace(dataset, items=tuple(items))


def write_captions(dataset: Dataset) -> int:
    """Writes the captions that differ from those beside the images. Returns how many it wrote. Raises ValueError as
    `check_writable` does."""
    check_writable(dataset.items)
    wanted = {item.caption_file: item.own_caption for item in reversed(dataset.items) if item.caption_file}
    differing = {file: text for file, text in wanted.items() if text and _on_disk(file) != captions.one_line(text)}
    for file, text in differing.items():
        captions.write(file, text)
    return len(differing)


def changes(before: Dataset, after: Dataset) -> list[str]:
    """Returns a line for each changed caption, before → after. Both datasets have the same images."""
    names = before.names()
    pairs = ((names[old.path], old.own_caption, new.own_caption)
             for old, new in zip(before.items, after.items, strict=True))
    return list(dict.fromkeys(f"{name}: “{old}” → “{new}”" for name, old, new in pairs if old != new))


def _meant(path: Path, found: Mapping[str, table.Row], names: Mapping[Path, str]) -> dict[str, table.Row]:
    """Returns the rows by the names of their pictures. Raises ValueError if two are for one picture."""
    pictures, meant = Names(names.values(), found), {}
    for name, row in found.items():
        picture = pictures.find(name, named_in_table(name))
        if picture in meant:
            raise ValueError(f"{path.name} has two rows for {picture}: {name_some([meant[picture][table.KEY], name])}. "
                             "Take one of them out.")
        if picture:
            meant[picture] = row
    return meant


def _with_rows(dataset: Dataset, here: Mapping[Path, table.Row]) -> Dataset:
    """Returns the dataset with the captions of the rows. An unchanged row changes nothing, so that an image with two
    captions in two subsets keeps both."""
    shown = {item.path: item.own_caption for item in reversed(dataset.items)}
    return recaptioned(dataset, [here[i.path][CAPTION] if i.path in here and here[i.path][CAPTION] != shown[i.path]
                                 else i.own_caption for i in dataset.items])


def _accepted(path: Path, here: Mapping[Path, table.Row], names: Mapping[Path, str]) -> frozenset[Path]:
    """Returns the pictures that the rows accept. A table without the column `accepted` accepts all of its rows."""
    said = {picture: row[ACCEPTED].strip().lower() for picture, row in here.items() if ACCEPTED in row}
    if wrong := [f"{names[picture]}: {word!r}" for picture, word in said.items() if word not in YES + NO]:
        raise ValueError(f"{path.name} has words in its column '{ACCEPTED}' that are neither yes nor no: "
                         f"{name_some(wrong)}. Write yes, true or 1, or no, false, 0 or nothing.")
    return frozenset(picture for picture in here if not said or said.get(picture) in YES)


def _replacer(find: str, replacement: str, regular_expression: bool) -> Callable[[str], str]:
    if not find:
        return lambda text: text
    if not regular_expression:
        return lambda text: text.replace(find, replacement)
    if problem := problem_with_regex(find):
        raise ValueError(f"find is no regular expression: {find!r} ({problem}). Correct it, or switch "
                         "regular_expression off to find the text itself.")
    pattern = re.compile(find)

    def change(text: str) -> str:
        try:
            return pattern.sub(replacement, text)
        except (re.error, IndexError) as err:
            raise ValueError(f"replace does not fit the regular expression {find!r}: {replacement!r} ({err}). Groups "
                             "are written \\1, a backslash \\\\.") from err

    return change


def _on_disk(file: Path) -> str | None:
    try:
        text = captions.read(file)
    except ValueError:  # it is not text, so it is replaced
        return None
    return None if text is None else captions.one_line(text)
