"""Demo Flux Model: loads a tiny FLUX.1 that comes with the pack, to learn LoRA training without a download."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..trainer.comfy.demo_model import load_demo_model
from .types import CATEGORY

WEIGHTS = Path(__file__).parent / "demo_weights"


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraDemoModel",
            display_name="Demo Flux Model",
            category=CATEGORY,
            description="A FLUX.1 of 9 million parameters that draws emoji at 128 × 128 pixels. Same architecture, "
                        "same nodes, a thousandth of the size: a LoRA trains on a CPU in minutes. Prompts are emoji "
                        "names, such as 'red apple'.",
            search_aliases=["tiny flux", "example model"],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip=(
                    "The transformer. Use 24 steps, and cfg 3 without a LoRA or cfg 1 with one.")),
                io.Clip.Output("clip", display_name="clip", tooltip="Its text encoders."),
                io.Vae.Output("vae", display_name="vae", tooltip="Its VAE."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model(WEIGHTS))
