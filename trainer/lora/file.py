"""LoRA files: what is in them, what they are called, and how they come to lie in the loras folder."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import logging
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.item import Dataset
from ..disk.files import write_tensors
from ..recipe.config import TrainConfig
from ..training.batches import Batches
from .formats import SCALES, Format, write

log = logging.getLogger(__name__)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
THUMBNAIL = 256
"""Longer side of the picture in a file, in pixels, as ModelSpec recommends."""
SD_SCRIPTS_TIMESTEPS = {"sigmoid": "sigmoid", "uniform": "uniform", "fixed_shift": "shift",
                        "resolution_shift": "flux_shift", "logit_normal": "sigma"}
LYCORIS = {"rsLoRA": {"algo": "lora", "rs_lora": "True"}, "DoRA": {"algo": "lora", "dora_wd": "True"},
           "LoHa": {"algo": "loha"}, "LoKr": {"algo": "lokr"}, "OFT": {"algo": "diag-oft"}}
"""What these adapters are called in LyCORIS, with which sd-scripts trains them."""


class Lora(dict[str, Tensor]):
    """A LoRA as ComfyUI's nodes hand it on, a state dict; it also carries the metadata for its file."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = metadata


def metadata(config: TrainConfig, dataset: Dataset, family: str, steps_done: int,
             thumbnail: Path | None = None) -> dict[str, str]:
    """What the file tells about itself: modelspec.* (Stability AI's ModelSpec 1.0.0), the ss_* keys that LoRA managers
    read, and our whole recipe. `dataset` is what was trained on, `thumbnail` a picture that the LoRA drew; one that
    cannot be read is left out."""
    facts = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.resolution": f"{dataset.resolution}x{dataset.resolution}",
        "modelspec.prediction_type": "velocity",
        "modelspec.trigger_phrase": dataset.trigger_word,
        "modelspec.usage_hint": f"Trigger word: {dataset.trigger_word}" if dataset.trigger_word else "",
        "modelspec.thumbnail": _data_url(thumbnail) if thumbnail else "",
        "ss_base_model_version": family,
        "ss_steps": steps_done,
        **_network_facts(config), **_training_facts(config), **_noise_facts(config),
        **_dataset_facts(config, dataset, steps_done),
        "livelora.recipe": json.dumps(config.as_dict()),
        "livelora.dataset": dataset.fingerprint(),
    }
    return {name: str(value) for name, value in facts.items() if value != ""}


def _network_facts(config: TrainConfig) -> dict[str, Any]:
    extra = {"factor": str(config.lokr_factor)} if config.adapter == "LoKr" else {}
    arguments = LYCORIS.get(config.adapter, {}) | extra
    return {
        "ss_network_module": "lycoris.kohya" if config.adapter in LYCORIS else "networks.lora",
        "ss_network_args": json.dumps(arguments) if arguments else "",
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.lora_alpha,
        "ss_network_dropout": config.dropout,
    }


def _training_facts(config: TrainConfig) -> dict[str, Any]:
    return {
        "ss_learning_rate": config.learning_rate,
        "ss_optimizer": config.optimizer,
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_seed": config.seed,
        "ss_max_train_steps": config.total_steps,
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_shuffle_caption": config.caption_shuffle != "none",
        "ss_keep_tokens": config.keep_tokens,
        "ss_prior_loss_weight": config.prior_weight,
    }


def _noise_facts(config: TrainConfig) -> dict[str, Any]:
    """The objective as the settings of sd-scripts that would do the same."""
    logit_normal = config.timestep_sampling == "logit_normal"
    return {
        "ss_timestep_sampling": SD_SCRIPTS_TIMESTEPS[config.timestep_sampling],
        "ss_sigmoid_scale": 1.0,
        "ss_discrete_flow_shift": config.timestep_shift,
        "ss_weighting_scheme": "logit_normal" if logit_normal else "none",
        "ss_logit_mean": -config.timestep_mean if logit_normal else "",  # its timesteps are in descending order
        "ss_logit_std": config.timestep_std if logit_normal else "",
        "ss_model_prediction_type": "raw",
        "ss_guidance_scale": config.guidance,
        "ss_loss_type": config.loss,
        "ss_huber_c": config.huber_c if config.loss in ("huber", "smooth_l1") else "",
        "ss_huber_schedule": config.huber_schedule if config.loss in ("huber", "smooth_l1") else "",
    }


def _dataset_facts(config: TrainConfig, dataset: Dataset, steps_done: int) -> dict[str, Any]:
    per_epoch = Batches([(i.bucket, i.num_repeats) for i in dataset.items], config.batch_size, config.seed).per_epoch
    folders: dict[str, dict[str, int]] = {}
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for item in dataset.items:
        name = item.path.parent.name
        folders.setdefault(name, {"n_repeats": item.num_repeats, "img_count": 0})["img_count"] += 1
        tags[name].update(tag.strip().lower() for tag in item.caption.split(",") if tag.strip())
    return {
        "ss_num_train_images": sum(i.num_repeats for i in dataset.items),
        "ss_num_batches_per_epoch": per_epoch,
        "ss_num_epochs": -(-config.total_steps * config.gradient_accumulation_steps // per_epoch),
        "ss_epoch": -(-steps_done * config.gradient_accumulation_steps // per_epoch),
        "ss_resolution": f"({dataset.resolution}, {dataset.resolution})",
        "ss_dataset_dirs": json.dumps(folders),
        "ss_tag_frequency": json.dumps(tags),
    }


def _data_url(picture: Path) -> str:
    try:
        with Image.open(picture) as opened:
            small = opened.convert("RGB")
    except OSError as err:
        log.warning("The thumbnail %s cannot be read (%s)", picture, err)
        return ""
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()


def check_name(name: str) -> None:
    """Raises ValueError unless `name` can be a file name on every system."""
    if not name.strip() or name != name.strip():
        raise ValueError(f"The LoRA needs a name without spaces around it, got {name!r}. Write for example "
                         "my_character")
    if ".." in name or re.search(r'[/\\:*?"<>|\x00-\x1f]', name) or name.startswith("."):
        raise ValueError(f"The LoRA's name must be a plain file name, without folders, '..' or any of :*?\"<>|, got "
                         f"{name!r}. It is saved in ComfyUI's models/loras folder.")
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name):
        raise ValueError(f"Windows keeps the name {name!r} for a device. Write for example my_{name}")


def save(lora: dict[str, Tensor], folder: Path, name: str, dtype: str, format: Format = "ComfyUI",
         extra: dict[str, str] | None = None) -> Path:
    """Writes `name.safetensors`, or `name_00002.safetensors` and so on if there is one: a name is never used twice,
    because ComfyUI remembers LoRA files by name. `extra` is added to its metadata.

    Raises ValueError for a bad name or a format that cannot hold it, OSError if it cannot be written; then nothing is
    left behind."""
    check_name(name)
    tensors = {key: value.to(_dtype(key, value, dtype)).contiguous() for key, value in write(lora, format).items()}
    path, counter = folder / f"{name}.safetensors", 1
    while path.exists():
        counter += 1
        path = folder / f"{name}_{counter:05}.safetensors"
    about = getattr(lora, "metadata", {}) | (extra or {})
    about |= {"modelspec.title": path.stem, "ss_output_name": path.stem,
              "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    if format == "diffusers":
        about["modelspec.implementation"] = "diffusers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, about | hashes(tensors, about))
    except OSError as err:
        raise OSError(f"The LoRA could not be written to '{folder}': {err.strerror or err}. Free some space there or "
                      "allow writing, then queue again.") from err
    return path


def _dtype(key: str, value: Tensor, dtype: str) -> torch.dtype:
    """Numbers that scale whole layers or rows keep their precision: they are few."""
    return torch.float32 if value.ndim == 0 or key.endswith(SCALES) else DTYPES[dtype]


def hashes(tensors: dict[str, Tensor], about: dict[str, str]) -> dict[str, str]:
    """What LoRA managers know a file by, whatever is written into its metadata later.

    ModelSpec and sd-scripts: SHA-256 of all that follows the header. sd-scripts' older one: the first 8 digits of that
    of the 64 KiB from 1 MiB on, in a file with the ss_* metadata alone."""
    content = safetensors.torch.save(tensors, {key: value for key, value in about.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    whole = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"modelspec.hash_sha256": f"0x{whole}", "sshs_model_hash": whole, "sshs_legacy_hash": legacy}


def load(path: Path) -> Lora:
    """Reads a LoRA file back, with its metadata. Raises ValueError if it is no safetensors file.

    The tensors are copies: Windows refuses to replace a file that is mapped into memory."""
    try:
        with safe_open(path, framework="pt") as file:
            return Lora({key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {})
    except SafetensorError as err:
        raise ValueError(f"'{path.name}' cannot be read as safetensors ({err}). Choose a file that ends in "
                         ".safetensors; if this one does, get it again.") from err
