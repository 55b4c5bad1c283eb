"""Makes the metadata by which a LoRA file describes itself."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.item import Dataset
from ..lora.file import about
from ..lora.kinds import KINDS
from ..model.family import Family
from ..recipe.config import HUBER, TrainConfig
from .batches import Batches

log = logging.getLogger(__name__)

THUMBNAIL = 256
"""The longer side of the thumbnail in a file, in pixels, as ModelSpec recommends."""
SD_SCRIPTS_TIMESTEPS = {"sigmoid": "sigmoid", "uniform": "uniform", "fixed_shift": "shift", "logit_normal": "sigma"}


def metadata(config: TrainConfig, dataset: Dataset, family: Family, architecture: str, steps_done: int,
             thumbnail: Path | None = None) -> dict[str, str]:
    """Returns what the file says about itself: modelspec.* (Stability AI's ModelSpec 1.0.0), the ss_* keys that LoRA
    managers read, and our whole recipe. `architecture` is ModelSpec's name of the model, `dataset` is what was trained
    on, `thumbnail` a picture that the LoRA drew; if it cannot be read, it is left out."""
    facts = {
        **about(family, architecture, dataset.trigger_word),
        "modelspec.resolution": f"{dataset.resolution}x{dataset.resolution}",
        "modelspec.prediction_type": family.process.prediction_type,
        "modelspec.thumbnail": _data_url(thumbnail) if thumbnail else "",
        "ss_base_model_version": family.name,
        "ss_steps": steps_done,
        **_network_facts(config), **_training_facts(config), **_noise_facts(config, family),
        **_dataset_facts(config, dataset, steps_done),
        "livelora.recipe": json.dumps(config.as_dict()),
        "livelora.dataset": dataset.fingerprint(),
    }
    return {name: str(value) for name, value in facts.items() if value != ""}


def _network_facts(config: TrainConfig) -> dict[str, Any]:
    kind = KINDS[config.adapter]
    extra = {"factor": str(config.lokr_factor)} if "lokr_factor" in kind.uses else {}
    arguments = {**kind.lycoris, **extra}
    return {
        "ss_network_module": "lycoris.kohya" if kind.lycoris else "networks.lora",
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
        "ss_gradient_checkpointing": config.gradient_checkpointing != "none",
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_shuffle_caption": config.caption_shuffle != "none",
        "ss_keep_tokens": config.keep_tokens,
        "ss_prior_loss_weight": config.prior_weight,
    }


def _noise_facts(config: TrainConfig, family: Family) -> dict[str, Any]:
    """Returns the settings with which sd-scripts would train by the same objective."""
    logit_normal = config.timestep_sampling == "logit_normal"
    return {
        "ss_timestep_sampling": (SD_SCRIPTS_TIMESTEPS | {"resolution_shift": family.process.resolution_shift_name})[
            config.timestep_sampling],
        "ss_sigmoid_scale": 1.0,
        "ss_discrete_flow_shift": config.timestep_shift,
        "ss_weighting_scheme": "logit_normal" if logit_normal else "none",
        "ss_logit_mean": -config.timestep_mean if logit_normal else "",  # sd-scripts' timesteps are in descending order
        "ss_logit_std": config.timestep_std if logit_normal else "",
        "ss_model_prediction_type": "raw",
        "ss_guidance_scale": config.guidance,
        "ss_loss_type": config.loss,
        "ss_huber_c": config.huber_c if config.loss in HUBER[1] else "",
        "ss_huber_schedule": config.huber_schedule if config.loss in HUBER[1] else "",
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
