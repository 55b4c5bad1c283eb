"""Reads from PEFT's configuration how strongly a LoRA goes in, for files whose tensors do not tell it."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

INSIDE = "lora_adapter_metadata"
"""The key under which diffusers writes the configuration into a file's metadata."""
BESIDE = "adapter_config.json"
"""The file into which PEFT writes it. We keep its text in the metadata under this name."""


def beside(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the configuration that lies beside a LoRA file with tensors of these names, as metadata; nothing if there
    is none or the file does not come from PEFT. Raises ValueError, with both files' names, if it cannot be read."""
    config = path.with_name(BESIDE)
    from_peft = path.name == "adapter_model.safetensors" or all(name.startswith("base_model.model.") for name in names)
    if not from_peft or not config.is_file():
        return {}
    try:
        text = config.read_text(encoding="utf-8")
        _parsed(text)
    except (OSError, ValueError) as err:
        raise ValueError(f"The {BESIDE} beside '{path.name}', which tells its alpha, cannot be read ({err}). Get both "
                         "files again.") from err
    return {BESIDE: text}


def alphas_of(metadata: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
    """Returns the alphas with which alpha / rank is the scale that PEFT gives to each layer, given the layers' ranks by
    the names that PEFT has for them; none if the metadata have no alpha, or are not about layers of these ranks, which
    the log says. Raises ValueError if the configuration cannot be read, or an alpha is no number."""
    where = next((name for name in (INSIDE, BESIDE) if metadata.get(name)), "")
    if not where:
        return {}
    try:
        config = {key.removeprefix("transformer."): value for key, value in _parsed(metadata[where]).items()}
    except ValueError as err:
        raise ValueError(f"The LoRA's {where}, which tells its alpha, cannot be read ({err}). Get the file again."
                         ) from err
    told = {name: _number(config, ("r",), "rank_pattern", name) for name in ranks}
    if other := next((name for name, rank in told.items() if rank not in (None, ranks[name])), None):
        log.warning("The LoRA's %s is passed over, because it belongs to another LoRA: there %s has rank %g, here %d",
                    where, other, told[other], ranks[other])
        return {}
    alphas = {name: _number(config, ("lora_alpha", "alpha"), "alpha_pattern", name,
                            math.sqrt(rank) if config.get("use_rslora") else 1.0) for name, rank in ranks.items()}
    return {name: alpha for name, alpha in alphas.items() if alpha is not None}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError as err:
        raise ValueError("it is nested too deeply") from err
    if not isinstance(found, dict):
        raise ValueError(f"it is a {type(found).__name__} and not an object")
    return found


def _number(config: Mapping[str, Any], names: Iterable[str], patterns: str, layer: str,
            factor: float = 1.0) -> float | None:
    """Returns the number that a configuration has for a layer, times a factor: that of the first of its patterns that
    matches, as PEFT finds it, or else what it has under the first of these names; None if it has none. Raises
    ValueError if fp32 cannot hold it."""
    try:
        found = next((value for pattern, value in (config.get(patterns) or {}).items()
                      if re.match(rf"(.*\.)?({pattern})$", layer)),
                     next((config[name] for name in names if name in config), None))
        if found is None:
            return None
        number = float(found) * factor
        if not torch.tensor(number).isfinite():
            raise ValueError(f"it is {found}")
        return number
    except (re.error, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as err:
        raise ValueError(f"The LoRA's metadata tell no usable {patterns.removesuffix('_pattern')} for {layer} ({err}). "
                         "Get the file again.") from err
