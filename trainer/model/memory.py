"""How much memory a step needs beside the model's weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a transformer's activations depend on."""

    hidden_size: int
    blocks: int
    text_tokens: int
    bytes_per_value: int
    values_per_token: int
    """Values of the hidden width that one token leaves behind in one block, forward and backward."""


def activation_bytes(model: Geometry, image_tokens: int, batch_size: int, checkpointing: bool) -> int:
    """An estimate of a step's peak: every block's input is kept, and all that happens inside one block (or inside all,
    without checkpointing)."""
    token = model.hidden_size * model.bytes_per_value
    tokens = batch_size * (image_tokens + model.text_tokens)
    per_block = model.values_per_token * token * tokens
    return model.blocks * token * tokens + per_block if checkpointing else model.blocks * per_block
