"""Which files of a dataset folder are images to train on, how often each comes, and how much it counts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import images, masks

WEIGHTS = "weights.json"
"""A file in a dataset folder or in one of its subfolders, such as {"cat.png": 0.5}."""
NAMED = 5
"""How many files a message names."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image file, not opened yet."""

    path: Path
    num_repeats: int
    weight: float
    """Factor on its loss."""
    masks: tuple[Path, ...]
    """Mask pictures beside it, the one to use first."""


def name_some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def find(folder: Path) -> tuple[list[Found], list[str]]:
    """The images of `folder` and of its `N_name` subfolders, by name, and what was passed over.

    A mask picture is no image. Raises ValueError if there are no images, or if a `weights.json` cannot be used."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"The dataset folder '{folder}' {what}. Choose a folder with .png, .jpg or .webp files.")
    places, unread = _places(folder)
    found, problems = [], []
    for place, num_repeats in places:
        pictures = [p for p in sorted(place.iterdir()) if p.suffix.lower() in images.EXTENSIONS and p.is_file()]
        beside = masks.beside(pictures)
        no_images = {mask for those in beside.values() for mask in those}
        chosen = [p for p in pictures if p not in no_images]
        weights, wrong = _read_weights(place / WEIGHTS, [p.name for p in chosen])
        found += [Found(p, num_repeats, weights.get(p.name, 1.0), beside[p]) for p in chosen]
        problems += wrong
    if problems:
        raise ValueError("The weights of images cannot be used:\n" + "\n".join(problems))
    if not found:
        others = sorted(p.name for p in folder.iterdir())
        listed = f"(0 of {len(others)} entries are images: {name_some(others)})" if others else "(it is empty)"
        raise ValueError(f"No images in '{folder}' {listed}. Choose a folder with .png, .jpg or .webp files.")
    return found, unread


def _places(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """Folders to read with their repeats, and why others are not read."""
    places, unread = [(folder, 1)], []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if match := re.match(r"(\d+)_", sub.name):
            places.append((sub, int(match[1])))
        else:
            unread.append(f"folder '{sub.name}': only subfolders named like 10_name (number of repeats, name) are "
                          "read.")
    return [(place, num_repeats) for place, num_repeats in places if num_repeats > 0], unread


def _read_weights(path: Path, names: list[str]) -> tuple[dict[str, float], list[str]]:
    """The weights that a file gives to the images beside it, and what is wrong with it. No file: none, nothing."""
    if not path.is_file():
        return {}, []
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=float)
    except ValueError as err:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
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
