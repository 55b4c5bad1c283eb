"""Defines the kinds of value that our nodes hand to each other."""

from __future__ import annotations

from comfy_api.latest import io

LoraDataset = io.Custom("LORA_DATASET")
LoraPreview = io.Custom("LORA_PREVIEW")
LoraModel = io.LoraModel
"""Core's own type. Its Save LoRA Weights and Load LoRA Model take it."""
LossMap = io.LossMap
"""Core's own type. Its Plot Loss Graph takes it."""

CATEGORY = "training/LiveLoRA"
