"""The rare inputs of LoRA Train, by the names of `TrainConfig`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.recipe import choices
from ..trainer.recipe.config import TrainConfig

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainConfig)}


def rare() -> list[io.Input]:
    """All of them. Each is optional, so that a graph saved before it existed still runs."""
    return [*_adapter(), *_optimizer(), *_objective(), *_captions(), *_run()]


def _choice(name: str, allowed: Any, tooltip: str) -> io.Input:
    return io.Combo.Input(name, options=list(get_args(allowed)), default=_DEFAULTS[name], optional=True, advanced=True,
                          tooltip=tooltip)


def _whole(name: str, low: int, high: int, tooltip: str) -> io.Input:
    return io.Int.Input(name, default=_DEFAULTS[name], min=low, max=high, optional=True, advanced=True,
                        tooltip=tooltip)


def _number(name: str, low: float, high: float, step: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=_DEFAULTS[name], min=low, max=high, step=step, round=False, optional=True,
                          advanced=True, tooltip=tooltip)


def _text(name: str, tooltip: str) -> io.Input:
    return io.String.Input(name, default="", optional=True, advanced=True, tooltip=tooltip)


def _switch(name: str, tooltip: str) -> io.Input:
    return io.Boolean.Input(name, default=_DEFAULTS[name], optional=True, advanced=True, tooltip=tooltip)


def _adapter() -> list[io.Input]:
    return [
        _choice("adapter", choices.Adapter, (
            "What is trained. LoRA is what every program reads. rsLoRA: for ranks above 64. DoRA: learns direction "
            "and size apart; slower. LoHa, LoKr: smaller files. OFT: only turns, which keeps the model's look; rank is "
            "then the size of its blocks.")),
        _number("alpha", 0.0, 1024.0, 1.0, (
            "The LoRA's scale is alpha / rank. 0 means alpha = rank. Half the rank learns half as fast.")),
        _choice("init", choices.AdapterInit, (
            "How the adapter starts. kaiming is the usual way. orthogonal: its directions differ from each other. "
            "PiSSA: from the model's own strongest directions; learns fast, forgets sooner, and the file has twice the "
            "rank.")),
        _choice("target_modules", choices.TargetModules, (
            "Which layers get a LoRA. 'all' learns best, 'attention' makes the smallest file. 'character': four layers "
            "that are often enough for a face. 'style': the later single blocks, where one study finds style.")),
        _text("target_regex", (
            "Instead of target_modules: a regular expression for the names of layers, such as "
            r"double_blocks\.\d+\.img_attn\..*")),
        _text("block_ranks", (
            "Ranks of single blocks, such as: double 0-9: 8, single: 32. 0 leaves a block out. What is not named has "
            "the rank above.")),
        _text("block_learning_rates", (
            "Factors on the learning rate of single blocks, such as: double: 0.5, single 20-37: 2. 0 leaves a block "
            "out.")),
        _whole("lokr_factor", -1, 4096, (
            "Only for LoKr: size of its smaller matrix. -1 balances both. 4 to 16 with a very high rank is what some "
            "call full LoKr.")),
        _number("dropout", 0.0, 0.95, 0.05, (
            "Only for LoRA, rsLoRA and DoRA: share of the adapter's inputs that is dropped. 0.1 slows overfitting a "
            "little.")),
        _number("rank_dropout", 0.0, 0.95, 0.05, "Share of the ranks that is dropped, for each image anew."),
        _number("module_dropout", 0.0, 0.95, 0.05, "Share of the layers whose LoRA is left out, each time anew."),
        _choice("adapter_dtype", choices.AdapterDtype, (
            "Numbers the LoRA is trained in. bf16 saves memory; its updates are rounded at random, so that small ones "
            "are not lost.")),
    ]


def _optimizer() -> list[io.Input]:
    return [
        _choice("optimizer", choices.Optimizer, (
            "AdamW8bit keeps its state in 8 bits (bitsandbytes) and learns the same as AdamW. Paged: its state may "
            "leave a full GPU. Prodigy finds the learning rate itself: set learning_rate to 1. ScheduleFreeAdamW wants "
            "lr_scheduler constant. CAME starts with large steps: give it a warm-up. Prodigy, ScheduleFreeAdamW and "
            "CAME need: pip install pytorch-optimizer")),
        _number("weight_decay", 0.0, 1.0, 0.001, "Pulls the LoRA's weights towards zero. Rarely worth a change."),
        _choice("lr_scheduler", choices.LRScheduler, (
            "How the learning rate falls over the run. constant lets you stop whenever you like; wsd stays and falls "
            "at the end.")),
        _whole("lr_warmup_steps", 0, 10000, (
            "Steps over which the learning rate rises from 0. Useful with high learning rates.")),
        _whole("lr_cycles", 1, 100, "Only for cosine_with_restarts: how many times the learning rate falls."),
        _number("lr_power", 0.1, 10.0, 0.1, "Only for polynomial: 1 is a straight line, 2 falls fast and ends slowly."),
        _whole("lr_decay_steps", 0, 100000, "Only for wsd: steps of the fall at the end. 0: a tenth of the run."),
        _number("lora_plus_ratio", 0.1, 64.0, 1.0, (
            "LoRA+: how much faster the second matrix of each pair learns. 1 is off; its authors suggest 16, with a "
            "lower learning rate.")),
        _number("max_grad_norm", 0.0, 100.0, 0.1, "Larger gradients are scaled down to this. 0 turns it off."),
        _number("ema_decay", 0.0, 0.9999, 0.001, (
            "Average of the LoRA over the last steps: it is what is measured, drawn and saved. 0.99 smooths a restless "
            "run; 0 is off.")),
        _switch("erase", (
            "Unlearn what the images show instead of learning it. learning_rate must then be negative. Use few "
            "steps.")),
    ]


def _objective() -> list[io.Input]:
    return [
        _choice("timestep_sampling", choices.TimestepSampling, (
            "Which noise levels are trained. sigmoid: mostly the middle. resolution_shift: more noise for larger "
            "pictures, as the sampler does; good for composition and style. fixed_shift and logit_normal take the "
            "values below. uniform: all alike.")),
        _number("timestep_mean", -5.0, 5.0, 0.1, (
            "Only for logit_normal: above 0 more noise (composition), below 0 less (detail).")),
        _number("timestep_std", 0.05, 5.0, 0.05, "Only for logit_normal: how widely the noise levels are spread."),
        _number("timestep_shift", 0.05, 20.0, 0.05, "Only for fixed_shift: 3 is what FLUX.1 samples 1024 × 1024 with."),
        _switch("stratified_timesteps", (
            "Spread the noise levels of a step evenly. A calmer loss with batches or accumulation, at no cost.")),
        _choice("loss", choices.Loss, (
            "How errors count. l2 is what the model was made with. huber and smooth_l1 give outliers less weight: for "
            "images with watermarks or mistakes. smooth_l1 has ten times huber's gradients at huber_c 0.1.")),
        _number("huber_c", 0.001, 10.0, 0.01, "Only for huber and smooth_l1: larger errors count less than squared."),
        _choice("huber_schedule", choices.HuberSchedule, (
            "Only for huber and smooth_l1: how huber_c falls with the noise level. snr follows signal over noise.")),
        _number("unmasked_weight", 0.0, 1.0, 0.05, (
            "How much of an image counts that its mask leaves out (LoRA Dataset Loader: masks). 0.1 keeps backgrounds "
            "in place.")),
        _number("prior_weight", 0.0, 10.0, 0.1, "How much regularization images count."),
        _number("preservation_weight", 0.0, 10.0, 0.1, (
            "Keep what the model does without your trigger word, without extra images: above 0 its answer to the empty "
            "prompt is held. Takes twice the time. 0 is off.")),
        _text("preservation_class", (
            "With preservation_weight: hold the answer to your captions with the trigger word replaced by this word, "
            "such as: cat.")),
        _number("guidance", 0.0, 30.0, 0.1, (
            "The value of FLUX.1-dev's guidance input while training. 1 keeps its guidance intact.")),
    ]


def _captions() -> list[io.Input]:
    return [
        _number("caption_dropout", 0.0, 1.0, 0.05, (
            "Share of images that are trained without their caption. 0.05 to 0.1 makes a style work without words.")),
        _choice("caption_shuffle", choices.CaptionShuffle, (
            "Put the tags (between commas) or the sentences of a caption in another order each time.")),
        _whole("keep_tokens", 0, 64, "Only with caption_shuffle: so many tags or sentences stay in front."),
        _whole("caption_variants", 1, 256, "Only with caption_shuffle: how many orders of each caption are encoded."),
    ]


def _run() -> list[io.Input]:
    return [
        _whole("batch_size", 1, 64, (
            "Images in one step. Each takes memory; gradient_accumulation_steps has the same effect and takes time.")),
        _whole("gradient_accumulation_steps", 1, 256, (
            "Batches that are averaged into one step. Raise it if training is restless and memory is short.")),
        _switch("gradient_checkpointing", (
            "Recompute activations instead of keeping them: a third more time, a fraction of the memory.")),
        _number("held_out", 0.0, 10000.0, 0.05, (
            "Images of each folder that are never trained on: a number, or below 1 a share. Their loss tells when to "
            "stop: it falls while the LoRA learns and rises when it overfits. A wired validation dataset does the "
            "same.")),
        _whole("validate_every", 1, 100000, "Steps between two measurements of the held-out images."),
        _whole("early_stop_patience", 0, 1000, (
            "End after so many measurements without a new lowest held-out loss. 0: train all steps.")),
        _whole("save_every", 1, 100000, "Steps between states on disk. A crash costs at most this many."),
        _whole("extra_steps", 0, 100000, (
            "Train a finished job so many steps further: set it and queue again. Not a new job; the learning rate "
            "follows the longer run.")),
        _whole("keep_states", 1, 100, (
            "How many of those states are kept, the newest. Live LoRA can use the LoRA of each; a state is about three "
            "times the size of the LoRA.")),
    ]
