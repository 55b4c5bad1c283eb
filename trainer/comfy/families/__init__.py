"""Lists the model families that can be trained. Each has a file of its own."""

from __future__ import annotations

from typing import Any

from ...model.family import Family
from .flux1 import FLUX1

FAMILIES: tuple[Family, ...] = (FLUX1,)
USUAL = FAMILIES[0]
"""The family whose presets and examples are shown before a model is wired in."""


def names() -> str:
    """Returns the names of all families, to be used in a sentence."""
    return " or ".join(family.name for family in FAMILIES)


def family_of_model(base: Any) -> Family:
    """Returns the family of a BaseModel. Raises ValueError if it is of none."""
    family = next((family for family in FAMILIES if family.accepts(base)), None)
    if family is None:
        kind = getattr(getattr(base, "model_type", None), "name", "unknown")
        raise ValueError(f"model: LoRA Train trains {names()} models, this one is {type(base).__name__} ({kind}). Load "
                         f"a {names()} model, for example {USUAL.examples['model']}, with Load Diffusion Model.")
    return family


def family_of(model: Any, clip: Any, vae: Any) -> Family:
    """Returns the family of a MODEL. Raises ValueError if it is of none, or if CLIP or VAE do not fit it; the message
    names every input that does not."""
    family = family_of_model(model.model)
    if problems := family.problems(model.model, clip, vae):
        raise ValueError("\n".join(problems))
    return family
