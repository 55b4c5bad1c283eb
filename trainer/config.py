"""The recipe of a training run: one frozen dataclass, every cross-field check in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

Optimizer = Literal["AdamW8bit", "AdamW"]
LRScheduler = Literal["cosine", "linear", "constant"]
TimestepSampling = Literal["sigmoid", "resolution_shift"]
TargetModules = Literal["all", "attention and mlp", "attention"]
AdapterDtype = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Preset:
    """Where to start for a kind of LoRA."""

    rank: int
    steps: int
    learning_rate: float


PRESETS = {
    "character": Preset(rank=16, steps=1200, learning_rate=1e-4),
    "style": Preset(rank=32, steps=2500, learning_rate=1e-4),
    "concept": Preset(rank=48, steps=2000, learning_rate=1e-4),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A step is an optimizer update; a micro-batch is one forward and backward of `batch_size` images."""

    steps: int
    """Optimizer updates."""
    rank: int
    """Rank R of every LoRA matrix pair."""
    alpha: float = 0.0
    """The LoRA's scale is alpha / rank. 0 means alpha = rank, a scale of 1."""
    learning_rate: float = 1e-4
    seed: int = 0
    """Decides initial weights, data order, noise and timesteps."""
    batch_size: int = 1
    """Images in one forward."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in one step."""
    optimizer: Optimizer = "AdamW8bit"
    weight_decay: float = 0.01
    lr_scheduler: LRScheduler = "cosine"
    lr_warmup_steps: int = 0
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm. 0 turns clipping off."""
    timestep_sampling: TimestepSampling = "sigmoid"
    guidance: float = 1.0
    """Value of the guidance embedding while training (a distilled model such as FLUX.1-dev has one)."""
    target_modules: TargetModules = "all"
    adapter_dtype: AdapterDtype = "fp32"
    gradient_checkpointing: bool = True
    """Recompute each block in the backward pass instead of keeping its activations."""
    save_every: int = 100
    """Steps between resumable states."""
    validate_every: int = 50
    """Steps between held-out losses, if there is a held-out set."""

    def __post_init__(self) -> None:
        problems = [*self._range_problems(), *self._choice_problems()]
        if problems:
            raise ValueError("This recipe cannot be trained:\n" + "\n".join(f"- {p}" for p in problems))

    def _range_problems(self) -> list[str]:
        at_least = {"steps": 1, "rank": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "save_every": 1,
                    "validate_every": 1, "alpha": 0, "weight_decay": 0, "lr_warmup_steps": 0, "max_grad_norm": 0,
                    "guidance": 0, "seed": 0}
        problems = [f"{name} must be at least {low}, got {getattr(self, name)}."
                    for name, low in at_least.items() if not getattr(self, name) >= low]
        if not self.learning_rate > 0:
            problems.append(f"learning_rate must be above 0, got {self.learning_rate}. A usual value is 0.0001.")
        if self.lr_warmup_steps > self.steps > 0:
            problems.append(f"lr_warmup_steps ({self.lr_warmup_steps}) is longer than the run ({self.steps} steps). "
                            "Choose fewer: a tenth of the steps is usual.")
        return problems

    def _choice_problems(self) -> list[str]:
        choices = {"optimizer": Optimizer, "lr_scheduler": LRScheduler, "timestep_sampling": TimestepSampling,
                   "target_modules": TargetModules, "adapter_dtype": AdapterDtype}
        return [f"{name} must be one of {', '.join(get_args(choice))}, got {getattr(self, name)!r}."
                for name, choice in choices.items() if getattr(self, name) not in get_args(choice)]

    @property
    def lora_alpha(self) -> float:
        """The alpha in effect."""
        return self.alpha or float(self.rank)

    def as_dict(self) -> dict:
        """The recipe as plain values, for JSON."""
        return asdict(self)
