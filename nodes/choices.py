"""Checks the choices that a node is given, all of them, before it runs.

ComfyUI (0.20 to 0.30) checks a combo only if its value is written in the node and is no parameter of `validate_inputs`.
It does not check what comes over a link, and leaves a dynamic combo out whose value is no option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from comfy_api.latest import io

from ..trainer.data.naming import name_some
from ..trainer.recipe.config import renewed
from .guard import shown

NAMED = 20
"""The most options that a message names."""
CHECKED_ELSEWHERE = ("job",)
"""Combos whose options depend on who queued the prompt. `job_input.chosen` checks them."""


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Makes a node's `execute` raise ValueError for choices that are no options, before it does anything."""
    names = [*inspect.signature(execute).parameters][1:]

    @functools.wraps(execute)
    def checking(node: type[io.ComfyNode], *values: Any, **named: Any) -> io.NodeOutput:
        check(node, {**_written(node), **dict(zip(names, values, strict=False)), **named})
        return execute(node, *values, **named)

    return checking


def check(node: type[io.ComfyNode], given: Mapping[str, Any]) -> None:
    """Raises ValueError for every choice in `given` that is no option, and for every dynamic combo that must be there
    and is not."""
    schema, given = node.define_schema(), renewed(given)
    if schema.is_input_list:
        given = {name: next(iter(values), None) for name, values in given.items() if isinstance(values, (list, tuple))}
    if problems := [*_problems(schema.inputs, given)]:
        raise ValueError("\n".join(problems))


def check_left_out(node: type[io.ComfyNode], name: str, value: Any) -> None:
    """Raises ValueError if a dynamic combo is None in `validate_inputs`, which it is because its value is no option."""
    if value is None:
        [entry] = [entry for entry in node.define_schema().inputs if entry.id == name]
        raise ValueError(f"{name} must be one of {_options(entry)}. Choose one in the node: it cannot come over a "
                         "link.")


def _written(node: type[io.ComfyNode]) -> Mapping[str, Any]:
    """Returns a node's inputs as they are in the workflow, if the node asks for that. Only there is the value of a
    dynamic combo that ComfyUI left out."""
    about = node.hidden
    return about.prompt.get(about.unique_id, {}).get("inputs", {}) if about and about.prompt else {}


def _problems(inputs: Iterable[io.Input], given: Mapping[str, Any]) -> Iterator[str]:
    for entry in inputs:
        value = given.get(entry.id)
        if isinstance(entry, io.DynamicCombo.Input) and (entry.id in given or not entry.optional):
            inside = value if isinstance(value, Mapping) and entry.id in value else {entry.id: value}
            option = next((option for option in entry.options if option.key == inside[entry.id]), None)
            yield from _problems(option.inputs, inside) if option else [_sentence(entry, inside[entry.id])]
        elif isinstance(entry, io.Combo.Input) and entry.id in given and entry.id not in CHECKED_ELSEWHERE:
            if not (isinstance(value, str) and value in (entry.options or ())):
                yield _sentence(entry, value)


def _sentence(entry: io.Input, value: Any) -> str:
    return f"{entry.id} must be one of {_options(entry)}, got {shown(repr(value))}."


def _options(entry: Any) -> str:
    return name_some([getattr(option, "key", option) for option in entry.options], NAMED)
