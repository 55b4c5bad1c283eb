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


def activation_bytes(model: Geometry, image_tokens: int, batch_size: int, checkpointing: bool) -> int:
    """An estimate of a step's peak: every block's input is kept; inside one block (or inside all, without
    checkpointing) a token leaves about 60 values of the hidden width behind.

    Counted on a FLUX.1 single block in training: norm, modulation, the 7-wide linear1 with its LoRA branch, attention,
    the 4-wide GELU and the 5-wide input of linear2, forward and backward."""
    token = model.hidden_size * model.bytes_per_value
    tokens = batch_size * (image_tokens + model.text_tokens)
    per_block = 60 * token * tokens
    return model.blocks * token * tokens + per_block if checkpointing else model.blocks * per_block
