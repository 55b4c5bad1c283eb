"""Reads captions from text files beside images, writes them there, fills templates and varies captions for training."""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from ...disk.files import keep_once, write_atomic
from ...disk.text import check_text
from ...recipe.choices import CaptionShuffle
from ..naming import Names
from ..pictures.listing import bases, has_extension
from . import brackets

PLACEHOLDERS = ("trigger", "caption", "name")
EXTENSIONS = (".txt", ".caption")
"""The extensions of caption files beside images. The first one is looked for first."""
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
                    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""The encoding of a file by the mark that it begins with. UTF-32 comes before UTF-16, because its mark begins with the
mark of UTF-16."""
MOST_BYTES = 2**20
"""The largest caption file that is read, in bytes. Larger files are no captions."""


class CaptionFiles:
    """Finds the caption files beside images. Each folder is listed once, so make a new one when files have changed."""

    def __init__(self, *extensions: str) -> None:
        """`extensions`: those of the files, with or without their dot, the best first. None: .txt, or else .caption."""
        self._extensions = tuple("." + extension.lstrip(".") for extension in extensions) or EXTENSIONS
        self._folders: dict[Path, tuple[list[str], Names]] = {}

    def of(self, image: Path) -> Path:
        """Returns the caption file of an image: the one that is there, or else the one to write.

        That of cat.png is cat.txt, or else cat.png.txt. Raises ValueError if several could be meant."""
        _, names = self._listed(image.parent)
        wanted = [base + extension for base in bases(image.name) for extension in self._extensions]
        return image.with_name(names.find(*wanted) or wanted[0])

    def unused(self, place: Path, used: Collection[Path]) -> list[str]:
        """Returns the names of the caption files in a folder that are not among those in use."""
        return [name for name in self._listed(place)[0] if place / name not in used and not name.startswith(".")]

    def _listed(self, place: Path) -> tuple[list[str], Names]:
        """Returns the caption files of a folder. One that is exactly an image's is no other image's."""
        if place not in self._folders:
            there = sorted(os.listdir(place)) if os.path.isdir(place) else []
            files = [name for name in there if name.lower().endswith(tuple(map(str.lower, self._extensions)))]
            taken = {base + extension for name in there if has_extension(name)
                     for base in bases(name) for extension in self._extensions}
            self._folders[place] = files, Names(files, taken)
        return self._folders[place]


def read(file: Path) -> str | None:
    """Returns the caption in a file with its line breaks, or None if there is no file. An empty file is an empty
    caption. Raises ValueError if the file cannot be read as text."""
    return read_text(file, MOST_BYTES).strip() if os.path.lexists(file) else None


def read_text(path: Path, most_bytes: int) -> str:
    """Returns the text of a file in UTF-8, or in the encoding that its byte order mark says. Its lines end in \\n.

    Raises ValueError that names the file if it cannot be read, is larger than `most_bytes`, or is not text."""
    try:
        if not path.is_file():  # a pipe is no file either, and reading it would wait for ever
            raise ValueError(f"{path.name} is no file. Take it away, or put a text file there.")
        if (size := path.stat().st_size) > most_bytes:
            raise ValueError(f"{path.name} has {size / 2**20:.1f} MB, too much for what it should hold (at most "
                             f"{most_bytes / 2**20:g} MB). Check that it is the right file.")
        data = path.read_bytes()
    except OSError as err:
        raise ValueError(f"{path.name} cannot be read ({err.strerror}). Check that you can open it.") from err
    return _decode(path.name, data)


def _decode(name: str, data: bytes) -> str:
    encoding = next((e for mark, e in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as err:
        what = "UTF-8" if encoding == "utf-8" else encoding.removesuffix("-sig").upper()
        raise ValueError(f"{name} is not {what} text (byte {err.start} is {data[err.start]:#04x}). Save it again with "
                         "the encoding UTF-8.") from err
    if "\0" in text:  # a picture, a program, or UTF-16 without its mark, whose ASCII letters pass for UTF-8
        raise ValueError(f"{name} is not UTF-8 text (character {text.index(chr(0))} is a zero). Save it again with the "
                         "encoding UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def one_line(text: str) -> str:
    """Returns a text as one line. Line breaks and any other white space become one space each."""
    return " ".join(text.split())


def write(file: Path, caption: str) -> None:
    """Writes a caption to its file. What was there before is kept once, with .bak added to its name. Raises ValueError
    if it cannot be written as text, and OSError if the disk does not take it; then what was there before is still
    there."""
    check_text(f"The caption for {file.name}", caption)
    keep_once(file)
    write_atomic(file, (caption + "\n").encode())


def check_template(template: str) -> None:
    """Raises ValueError if a template has unknown placeholders or half a character, or is empty."""
    check_text("The template", template)
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
    """Returns a template such as `photo of {trigger}, {caption}` with its placeholders filled.

    A trigger word that the caption already begins with is not repeated, so a template can be applied again. An empty
    placeholder leaves no stray commas. The brackets of the trigger word and of the name get backslashes."""
    if trigger and (begins := re.match(brackets.phrase(trigger), caption)):
        caption = caption[begins.end():].lstrip(" ,")
    words = brackets.escape(re.sub(r"[-_\s]+", " ", name).strip())
    filled = template.replace("{trigger}", brackets.escape(trigger)).replace("{caption}", caption)
    filled = filled.replace("{name}", words)
    parts = [" ".join(part.split()) for part in filled.split(",")]
    return ", ".join(part for part in parts if part)


def variants(caption: str, shuffle: CaptionShuffle, keep_tokens: int, count: int, draw: torch.Generator) -> list[str]:
    """Returns up to `count` captions with different orders of the tags (between commas) or sentences. The first one is
    the caption itself.

    The first `keep_tokens` tags or sentences stay in place. There are fewer variants if there are fewer orders."""
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
    """Returns the sentences of a caption. The last one gets a full stop if it lacks one, because another may follow it
    later."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+", caption.strip()) if part]
    return [part if part[-1] in ".!?" else part + "." for part in parts]


def with_class(caption: str, trigger_word: str, class_word: str) -> str:
    """Returns a caption with the trigger word, as a whole word in any case, replaced by the word for its class.

    Differential output preservation keeps the model's answer to this caption. Without a trigger word the caption is
    unchanged."""
    if not trigger_word:
        return caption
    return re.sub(brackets.phrase(trigger_word), lambda _: class_word, caption, flags=re.IGNORECASE)
