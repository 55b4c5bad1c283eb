"""Makes the inputs of LoRA Train that are settings of a recipe, as `TrainConfig` describes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any

from comfy_api.latest import io

from ..trainer.comfy.families import USUAL
from ..trainer.model.family import Preset
from ..trainer.recipe.config import TrainConfig, renewed
from ..trainer.recipe.settings import about, field_of

EVERYDAY = ("steps", "rank", "learning_rate")
"""The settings that a preset fills in."""
PLACED = (*EVERYDAY, "seed")
"""The settings that have a place of their own on the node."""
LAST_BEFORE_SHARING = "keep_states"
"""The last setting of 0.1. The input `sharing` comes after it and before the newer settings, and this order must stay,
because workflows store values by position."""


def everyday(preset: Preset) -> list[io.Input]:
    """Returns the inputs that a preset fills in, with its values."""
    return [_input(field_of(TrainConfig, name), getattr(preset, name)) for name in EVERYDAY]


def seed() -> io.Input:
    """Returns the seed's input. It keeps its value from run to run."""
    return _input(field_of(TrainConfig, "seed"), 0, control_after_generate=False)


def rare(*, newer: bool) -> Iterator[io.Input]:
    """Yields the inputs of all other settings: those of 0.1, or the `newer` ones. Each is optional, so that a graph
    saved before it existed still runs."""
    names = [field.name for field in fields(TrainConfig) if field.name not in PLACED]
    end = names.index(LAST_BEFORE_SHARING) + 1
    for name in names[end:] if newer else names[:end]:
        field = field_of(TrainConfig, name)
        yield _input(field, field.default, optional=True, advanced=True)


def check_setting(name: str, value: Any) -> None:
    """Raises ValueError if a recipe cannot have this value for a setting. Values of earlier versions are fine."""
    if problem := about(field_of(TrainConfig, name)).problem(name, renewed({name: value})[name]):
        raise ValueError(problem)


def in_group(title: str, only_with: tuple[str, tuple[str, ...]] = ("", ())) -> dict[str, Any]:
    """Returns what web/advanced.mjs reads about an input: the title under which it stands, and the choice, if any, with
    which it is shown."""
    return {"livelora": {"group": title, "only_with": only_with}}


def most(name: str) -> int:
    """Returns the largest whole number that a recipe can have for a setting."""
    return int(about(field_of(TrainConfig, name)).high)


def _input(field: Field[Any], default: Any, **options: Any) -> io.Input:
    known = about(field)
    options |= {"default": default, "tooltip": known.told.replace("{example}", USUAL.examples.get(field.name, ""))}
    if known.group:
        options["extra_dict"] = in_group(known.group, known.only_with)
    if known.choices:
        return io.Combo.Input(field.name, options=list(known.choices), **options)
    if isinstance(default, bool):
        return io.Boolean.Input(field.name, **options)
    if isinstance(default, int):
        return io.Int.Input(field.name, min=int(known.low), max=int(known.high), **options)
    if isinstance(default, float):
        return io.Float.Input(field.name, min=float(known.low), max=float(known.high), step=float(known.step),
                              round=False, **options)
    return io.String.Input(field.name, **options)
