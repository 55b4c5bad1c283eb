"""LoRA files: what is in them, what they are called, and how they come to lie in the loras folder."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .config import TrainConfig
from .data.dataset import Dataset
from .files import write_tensors

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Lora(dict[str, Tensor]):
    """A LoRA as ComfyUI's nodes hand it on, a state dict; it also carries the metadata for its file."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = metadata


def metadata(config: TrainConfig, dataset: Dataset, family: str, steps_done: int) -> dict[str, str]:
    """What the file tells about itself: modelspec.* (Stability AI's ModelSpec 1.0.0), the ss_* keys that LoRA managers
    read, and our whole recipe."""
    facts = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{dataset.resolution}x{dataset.resolution}",
        "modelspec.prediction_type": "velocity",
        "modelspec.trigger_phrase": dataset.trigger_word,
        "ss_base_model_version": family,
        "ss_network_module": "networks.lora",
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.lora_alpha,
        "ss_learning_rate": config.learning_rate,
        "ss_optimizer": config.optimizer,
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_seed": config.seed,
        "ss_steps": steps_done,
        "ss_max_train_steps": config.steps,
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_num_train_images": sum(i.num_repeats for i in dataset.items),
        "ss_resolution": f"({dataset.resolution}, {dataset.resolution})",
        "livelora.recipe": json.dumps(config.as_dict()),
        "livelora.dataset": dataset.fingerprint(),
    }
    return {name: str(value) for name, value in facts.items() if value != ""}


def check_name(name: str) -> None:
    """Raises ValueError unless `name` can be a file name on every system."""
    if not name.strip() or name != name.strip():
        raise ValueError(f"The LoRA needs a name without spaces around it, got {name!r}. Write for example "
                         "my_character")
    if ".." in name or re.search(r'[/\\:*?"<>|\x00-\x1f]', name) or name.startswith("."):
        raise ValueError(f"The LoRA's name must be a plain file name, without folders, '..' or any of :*?\"<>|, got "
                         f"{name!r}. It is saved in ComfyUI's models/loras folder.")


def save(lora: dict[str, Tensor], folder: Path, name: str, dtype: str) -> Path:
    """Writes `name.safetensors`, or `name_00002.safetensors` and so on if there is one: a name is never used twice,
    because ComfyUI remembers LoRA files by name.

    Raises ValueError for a bad name, OSError if it cannot be written; then nothing is left behind."""
    check_name(name)
    path, counter = folder / f"{name}.safetensors", 1
    while path.exists():
        counter += 1
        path = folder / f"{name}_{counter:05}.safetensors"
    title = {"modelspec.title": path.stem}
    tensors = {key: value.to(DTYPES[dtype]).contiguous() for key, value in lora.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {**getattr(lora, "metadata", {}), **title})
    except OSError as err:
        raise OSError(f"The LoRA could not be written to '{folder}': {err.strerror or err}. Free some space there or "
                      "allow writing, then queue again.") from err
    return path


def load(path: Path) -> Lora:
    """Reads a LoRA file back, with its metadata."""
    with safe_open(path, framework="pt") as file:
        return Lora({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})
