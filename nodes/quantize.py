"""Quantize Model for Training: makes a smaller MODEL of one that is too large for the card."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.comfy.families import names
from ..trainer.comfy.progress import show_progress
from ..trainer.comfy.quantize import KINDS, quantize
from ..trainer.disk.text import amount
from .choices import checked
from .types import CATEGORY, told


class QuantizeModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraQuantize",
            display_name="Quantize Model for Training",
            category=CATEGORY,
            description=f"Makes a smaller copy of a {names()} model, for a card that has not enough memory for it as "
                        "it is. LoRA Train trains on it, and KSampler draws with it.",
            search_aliases=["qlora", "nf4", "int8", "bitsandbytes", "low vram"],
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The model, straight from its loader; LoRAs may come between. It stays as it is.")),
                io.Combo.Input("kind", options=list(KINDS), default="int8", tooltip=(
                    "int8: one byte for a weight; pictures hardly change, and ComfyUI can save the model. nf4: a "
                    "little more than half a byte, for cards that int8 is too large for; pictures change in details.")),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip=(
                    "The quantized model, for LoRA Train, Load LoRA, KSampler and whatever else takes a MODEL.")),
                io.String.Output("report", display_name="report", tooltip="The sizes before and after, as text."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, kind) -> io.NodeOutput:
        quantized = quantize(model, kind, show_progress)
        report = f"{kind}: {amount(model.model_size())} → {amount(quantized.model_size())}"
        return io.NodeOutput(quantized, report, ui=told(report))
