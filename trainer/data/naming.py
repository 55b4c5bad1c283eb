"""Writes the names of files into messages."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 5
"""The most files that a message names."""


def name_some(names: Sequence[str], most: int = NAMED) -> str:
    """Returns the first few of many names as text. A byte of a name that is not UTF-8 is written as its number."""
    some = (name.encode("utf-8", "backslashreplace").decode() for name in names[:most])
    return ", ".join(some) + (f" and {len(names) - most} more" if len(names) > most else "")
