"""Compares the names of files, takes them as people paste them, and writes them into messages."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from ..disk.text import counted

NAMED = 5
"""The most files that a message names."""
LONGEST = 200
"""The most letters of a name that a message shows."""
UNSEEN = ("\ufeff\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068"
          "\u2069")
"""Characters that nobody sees. Windows puts U+202A in front of a path that is copied from a file's properties."""
QUOTES = ("''", "“”", "‘’", "„“", "„”", "””", "«»", "»«", "‹›", "``")


def name_some(names: Sequence[str], most: int = NAMED) -> str:
    """Returns the first few of many names as text. A byte of a name that is not UTF-8 is written as its number, and the
    middle of a very long name is left out."""
    some = (name.encode("utf-8", "backslashreplace").decode() for name in names[:most])
    some = (name if len(name) <= LONGEST else f"{name[:LONGEST // 2]}…{name[-LONGEST // 2:]}" for name in some)
    return ", ".join(some) + (f" and {len(names) - most} more" if len(names) > most else "")


def sentences(*groups: tuple[Sequence[str], str, str, str]) -> list[str]:
    """Returns what is said of each group of files (names, a noun for one, what is with them, what to do) that has any.
    What is said has no verb that one and many differ in."""
    return [f"{counted(len(names), noun)} {what}: {name_some(names)}.{then}" for names, noun, what, then in groups
            if names]


def key(name: str) -> str:
    """Returns what is the same for names that one system or another takes for one: they differ only in upper and lower
    case, or in whether é is one character or two.

    Canonical caseless matching, Unicode Standard, section 3.13, D145."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


class Names:
    """Finds a name among those that are there: itself, or else one that differs from it only as `key` says."""

    def __init__(self, there: Iterable[str], taken: Collection[str] = frozenset()) -> None:
        """`taken`: names that are looked for exactly so by somebody. They are found by no other name."""
        self._there, self._taken = {*there}, taken

    def find(self, *wanted: str) -> str | None:
        """Returns the first of `wanted` that is there, or else the first that is there in another writing, or None.

        Raises ValueError if several could be meant."""
        if exact := next((name for name in wanted if name in self._there), None):
            return exact
        for name in wanted:
            if len(found := self.alike(name)) > 1:
                raise ValueError(f"There is no {name_some([name])}, but {name_some(found)}, and nothing says which of "
                                 "them is meant. Take away or rename all but one.")
            if found:
                return found[0]
        return None

    def alike(self, name: str) -> list[str]:
        """Returns the name itself, if it is there, and then all that are there in another writing."""
        others = sorted(other for other in self._alike.get(key(name), ()) if other not in self._taken and other != name)
        return [name, *others] if name in self._there else others

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        alike: dict[str, list[str]] = {}
        for name in self._there:
            alike.setdefault(key(name), []).append(name)
        return alike


class Files:
    """Finds files below a folder, each part of their path as `Names` finds it. It lists each folder once."""

    def __init__(self) -> None:
        self._folders: dict[Path, Names] = {}

    def find(self, folder: Path, name: str) -> Path | None:
        """Returns the file, or None if it is not there. Raises ValueError if several could be meant."""
        for part in Path(name).parts:
            if folder not in self._folders:
                self._folders[folder] = Names(os.listdir(folder) if os.path.isdir(folder) else ())
            if not (found := self._folders[folder].find(part)):
                return None
            folder /= found
        return folder if os.path.isfile(folder) else None


def pasted(text: str) -> str:
    """Returns a path as it is meant: without the spaces, unseen characters and quotation marks around it that come
    along when it is copied, without the backslashes of a shell, and not as an address, file:///cats."""
    while (bare := _bare(text)) != text:
        text = bare
    if text.lower().startswith("file:///"):
        return _of_address(text[len("file://"):])
    return re.sub(r"\\([^\w\\])", r"\1", text) if text.startswith(("/", "~")) else text


def named_in_table(text: str) -> str:
    """Returns the name of a file as it is meant in a table, with / between folders."""
    return pasted(text).replace("\\", "/")


def _of_address(text: str) -> str:
    """Returns a path as it was before a browser wrote %20 for a space, and a slash before a drive."""
    path = re.sub(rb"%([\da-fA-F]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode(errors="replace"))
    return re.sub(r"^/(?=[A-Za-z]:)", "", path.decode(errors="replace"))


def _bare(text: str) -> str:
    text = text.strip().strip(UNSEEN).strip('"')  # no path on Windows has a " in it
    return text[1:-1] if len(text) > 1 and text[0] + text[-1] in QUOTES else text
