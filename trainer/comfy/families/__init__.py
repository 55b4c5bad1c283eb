"""The model families that can be trained, one file each."""

from __future__ import annotations

from typing import Any

from ...model.family import Family
from .flux1 import FLUX1

FAMILIES: tuple[Family, ...] = (FLUX1,)
USUAL = FAMILIES[0]
"""Its presets and examples fill in what is shown before a model is wired in."""


def names() -> str:
    """All of them, for a sentence."""
    return " or ".join(family.name for family in FAMILIES)


def family_of(model: Any, clip: Any, vae: Any) -> Family:
    """The family of a MODEL. Raises ValueError if it is of none, or if CLIP or VAE do not fit it, naming every input
    that does not."""
    base = model.model
    family = next((family for family in FAMILIES if family.accepts(base)), None)
    if family is None:
        kind = getattr(getattr(base, "model_type", None), "name", "unknown")
        raise ValueError(f"model: LoRA Train trains {names()} models, this one is {type(base).__name__} ({kind}). Load "
                         f"a {names()} model, for example {USUAL.examples['model']}, with Load Diffusion Model.")
    if problems := family.problems(base, clip, vae):
        raise ValueError("\n".join(problems))
    return family
