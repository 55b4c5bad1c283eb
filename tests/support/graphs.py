"""Graphs in API form for the tests that drive a real server."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

EXAMPLE = {
    "model": {"class_type": "LiveLoraDemoModel", "inputs": {}},
    "data": {"class_type": "LiveLoraDataset", "inputs": {
        "folder": "demo_dataset", "resolution": 64, "trigger_word": "flatmoji", "missing_captions": "refuse",
        "bad_images": "refuse"}},
    "train": {"class_type": "LiveLoraTrain", "inputs": {
        "model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "dataset": ["data", 0], "preset": "style",
        "preset.steps": 6, "preset.rank": 4, "preset.learning_rate": 1e-3, "seed": 0, "mode": "wait", "batch_size": 2,
        "gradient_accumulation_steps": 1, "alpha": 0.0, "target_modules": "all", "optimizer": "AdamW8bit",
        "weight_decay": 0.01, "lr_scheduler": "cosine", "lr_warmup_steps": 0, "max_grad_norm": 1.0,
        "timestep_sampling": "sigmoid", "guidance": 1.0, "adapter_dtype": "fp32", "gradient_checkpointing": "none",
        "save_every": 100, "validate_every": 50}},
}


def training(seed: int, **changes: Any) -> dict:
    """Model, dataset and train node. Each test takes a seed of its own: the same recipe is the same job. So small a
    model goes without gradient checkpointing, which changes no bit but takes a third of the time."""
    graph = deepcopy(EXAMPLE)
    graph["train"]["inputs"] |= {"seed": seed, **{f"preset.{k}" if k in ("steps", "rank", "learning_rate") else k: v
                                                  for k, v in changes.items()}}
    return graph


def with_save(graph: dict, name: str, dtype: str = "fp16") -> dict:
    """… and Save LoRA."""
    graph["save"] = {"class_type": "LiveLoraSave", "inputs": {"lora": ["train", 1], "name": name, "dtype": dtype}}
    return graph


def with_preview(graph: dict, prompts: str, every: int, **changes: Any) -> dict:
    """… and previews."""
    graph["preview"] = {"class_type": "LiveLoraPreview", "inputs": {
        "prompts": prompts, "every_n_steps": every, "width": 128, "height": 128, "seed": 5, "sampler_steps": 4,
        "cfg": 3.0, "guidance": 1.0, "negative": "", "sampler_name": "euler", "scheduler": "simple", **changes}}
    graph["train"]["inputs"]["preview"] = ["preview", 0]
    return graph


def drawing(prompt: str, lora: Any = None, model: Any = None, seed: int = 5, prefix: str = "drawn") -> dict:
    """A prompt drawn by KSampler; with `lora` (a file name or a link) through LoraLoader."""
    graph = {
        "model": {"class_type": "LiveLoraDemoModel", "inputs": {}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": prompt}},
        "guided": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["text", 0], "guidance": 1.0}},
        "none": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
        "none guided": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["none", 0], "guidance": 1.0}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sampler": {"class_type": "KSampler", "inputs": {
            "model": model or ["model", 0], "positive": ["guided", 0], "negative": ["none guided", 0],
            "latent_image": ["latent", 0], "seed": seed, "steps": 4, "cfg": 3.0, "sampler_name": "euler",
            "scheduler": "simple", "denoise": 1.0}},
        "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "image": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": prefix}},
    }
    if lora is not None:
        graph["lora"] = {"class_type": "LoraLoader", "inputs": {
            "model": ["model", 0], "clip": ["model", 1], "lora_name": lora, "strength_model": 1.0,
            "strength_clip": 1.0}}
        graph["sampler"]["inputs"]["model"] = ["lora", 0]
    return graph
