"""Parses the JSON, TOML and YAML that people and programs write, and says in plain words what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import yaml

from .naming import name_some

LARGEST = 2**63
"""What whole numbers must stay below. TOML allows no larger ones, and Python writes none of more than 4300 digits."""
MOST_NODES = 100_000
"""The most values in a YAML text, each counted as often as aliases repeat it."""
TOO_LARGE = "it has a whole number of more than 18 digits"


def parse(text: str, read: Callable[[str], Any]) -> Any:
    """Returns what a text holds, as `read` says. Raises ValueError with what is wrong with it."""
    try:
        value = read(text)
    except RecursionError as err:
        raise ValueError("it is nested too deep") from err
    except Exception as err:  # yaml raises nearly every kind of error for a broken file
        what = TOO_LARGE if "set_int_max_str_digits" in str(err) else str(err) or type(err).__name__
        raise ValueError(" ".join(what.split())[:300]) from err
    if any(isinstance(part, int) and abs(part) >= LARGEST for part in _parts(value)):
        raise ValueError(TOO_LARGE)
    return value


def parse_json(text: str, **options: Any) -> Any:
    """Returns what a JSON text holds. Raises ValueError with what is wrong with it, also if an object has two different
    values for one name, of which Python would take the last. `options`: those of `json.loads`."""
    return parse(text, partial(json.loads, object_pairs_hook=_object, **options))


def parse_yaml(text: str) -> Any:
    """Returns what a YAML text holds. Raises ValueError with what is wrong with it, also if its aliases stand for too
    many values."""
    return parse(text, _yaml)


def _yaml(text: str) -> Any:
    if (tree := yaml.compose(text, Loader=yaml.SafeLoader)) and _count(tree, {}) > MOST_NODES:
        raise ValueError(f"its aliases stand for more than {MOST_NODES} values")
    return yaml.SafeLoader("").construct_document(tree) if tree else None  # safe_load would parse it once more


def _count(node: yaml.Node, known: dict[int, float]) -> float:
    """Returns how many values a tree would have with its aliases written out, without writing them out. A tree that
    holds itself has endlessly many."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = (part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given and given[name] != value:
            raise ValueError(f"{name_some([name])} stands in it twice, with different values; take one out")
        given[name] = value
    return given


def _parts(value: Any) -> Iterator[Any]:
    """Yields the values that a value is made of."""
    left = [value]
    while left:
        part = left.pop()
        yield part
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
