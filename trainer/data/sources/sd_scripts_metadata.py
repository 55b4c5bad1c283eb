"""Reads the metadata files of sd-scripts, which hold the captions and tags of many images."""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...disk.text import check_text, counted
from ..captions import table
from ..captions.files import read_text
from ..naming import Files, name_some
from ..parsing import parse_json

LIKE = '{"cat.png": {"caption": "a cat"}}'
LINE = '{"image_path": "cat.png", "caption": "a cat"}'
TEXTS = ("caption", "tags")


def read(path: Path, folder: Path, settings: dict[str, Any]) -> dict[Path, str]:
    """Returns captions by image. The file is JSON such as {"cat.png": {"caption": "…", "tags": "…"}, …}, or JSONL with
    an `image_path` in each line. The names of images begin at `folder`. Raises ValueError that names the file if it
    cannot be read, names an image twice, or names images that are not there."""
    if not os.path.isfile(path):
        raise ValueError(f"The metadata_file '{path}' is no file. Correct its path.")
    try:
        return _captions([*_entries(path)], folder, settings)
    except ValueError as err:
        raise ValueError(f"The metadata_file '{path}' cannot be used: {err}") from err


def folders(path: Path, folder: Path) -> Iterator[Path]:
    """Yields the folders of the images that a metadata file names. Raises ValueError if it cannot be read."""
    files, one_of_each = Files(), {os.path.dirname(name): name for name, _ in _entries(path)}
    found = (_there(folder, name, files) for name in one_of_each.values())
    yield from (image.parent for image in found if image)


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the names of images with what is known of them."""
    text = read_text(path, table.MOST_BYTES)
    if path.suffix.lower() != ".jsonl":
        for name, entry in _object(text, "it", LIKE).items():
            if not isinstance(entry, dict):
                raise ValueError(f"it must be like {LIKE}, got {_shown({name: entry})}. Correct it, or take it out.")
            yield name, entry
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            entry = _object(line, f"line {number}", LINE)
            if not isinstance(name := entry.get("image_path"), str):
                raise ValueError(f"line {number} must be like {LINE}, got {_shown(entry)}.")
            yield name, entry


def _object(text: str, what: str, like: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as err:
        raise ValueError(f"{what} is not JSON like {like} ({err}).") from err
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be like {like}, got {_shown(found)}.")
    return found


def _captions(entries: list[tuple[str, dict[str, Any]]], folder: Path, settings: dict[str, Any]) -> dict[Path, str]:
    files, found, missing = Files(), {}, []
    for name, entry in entries:
        caption = _joined(name, entry, settings)
        check_text(name_some([name]), name + caption)
        file = _there(folder, name, files)
        if file is None:
            missing.append(name)
        elif found.setdefault(file, caption) != caption:
            raise ValueError(f"it has several captions for {name_some([file.name])}. Take all but one of them out.")
    if missing or not entries:
        what = f"it names {counted(len(missing), 'image')} not to be found in '{folder}': {name_some(missing)}"
        raise ValueError(f"{what if missing else 'it has no images'}. Write their names with .png or .jpg, relative to "
                         "image_dir.")
    return found


def _there(folder: Path, name: str, files: Files) -> Path | None:
    exact = os.path.join(folder, name)
    return Path(exact) if os.path.isfile(exact) else files.find(folder, name)


def _joined(name: str, entry: dict[str, Any], settings: dict[str, Any]) -> str:
    """Returns a caption with its tags behind it. With wildcards the tags stand behind each of its lines."""
    glue = settings.get("caption_separator", ",")
    caption, tags = ("" if entry.get(key) is None else entry[key] for key in TEXTS)
    if wrong := [text for text in (caption, tags) if not isinstance(text, str)]:
        raise ValueError(f"the captions and tags of {name_some([name])} must be text, got {_shown(wrong[0])}. Write it "
                         "in quotation marks.")
    if not settings.get("enable_wildcard", False):
        return glue.join(part for part in (caption, tags) if part)
    tags = tags.replace("\n", glue)
    lines = [line for line in caption.split("\n") if line.strip()]
    return "\n".join(glue.join((line, tags)) for line in lines) if tags else caption


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
