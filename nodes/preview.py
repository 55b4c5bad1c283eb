"""LoRA Sample Preview: says what to draw while training."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.comfy.families import USUAL
from ..trainer.comfy.sampling import SAMPLERS, SCHEDULERS
from ..trainer.model.host import SampleSettings
from ..trainer.samples import prompts as samples
from ..trainer.training.task import Preview
from .choices import checked
from .types import CATEGORY, LoraPreview, refusal

PROMPTS = """{trigger} in a snowy forest at dawn
{trigger}, a pencil drawing
a snowy forest at dawn"""
"""What a new node draws: the subject twice, and the last one to see what it looks like without."""


class SamplePreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraPreview",
            display_name="LoRA Sample Preview",
            category=CATEGORY,
            description="Prompts that are drawn while the LoRA trains, with the LoRA as it is then, by ComfyUI's own "
                        "KSampler. The pictures appear here. The first round shows the base model.",
            search_aliases=["training samples", "sample prompts", "validation images"],
            inputs=[
                io.String.Input("prompts", multiline=True, default=PROMPTS, tooltip=(
                    "One prompt a line. {trigger} is the dataset's trigger word. Ask for things that are not in your "
                    "training images, and once without the trigger word: that shows what leaks out of it. A line may "
                    "end with settings of its own: --w width, --h height, --d seed, --s sampler steps, --l cfg, "
                    "--g guidance, --m LoRA strength, --n negative prompt, such as: a cat --d 7 --m 0.8. Lines that "
                    "start with # are skipped.")),
                io.Int.Input("every_n_steps", default=100, min=1, max=100000, tooltip=(
                    "Steps between two rounds of pictures. Each round takes as long as drawing the prompts does.")),
                io.Int.Input("width", default=512, **_limits("width"), tooltip="Width in pixels."),
                io.Int.Input("height", default=512, **_limits("height"), tooltip="Height in pixels."),
                io.Int.Input("seed", default=42, **_limits("seed"), control_after_generate=False, tooltip=(
                    "The same seed in every round, so that only the LoRA changes.")),
                io.Int.Input("sampler_steps", default=20, **_limits("steps"), advanced=True, tooltip="As in KSampler."),
                io.Float.Input("cfg", default=1.0, **_limits("cfg", 0.1), advanced=True, tooltip=(
                    f"Classifier-free guidance. 1 for distilled models such as {USUAL.name}.")),
                io.Float.Input("guidance", default=3.5, **_limits("guidance", 0.1), advanced=True, tooltip=(
                    "The guidance input of a distilled model, if it has one.")),
                io.String.Input("negative", default="", advanced=True, tooltip=(
                    "Negative prompt. It matters only if cfg is not 1.")),
                io.Combo.Input("sampler_name", options=SAMPLERS, default="euler", advanced=True,
                               tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=SCHEDULERS, default="simple", advanced=True,
                               tooltip="As in KSampler."),
                io.Float.Input("strength", default=1.0, **_limits("strength", 0.05), advanced=True, optional=True,
                               tooltip=(
                    "How strongly the LoRA goes in, as in Load LoRA. 0 draws the base model. ComfyUI squares it for "
                    "OFT: 0.5 acts as 0.25.")),
            ],
            outputs=[LoraPreview.Output("preview", display_name="preview", tooltip="For LoRA Train.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(cls, prompts) -> bool | str:
        """Refuses, before anything runs, a line that cannot be read."""
        return prompts is None or refusal(samples.check, prompts)

    @classmethod
    @checked
    def execute(cls, prompts, every_n_steps, width, height, seed, sampler_steps, cfg, guidance, negative, sampler_name,
                scheduler, strength=1.0) -> io.NodeOutput:
        settings = SampleSettings(width=width, height=height, steps=sampler_steps, cfg=cfg, guidance=guidance,
                                  sampler_name=sampler_name, scheduler=scheduler, seed=seed, strength=strength)
        drawn = samples.parse_all(prompts, negative, settings)
        return io.NodeOutput((Preview(drawn, every_n_steps), cls.hidden.unique_id))


def _limits(setting: str, step: float | None = None) -> dict[str, Any]:
    """Returns the limits that a setting has behind a prompt as well, for an input."""
    known = samples.number(setting)
    return {"min": known.low, "max": known.high, "step": step or known.grid}
