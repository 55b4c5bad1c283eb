"""Reads from PEFT's configuration how strongly a LoRA goes in, for files whose tensors do not tell it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

INSIDE = "lora_adapter_metadata"
"""The key under which diffusers writes the configuration into a file's metadata."""
BESIDE = "adapter_config.json"
"""The file into which PEFT writes it. We keep its text in the metadata under this name."""


def beside(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the configuration that lies beside a LoRA file with tensors of these names, as metadata; nothing if there
    is none or the file does not come from PEFT."""
    config = path.with_name(BESIDE)
    from_peft = path.name == "adapter_model.safetensors" or all(name.startswith("base_model.model.") for name in names)
    return {BESIDE: config.read_text(encoding="utf-8")} if from_peft and config.is_file() else {}


def config_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the configuration that a file's metadata has; an empty one if it has none. Raises ValueError if it cannot
    be read."""
    where = next((name for name in (INSIDE, BESIDE) if metadata.get(name)), None)
    if where is None:
        return {}
    try:
        found = json.loads(metadata[where])
    except ValueError as err:
        raise ValueError(f"The LoRA's {where}, which tells its alpha, is no JSON ({err}). Get the file again.") from err
    if not isinstance(found, dict):
        raise ValueError(f"The LoRA's {where}, which tells its alpha, is a {type(found).__name__} and not an object. "
                         "Get the file again.")
    return {key.removeprefix("transformer."): value for key, value in found.items()}


def alpha_of(config: Mapping[str, Any], name: str, rank: int) -> float | None:
    """Returns the alpha with which alpha / rank is the scale that PEFT gives to a layer; None if the configuration has
    no alpha. Raises ValueError if that is no number."""
    patterns = config.get("alpha_pattern") or {}
    try:
        alpha = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)),
                     config.get("lora_alpha", config.get("alpha")))
        if alpha is None:
            return None
        found = float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
        if not math.isfinite(found):
            raise ValueError(f"it is {alpha}")
        return found
    except (re.error, AttributeError, TypeError, ValueError, OverflowError) as err:
        raise ValueError(f"The LoRA's metadata tell no usable alpha for {name} ({err}). Get the file again.") from err
