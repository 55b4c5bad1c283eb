"""Captions: read from sibling text files, written to them, edited by a template, varied for training."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from ..config import CaptionShuffle
from ..files import write_atomic

PLACEHOLDERS = ("trigger", "caption", "name")


def caption_path(image: Path) -> Path:
    """`cat.png` → `cat.txt`."""
    return image.with_suffix(".txt")


def read(image: Path) -> str | None:
    """The caption beside an image, or None if there is none. An empty file is an empty caption.

    Raises ValueError if the file is not UTF-8 text."""
    path = caption_path(image)
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as err:
        raise ValueError(f"{path.name} is not UTF-8 text (byte {err.start} is {err.object[err.start]:#04x}). "
                         "Save it again with the encoding UTF-8.") from err


def write(image: Path, caption: str) -> None:
    """Writes the caption beside an image. What was there before is kept once, as `.txt.bak`."""
    path = caption_path(image)
    backup = path.with_suffix(".txt.bak")
    if path.exists() and not backup.exists():
        os.replace(path, backup)
    write_atomic(path, (caption + "\n").encode())


def check_template(template: str) -> None:
    """Raises ValueError for an unknown placeholder or a template that gives every image the same caption."""
    found = re.findall(r"{(.*?)}", template)
    unknown = sorted({*found} - {*PLACEHOLDERS})
    if unknown:
        raise ValueError(f"The template has unknown placeholders: {_braced(unknown)}. Known are "
                         f"{_braced(PLACEHOLDERS)}.")
    if not template.strip():
        raise ValueError("The template is empty. Write for example {trigger}, {caption}")


def _braced(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def apply_template(template: str, *, trigger: str, caption: str, name: str) -> str:
    """Fills a template such as `photo of {trigger}, {caption}`.

    A trigger word that the caption already begins with is not repeated, so a template can be applied again; what stands
    around an empty placeholder leaves no stray commas."""
    if trigger and re.match(rf"{re.escape(trigger)}(\W|$)", caption):
        caption = caption[len(trigger):].lstrip(" ,")
    words = re.sub(r"[-_\s]+", " ", name).strip()
    filled = template.replace("{trigger}", trigger).replace("{caption}", caption).replace("{name}", words)
    parts = [" ".join(part.split()) for part in filled.split(",")]
    return ", ".join(part for part in parts if part)


def variants(caption: str, shuffle: CaptionShuffle, keep_tokens: int, count: int, draw: torch.Generator) -> list[str]:
    """Up to `count` different orders of a caption's tags (between commas) or sentences, the caption itself first.

    The first `keep_tokens` of them stay in place. There are fewer variants if there are fewer orders."""
    if shuffle == "none":
        return [caption]
    parts = _tags(caption) if shuffle == "tags" else _sentences(caption)
    kept, movable = parts[:keep_tokens], parts[keep_tokens:]
    orders = {tuple(range(len(movable))): None}  # the caption's own
    while len(orders) < min(count, math.factorial(len(movable))):
        orders[tuple(torch.randperm(len(movable), generator=draw).tolist())] = None
    glue = ", " if shuffle == "tags" else " "
    shuffled = [glue.join([*kept, *(movable[i] for i in order)]) for order in [*orders][1:]]
    return [*dict.fromkeys([caption, *shuffled])]


def _tags(caption: str) -> list[str]:
    return [tag for part in caption.split(",") if (tag := part.strip())]


def _sentences(caption: str) -> list[str]:
    """A last one without a full stop gets one, since another may come to stand behind it."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+", caption.strip()) if part]
    return [part if part[-1] in ".!?" else part + "." for part in parts]


def with_class(caption: str, trigger_word: str, class_word: str) -> str:
    """A caption with the trigger word, as a whole word in any case, replaced by the word for its class.

    This is the caption whose answer differential output preservation keeps. Without the trigger it is unchanged."""
    if not trigger_word:
        return caption
    return re.sub(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", lambda _: class_word, caption, flags=re.IGNORECASE)
