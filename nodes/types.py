"""Defines what our nodes share: the kinds of value that they hand to each other, and how they refuse one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from comfy_api.latest import io

from ..trainer.jobs.states import Refused

LoraDataset = io.Custom("LORA_DATASET")
LoraPreview = io.Custom("LORA_PREVIEW")
LoraModel = io.LoraModel
"""Core's own type. Its Save LoRA Weights and Load LoRA Model take it."""
LossMap = io.LossMap
"""Core's own type. Its Plot Loss Graph takes it."""

CATEGORY = "training/LiveLoRA"


def refusal(check: Callable[..., object], *values: object) -> bool | str:
    """Returns True, or the sentence that `check` raises, for `validate_inputs`."""
    try:
        check(*values)
    except (ValueError, OSError, Refused) as err:
        return str(err)
    return True


def told(report: str, warnings: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Returns what a node tells in its box. `warnings` are the lines of the report that a person should see first."""
    return {"text": (report,), "warnings": tuple(warnings)}
