"""Estimates how much memory a step needs beside the model's weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """Holds the sizes on which a transformer's activations depend."""

    hidden_size: int
    blocks: int
    text_tokens: int
    bytes_per_value: int
    values_per_token: int
    """How many vectors of the hidden width one token leaves behind in one block, forward and backward."""


def activation_bytes(model: Geometry, image_tokens: int, batch_size: int, checkpointing: bool) -> int:
    """Returns an estimate of a step's peak, in bytes. With checkpointing a step keeps the inputs of all blocks and what
    is computed inside one block. Without it, a step keeps what is computed inside all blocks."""
    token = model.hidden_size * model.bytes_per_value
    tokens = batch_size * (image_tokens + model.text_tokens)
    per_block = model.values_per_token * token * tokens
    return model.blocks * token * tokens + per_block if checkpointing else model.blocks * per_block
