"""Reads configuration files, YAML, JSON or TOML, and refuses those that would take their parsers long."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ...disk.packages import require
from ..captions.files import read_text
from ..parsing import parse, parse_json, parse_yaml

MOST_BYTES = 2**17
"""The largest file in YAML or TOML that is read. Their parsers take time that grows with the square of some texts."""
MOST_JSON_BYTES = 2**20
MOST_DOTS = 100
"""The most dots in a line. tomllib takes time that grows with the square of the dots in a name (3.11)."""


def load(path: Path) -> Any:
    """Returns what a file in YAML, or in JSON by its suffix, holds. Raises ValueError that names the file if it cannot
    be read or is too large."""
    is_json = path.suffix.lower() == ".json"
    text = read_text(path, MOST_JSON_BYTES if is_json else MOST_BYTES)
    try:
        return parse_json(text) if is_json else parse_yaml(text)
    except ValueError as err:
        kind = "JSON" if is_json else "YAML"
        raise ValueError(f"'{path}' cannot be read as {kind} ({err}). Mend it, if it is a configuration of "
                         "ai-toolkit.") from err


def load_toml(path: Path) -> dict[str, Any]:
    """Returns what a file in TOML holds. Raises ValueError that names the file if it cannot be read or is too large."""
    toml, text = _toml(), read_text(path, MOST_BYTES)
    for number, line in enumerate(text.split("\n"), 1):
        if (dots := line.count(".")) > MOST_DOTS:
            raise ValueError(f"'{path}', line {number} has {dots} dots, and no setting needs over {MOST_DOTS}. Correct "
                             "the line.")
    try:
        return parse(text, toml.loads)
    except ValueError as err:
        hint = " Write paths with /, or between apostrophes ('C:\\cats')." if "\\" in text else ""
        raise ValueError(f"'{path}' is not TOML: {err}.{hint}") from err


def _toml() -> ModuleType:
    if sys.version_info >= (3, 11):
        import tomllib
        return tomllib
    return require("tomli")
