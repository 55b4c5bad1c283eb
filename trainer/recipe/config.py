"""The recipe of a training run: one frozen dataclass. What is right in it, `rules.py` knows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .blocks import BlockValues, parse_blocks
from .choices import (
    Adapter,
    AdapterDtype,
    AdapterInit,
    CaptionShuffle,
    HuberSchedule,
    Loss,
    LRScheduler,
    Optimizer,
    TargetModules,
    TimestepSampling,
)
from .rules import problems


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

    # The run

    steps: int
    """Optimizer updates. The schedule spans them."""
    extra_steps: int = 0
    """Steps on top of `steps`, to extend a job that is done. The schedule then spans them all."""
    seed: int = 0
    """Decides initial weights, data order, noise, timesteps and everything else that is random."""
    batch_size: int = 1
    """Images in one forward."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in one step."""
    gradient_checkpointing: bool = True
    """Recompute each block in the backward pass instead of keeping its activations."""
    save_every: int = 100
    """Steps between resumable states."""
    keep_states: int = 2
    """How many of them are kept, the newest."""
    held_out: float = 0.0
    """Images of each folder that are kept from training and measured instead: a count, or below 1 a fraction."""
    validate_every: int = 50
    """Steps between held-out losses, if there is a held-out set."""
    early_stop_patience: int = 0
    """End after so many held-out losses in a row without a new best. 0: train all steps."""

    # The adapter

    adapter: Adapter = "LoRA"
    rank: int
    """Rank R of every matrix pair; for OFT the edge of a rotated block."""
    alpha: float = 0.0
    """The scale is alpha / rank (rsLoRA: alpha / √rank). 0 means alpha = rank."""
    init: AdapterInit = "kaiming"
    target_modules: TargetModules = "all"
    target_regex: str = ""
    """Instead of `target_modules`: a regular expression that a Linear's whole name must match."""
    block_ranks: str = ""
    """Ranks of single blocks, such as "double 0-9: 8, single: 32". 0 leaves a block out."""
    block_learning_rates: str = ""
    """Factors on the learning rate of single blocks, such as "double: 0.5, single 20-37: 0"."""
    lokr_factor: int = -1
    """LoKr: edge of the smaller Kronecker factor. -1: as near to the square root as divides the layer's width."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are dropped."""
    rank_dropout: float = 0.0
    """Share of the ranks that are dropped, for each image anew."""
    module_dropout: float = 0.0
    """Share of the adapter's layers that are left out, in each micro-batch anew."""
    adapter_dtype: AdapterDtype = "fp32"
    """fp32: master weights. bf16: half the memory, updated with stochastic rounding."""

    # The optimizer

    optimizer: Optimizer = "AdamW8bit"
    learning_rate: float = 1e-4
    erase: bool = False
    """Unlearn what the images show: the loss is climbed, and `learning_rate` must be negative to say so."""
    lora_plus_ratio: float = 1.0
    """LoRA+: learning rate of B ÷ learning rate of A."""
    weight_decay: float = 0.01
    lr_scheduler: LRScheduler = "cosine"
    lr_warmup_steps: int = 0
    lr_cycles: int = 1
    """cosine_with_restarts: how many times the learning rate falls."""
    lr_power: float = 1.0
    """polynomial: its exponent."""
    lr_decay_steps: int = 0
    """wsd (warmup, stable, decay): steps of the fall at the end. 0: a tenth of the run."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm. 0 turns clipping off."""
    ema_decay: float = 0.0
    """Exponential moving average of the adapter: it is what is measured, drawn and saved. 0 turns it off."""

    # The objective

    timestep_sampling: TimestepSampling = "sigmoid"
    timestep_mean: float = 0.0
    """logit_normal: mean of the noise level's logit. Above 0: more noise."""
    timestep_std: float = 1.0
    """logit_normal: its standard deviation."""
    timestep_shift: float = 1.0
    """fixed_shift: σ' = sσ / (1 + (s − 1)σ) of sigmoid's samples."""
    stratified_timesteps: bool = False
    """Spread the noise levels of a step evenly over their distribution."""
    loss: Loss = "l2"
    huber_c: float = 0.1
    """huber and smooth_l1: below this error the loss is quadratic."""
    huber_schedule: HuberSchedule = "constant"
    """How `huber_c` depends on the noise level."""
    unmasked_weight: float = 0.0
    """Weight of what an image's mask leaves out."""
    prior_weight: float = 1.0
    """Weight of regularization images."""
    preservation_weight: float = 0.0
    """Weight of keeping the base model's answer, to the empty caption or to `preservation_class`. 0 turns it off."""
    preservation_class: str = ""
    """Keep the answer to the caption with the trigger word replaced by this, instead of to the empty caption."""
    guidance: float = 1.0
    """Value of the guidance embedding while training (a distilled model such as FLUX.1-dev has one)."""
    caption_dropout: float = 0.0
    """Share of images that are trained with the empty caption."""
    caption_shuffle: CaptionShuffle = "none"
    """Put a caption's tags (between commas) or sentences in another order each time."""
    keep_tokens: int = 0
    """Tags or sentences at the start that stay there."""
    caption_variants: int = 8
    """How many shuffled captions of each image are drawn and encoded."""

    def __post_init__(self) -> None:
        if found := problems(self):
            raise ValueError("This recipe cannot be trained:\n" + "\n".join(f"- {p}" for p in found))

    @property
    def total_steps(self) -> int:
        """Steps of the run, with those it was extended by."""
        return self.steps + self.extra_steps

    @property
    def ranks_by_block(self) -> BlockValues:
        """`block_ranks`, read."""
        return parse_blocks(self.block_ranks)

    @property
    def learning_rates_by_block(self) -> BlockValues:
        """`block_learning_rates`, read."""
        return parse_blocks(self.block_learning_rates)

    @property
    def lora_alpha(self) -> float:
        """The alpha in effect where the rank is `rank`."""
        return self.alpha or float(self.rank)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain values, for JSON."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """What makes it another training: all but `extra_steps`, which continues the same one, and `keep_states`."""
        return {name: value for name, value in self.as_dict().items() if name not in ("extra_steps", "keep_states")}
