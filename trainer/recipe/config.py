"""Defines the recipe of a training run, one frozen dataclass. `rules.py` knows which settings go together.

Each setting is described once, here: its default, its range or its choices, what it does, in which group it stands, and
with which choice it means something. LoRA Train's inputs, the rules and docs/recipe.md follow from that. The inputs are
in the order of the fields, so a new field comes last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..lora.kinds import KINDS
from . import choices
from .blocks import BlockValues, parse_blocks
from .optimizers import OFFERED
from .rules import problems
from .settings import about, setting

SHUFFLED = ("caption_shuffle", ("tags", "sentences"))
HUBER = ("loss", ("huber", "smooth_l1"))
LOGIT_NORMAL = ("timestep_sampling", ("logit_normal",))
SEVERAL_INITS = ("adapter", tuple(name for name, kind in KINDS.items() if len(kind.inits) > 1))
INITS = [*dict.fromkeys(init for kind in KINDS.values() for init in kind.inits)]


def _adapters(name: str) -> tuple[str, tuple[str, ...]]:
    """Returns, for `only_with`, the kinds of adapter for which a setting means something."""
    return "adapter", tuple(kind for kind, entry in KINDS.items() if name in entry.uses)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Holds all settings of a run. A step is an optimizer update; a micro-batch is one forward and backward of
    `batch_size` images."""

    steps: int = setting(low=1, high=100000, says=(
        "Optimizer steps. More learn more, then overfit: watch the previews, and the held-out loss if you give a "
        "validation set."))
    rank: int = setting(low=1, high=512, says=(
        "How much the LoRA can hold. Characters need 16, styles 24 to 32, broad concepts up to 64; more makes a bigger "
        "file that overfits sooner."))
    learning_rate: float = setting(1e-4, -1, 1, 1e-6, says=(
        "How far each step goes. 0.0001 is usual. Halve it if the pictures burn or break; take twice as much if "
        "nothing is learned after some hundred steps."))
    seed: int = setting(0, 0, 2**64 - 1, says=(
        "Decides everything that is random. The same seed trains the same LoRA; another one is another job."))

    adapter: str = setting("LoRA", choices=(*KINDS,), group="Adapter", says=(
        "What is trained. LoRA is what every program reads. rsLoRA: for ranks above 64. DoRA: learns direction and "
        "size apart; slower. LoHa, LoKr: smaller files. OFT: only rotates weights, which keeps the model's look; "
        "rank is then the size of its blocks."))
    alpha: float = setting(0.0, 0, 1024, 1, only_with=_adapters("alpha"), group="Adapter", says=(
        "The LoRA's scale is alpha / rank. 0 means alpha = rank. Half the rank learns half as fast."))
    init: str = setting("kaiming", choices=INITS, only_with=SEVERAL_INITS, group="Adapter", says=(
        "How the adapter starts. kaiming is the usual way. orthogonal: its directions differ from each other. PiSSA: "
        "from the model's own strongest directions; learns fast, forgets sooner, and the file has twice the rank."))
    target_modules: choices.TargetModules = setting("all", choices=choices.TargetModules, group="Adapter", says=(
        "Which layers get a LoRA. 'all' learns best, 'attention' makes the smallest file. 'character': a few layers "
        "that are often enough for a face. 'style': the later layers, where one study finds style."))
    target_regex: str = setting("", only_with=("target_modules", ("all",)), group="Adapter", says=(
        "A regular expression for the names of the layers to train instead, such as {example}"))
    block_ranks: str = setting("", group="Adapter", says=(
        "Ranks of certain blocks, such as: {example}. 0 leaves a block out. What is not named has the rank above."))
    block_learning_rates: str = setting("", group="Adapter", says=(
        "Factors on the learning rate of certain blocks, such as: {example}. 0 leaves a block out."))
    lokr_factor: int = setting(-1, -1, 4096, only_with=_adapters("lokr_factor"), group="Adapter", says=(
        "Size of its smaller matrix. -1 balances both. 4 to 16 with a very high rank is what some call full LoKr."))
    dropout: float = setting(0.0, 0, 0.95, 0.05, only_with=_adapters("dropout"), group="Adapter", says=(
        "Share of the adapter's inputs that is dropped. 0.1 slows overfitting a little."))
    rank_dropout: float = setting(0.0, 0, 0.95, 0.05, only_with=_adapters("rank_dropout"), group="Adapter", says=(
        "Share of the ranks that is dropped, chosen anew for each image."))
    module_dropout: float = setting(0.0, 0, 0.95, 0.05, group="Adapter", says=(
        "Share of the layers whose LoRA is left out, chosen anew each time."))
    adapter_dtype: choices.AdapterDtype = setting("fp32", choices=choices.AdapterDtype, group="Adapter", says=(
        "The type of number the LoRA is trained in. bf16 saves memory; its updates are rounded at random, so that "
        "small ones are not lost."))

    optimizer: str = setting("AdamW8bit", choices=OFFERED, group="Optimizer", says=(
        "AdamW8bit keeps its state in 8 bits (bitsandbytes) and learns the same as AdamW. Paged: its state may leave a "
        "full GPU. Prodigy finds the learning rate itself: set learning_rate to 1. ScheduleFreeAdamW wants "
        "lr_scheduler constant. CAME starts with large steps: give it a warm-up. Prodigy, ScheduleFreeAdamW and CAME "
        "need: pip install pytorch-optimizer"))
    weight_decay: float = setting(0.01, 0, 1, 0.001, group="Optimizer", says=(
        "Pulls the LoRA's weights towards zero. Rarely worth a change."))
    lr_scheduler: choices.LRScheduler = setting("cosine", choices=choices.LRScheduler, group="Optimizer", says=(
        "How the learning rate falls over the run. constant lets you stop whenever you like; wsd stays and falls at "
        "the end."))
    lr_warmup_steps: int = setting(0, 0, 10000, group="Optimizer", says=(
        "Steps over which the learning rate rises from 0. Useful with high learning rates."))
    lr_cycles: int = setting(1, 1, 100, only_with=("lr_scheduler", ("cosine_with_restarts",)), group="Optimizer", says=(
        "How many times the learning rate falls."))
    lr_power: float = setting(1.0, 0.1, 10, 0.1, only_with=("lr_scheduler", ("polynomial",)), group="Optimizer", says=(
        "1 is a straight line, 2 falls fast and ends slowly."))
    lr_decay_steps: int = setting(0, 0, 100000, only_with=("lr_scheduler", ("wsd",)), group="Optimizer", says=(
        "Steps of the fall at the end. 0: a tenth of the run."))
    lora_plus_ratio: float = setting(1.0, 0.1, 64, 1, only_with=_adapters("lora_plus_ratio"), group="Optimizer", says=(
        "LoRA+: how much faster the second matrix of each pair learns. 1 is off; its authors suggest 16, with a lower "
        "learning rate."))
    max_grad_norm: float = setting(1.0, 0, 100, 0.1, group="Optimizer", says=(
        "Larger gradients are scaled down to this. 0 turns it off."))
    ema_decay: float = setting(0.0, 0, 0.9999, 0.001, group="Optimizer", says=(
        "Average of the LoRA over the last steps: it is what is measured, drawn and saved. 0.99 smooths a restless "
        "run; 0 is off."))
    erase: bool = setting(False, group="Optimizer", says=(
        "Unlearn what the images show instead of learning it. learning_rate must then be negative. Use few steps."))

    timestep_sampling: choices.TimestepSampling = setting(
        "sigmoid", choices=choices.TimestepSampling, group="Noise", says=(
            "Which noise levels are trained. sigmoid: mostly the middle. resolution_shift: more noise for larger "
            "pictures, as the sampler does; good for composition and style. fixed_shift and logit_normal take the "
            "values below. uniform: all alike."))
    timestep_mean: float = setting(0.0, -5, 5, 0.1, only_with=LOGIT_NORMAL, group="Noise", says=(
        "Above 0 more noise (composition), below 0 less (detail)."))
    timestep_std: float = setting(1.0, 0.05, 5, 0.05, only_with=LOGIT_NORMAL, group="Noise", says=(
        "How widely the noise levels are spread."))
    timestep_shift: float = setting(
        1.0, 0.05, 20, 0.05, only_with=("timestep_sampling", ("fixed_shift",)), group="Noise", says=(
            "3 is about what pictures of 1024 × 1024 pixels are sampled with."))
    stratified_timesteps: bool = setting(False, group="Noise", says=(
        "Spread the noise levels of a step evenly. A calmer loss with batches or accumulation, at no cost."))
    loss: choices.Loss = setting("l2", choices=choices.Loss, group="Loss", says=(
        "How errors count. l2 is what the model was made with. huber and smooth_l1 give outliers less weight: for "
        "images with watermarks or mistakes. smooth_l1 has ten times huber's gradients at huber_c 0.1."))
    huber_c: float = setting(0.1, 0.001, 10, 0.01, only_with=HUBER, group="Loss", says=(
        "Errors larger than this count less than squared."))
    huber_schedule: choices.HuberSchedule = setting(
        "constant", choices=choices.HuberSchedule, only_with=HUBER, group="Loss", says=(
            "How huber_c falls with the noise level. snr follows signal over noise."))
    unmasked_weight: float = setting(0.0, 0, 1, 0.05, group="Loss", says=(
        "How much the part of an image counts that its mask leaves out (LoRA Dataset Loader: masks). 0.1 keeps "
        "backgrounds in place."))
    prior_weight: float = setting(1.0, 0, 10, 0.1, group="Loss", says="How much regularization images count.")
    preservation_weight: float = setting(0.0, 0, 10, 0.1, group="Loss", says=(
        "Above 0, the model stays as it is where your trigger word is not used: its answer to the empty prompt is "
        "held. This needs no extra images, but takes twice the time. 0 is off."))
    preservation_class: str = setting("", only_with=("preservation_weight", ()), group="Loss", says=(
        "Hold the answer to your captions with the trigger word replaced by this word, such as: cat."))
    guidance: float = setting(1.0, 0, 30, 0.1, group="Loss", says=(
        "The value of the guidance input that a distilled model has, while training. 1 keeps its guidance intact."))

    caption_dropout: float = setting(0.0, 0, 1, 0.05, group="Captions", says=(
        "Share of images that are trained without their caption. 0.05 to 0.1 makes a style work without words."))
    caption_shuffle: choices.CaptionShuffle = setting("none", choices=choices.CaptionShuffle, group="Captions", says=(
        "Put the tags (between commas) or the sentences of a caption in another order each time."))
    keep_tokens: int = setting(0, 0, 64, only_with=SHUFFLED, group="Captions", says=(
        "How many tags or sentences stay in front."))
    caption_variants: int = setting(8, 1, 256, only_with=SHUFFLED, group="Captions", says=(
        "How many orders of each caption are encoded."))

    batch_size: int = setting(1, 1, 64, group="Memory", says=(
        "Images in one step. Each takes memory; gradient_accumulation_steps has the same effect and takes time."))
    gradient_accumulation_steps: int = setting(1, 1, 256, group="Memory", says=(
        "Batches that are averaged into one step. Raise it if training is restless and memory is short."))
    gradient_checkpointing: choices.Checkpointing = setting("auto", choices=choices.Checkpointing, says=(
        "Which of the model's blocks are computed twice instead of kept in memory, which is a third slower. auto: as "
        "few as your memory allows. all: the least memory. none: the fastest, if it fits."), group="Memory")
    held_out: float = setting(0.0, 0, 10000, 0.05, group="Validation", says=(
        "Images of each folder that are never trained on: a number, or below 1 a share. Their loss tells when to stop: "
        "it falls while the LoRA learns and rises when it overfits. A wired validation dataset does the same."))
    validate_every: int = setting(50, 1, 100000, group="Validation", says=(
        "Steps between two measurements of the held-out images."))
    early_stop_patience: int = setting(0, 0, 1000, group="Validation", says=(
        "End after this many measurements without a new lowest held-out loss. 0: train all steps."))
    save_every: int = setting(100, 1, 100000, group="Saving", says=(
        "Steps between states on disk. A crash costs at most this many."))
    extra_steps: int = setting(0, 0, 100000, group="Saving", says=(
        "Train a finished job for this many more steps: set it and queue again. It stays the same job; the learning "
        "rate follows the longer run."))
    keep_states: int = setting(2, 1, 100, group="Saving", says=(
        "How many of the newest states are kept on disk. Live LoRA can use the LoRA of each; a state is about three "
        "times the size of the LoRA."))
    leave_free: float = setting(0.0, 0, 1000, 0.5, group="Sharing", later=True, says=(
        "Gigabytes of the graphics card that training leaves for your desktop and other programs, besides what ComfyUI "
        "leaves. Raise it if they stutter."))

    def __post_init__(self) -> None:
        if found := problems(self):
            raise ValueError("This recipe cannot be trained:\n" + "\n".join(f"- {p}" for p in found))

    @property
    def total_steps(self) -> int:
        """Returns the steps of the run, with those it was extended by."""
        return self.steps + self.extra_steps

    @property
    def ranks_by_block(self) -> BlockValues:
        """Returns the ranks that `block_ranks` gives."""
        return parse_blocks(self.block_ranks)

    @property
    def learning_rates_by_block(self) -> BlockValues:
        """Returns the factors that `block_learning_rates` gives."""
        return parse_blocks(self.block_learning_rates)

    @property
    def lora_alpha(self) -> float:
        """Returns the alpha in effect for layers whose rank is `rank`."""
        return self.alpha or float(self.rank)

    def as_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain values, for JSON."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """Returns what makes this another training if it changes: all but `extra_steps`, which continues the same one,
        `keep_states` and `leave_free`, which change no value of the LoRA, and settings that came later and have their
        default."""
        later = {entry.name: entry.default for entry in fields(self) if about(entry).later}
        found = {name: value for name, value in self.as_dict().items()
                 if name not in ("extra_steps", "keep_states", "leave_free")
                 and (name not in later or value != later[name])}
        # 0.1.0 knew on and off. What is computed twice has the same value, so "auto" and "all" train the same LoRA.
        return {**found, "gradient_checkpointing": self.gradient_checkpointing != "none"}


EARLIER_VALUES = {"gradient_checkpointing": {True: "auto", False: "none"}}
"""What a recipe of an earlier version says, and what that is today."""


def renewed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe's plain values as this version writes them."""
    return {name: EARLIER_VALUES.get(name, {}).get(value, value) if isinstance(value, bool) else value
            for name, value in recipe.items()}
