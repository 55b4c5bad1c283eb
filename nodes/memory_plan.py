"""LoRA Memory Plan: tells how much memory a training would take, and how it would be used, without training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..trainer.comfy.host import ComfyHost
from ..trainer.data.pictures.pixels import to_tensor
from ..trainer.disk.text import amount
from ..trainer.model.fitting import DoesNotFit
from ..trainer.model.memory import Memory, Plan
from ..trainer.recipe.config import TrainConfig
from ..trainer.samples.bar import Part, bar
from ..trainer.training.planning import plan_before
from . import recipe
from .choices import checked
from .types import CATEGORY, LoraDataset, told

ASKED = ("adapter", "target_modules", "block_ranks", "adapter_dtype", "optimizer", "ema_decay", "batch_size",
         "gradient_accumulation_steps", "gradient_checkpointing", "leave_free")
"""The settings of a recipe that its memory depends on, besides the rank."""
EVERYTHING = 10**15


class MemoryPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraMemoryPlan",
            display_name="LoRA Memory Plan",
            category=CATEGORY,
            description="Tells how much memory a training would take on your graphics card or on another one, and how "
                        "it would be used, in seconds and without training. LoRA Train plans the same by itself.",
            search_aliases=["vram", "out of memory", "oom", "lora memory"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that is to be trained on. It is not loaded for this."),
                io.Clip.Input("clip", tooltip="The model's text encoders, to count the words of the captions."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                LoraDataset.Input("dataset", tooltip="From LoRA Dataset Loader: the sizes of its pictures count."),
                io.Float.Input("card", default=0.0, min=0.0, max=1000.0, step=1.0, tooltip=(
                    "Gigabytes of the graphics card to plan for. 0: this machine, with what is free now.")),
                recipe.plain("rank", 16),
                *(recipe.plain(name) for name in ASKED),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="The plan as text."),
                io.Image.Output("image", display_name="image", tooltip="The plan as a bar."),
                io.String.Output("json", display_name="json", tooltip="The plan as JSON, sizes in bytes."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, clip, vae, dataset, card, **settings) -> io.NodeOutput:
        host = ComfyHost(model, clip, vae)
        config = TrainConfig(steps=1, **settings)
        other = host.memory().on_card(card) if card else None
        memory, items = other or host.memory(), dataset.items
        try:
            plan, problem = plan_before(host, config, items, memory=other), ""
        except DoesNotFit as err:
            plan, problem = _least(host, config, items, memory), str(err)
        if plan is None:
            raise ValueError("The dataset's images are encoded already, so that their sizes are not known here. Wire "
                             "in a LoRA Dataset Loader.")
        lines = [problem or f"{plan.sentence()} {plan.advice}".rstrip(), *_by_size(plan, vae.downscale_ratio),
                 _range(host, config, items, memory)]
        parts = [Part("weights", plan.weights), Part("LoRA and optimizer", plan.fixed.lasting),
                 Part("a step", plan.work - plan.fixed.lasting)]
        picture = bar(f"{'Does not fit into' if problem else 'Fits into'} {amount(memory.available)}", parts,
                      memory.available)
        report = "\n".join(lines)
        return io.NodeOutput(report, to_tensor(picture)[None], json.dumps({**plan.as_dict(), "fits": not problem}),
                             ui=told(report, [problem] if problem else ()))


def _least(host: ComfyHost, config: TrainConfig, items: Any, memory: Memory) -> Plan | None:
    """Returns the plan that needs least, with as much memory as it needs."""
    enough = replace(memory, available=EVERYTHING, streams=False)
    found = plan_before(host, replace(config, gradient_checkpointing="all", batch_size=1), items, memory=enough)
    return found and replace(found, memory=memory)


def _by_size(plan: Plan, scale: int) -> Iterator[str]:
    """Yields a line for each size of pictures in the dataset, the largest first; latents are `scale` times smaller."""
    for size, kept in sorted(plan.kept.items(), key=lambda entry: -entry[0][-1] * entry[0][-2]):
        twice = plan.blocks - len(kept)
        yield (f"Pictures of {scale * size[-1]} × {scale * size[-2]}: {amount(plan.peaks[size])} a step, "
               f"{f'{twice} of {plan.blocks} blocks computed twice' if twice else 'no block computed twice'}, "
               f"{_operations(plan.batch_size * plan.flop[size])}.")


def _operations(flop: float) -> str:
    return f"{flop / 1e12:.1f} TFLOP" if flop >= 1e11 else f"{flop / 1e9:.1f} GFLOP"


def _range(host: ComfyHost, config: TrainConfig, items: Any, memory: Memory) -> str:
    """Returns what the fastest and the slowest way of this recipe need, in a sentence."""
    enough = replace(memory, available=EVERYTHING)
    fast, slow = (plan_before(host, replace(config, gradient_checkpointing=how), items, memory=enough)
                  for how in ("none", "all"))
    assert fast and slow, "the same items had a plan before"
    most, least = (amount(found.room + memory.weights) for found in (fast, slow))
    return (f"As fast as can be it needs {most}; with every block computed twice, a third slower, {least}. "
            "Below that, the weights are fetched for each step.")
