"""Reads configuration files, YAML, JSON or TOML, and refuses those that would take their parsers long."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from ...disk.packages import require
from ..captions.files import read_text

MOST_BYTES = 2**17
"""The largest file in YAML or TOML that is read. Their parsers take time that grows with the square of some texts."""
MOST_JSON_BYTES = 2**20
MOST_NODES = 100_000
"""The most values in a file, each counted as often as YAML's aliases repeat it."""
MOST_DOTS = 100
"""The most dots in a line. tomllib takes time that grows with the square of the dots in a name (3.11)."""


def load(path: Path) -> Any:
    """Returns what a file in YAML, or in JSON by its suffix, holds. Raises ValueError that names the file if it cannot
    be read or is too large."""
    is_json = path.suffix.lower() == ".json"
    text = read_text(path, MOST_JSON_BYTES if is_json else MOST_BYTES)
    try:
        if is_json:
            return json.loads(text)
        if (tree := yaml.compose(text, Loader=yaml.SafeLoader)) and _count(tree, {}) > MOST_NODES:
            raise ValueError(f"its aliases stand for more than {MOST_NODES} values")
        return yaml.SafeLoader("").construct_document(tree) if tree else None  # safe_load would parse it once more
    except RecursionError as err:
        raise ValueError(f"'{path}' is nested too deep. Is it a configuration of ai-toolkit?") from err
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as err:
        kind = "JSON" if is_json else "YAML"
        raise ValueError(f"'{path}' cannot be read as {kind} ({' '.join(str(err).split())[:300]}). Mend it.") from err


def _count(node: yaml.Node, known: dict[int, float]) -> float:
    """Returns how many values a tree would have with its aliases written out, without writing them out. A tree that
    holds itself has endlessly many."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = (part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def load_toml(path: Path) -> dict[str, Any]:
    """Returns what a file in TOML holds. Raises ValueError that names the file if it cannot be read or is too large."""
    toml, text = _toml(), read_text(path, MOST_BYTES)
    for number, line in enumerate(text.split("\n"), 1):
        if (dots := line.count(".")) > MOST_DOTS:
            raise ValueError(f"'{path}', line {number} has {dots} dots, and no setting needs over {MOST_DOTS}. Correct "
                             "the line.")
    try:
        return toml.loads(text)
    except (ValueError, RecursionError) as err:  # TOMLDecodeError is a ValueError, and so is a number that is too long
        hint = " Write paths with /, or between apostrophes ('C:\\cats')." if "\\" in text else ""
        raise ValueError(f"'{path}' is not TOML: {err}.{hint}") from err


def _toml() -> ModuleType:
    if sys.version_info >= (3, 11):
        import tomllib
        return tomllib
    return require("tomli")
