"""Save LoRA: into models/loras, ready for LoraLoader in the same graph."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer import export
from ..trainer.comfy.paths import loras_folder
from .types import CATEGORY, LoraModel


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraSave",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Writes the LoRA into models/loras, whole or not at all, with its recipe as metadata. A name "
                        "that is taken gets a number: nothing is overwritten.",
            search_aliases=["export lora", "write lora"],
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="From LoRA Train."),
                io.String.Input("name", default="my_lora", tooltip=(
                    "The file's name, without folder and without .safetensors.")),
                io.Combo.Input("dtype", options=list(export.DTYPES), default="fp16", advanced=True, tooltip=(
                    "Numbers in the file. fp16 is half the size of fp32 and looks the same; bf16 is coarser but what "
                    "some other programs want.")),
            ],
            outputs=[
                io.AnyType.Output("lora_name", display_name="lora_name", tooltip=(
                    "The file's name as Load LoRA knows it: link it to Load LoRA's lora_name.")),
                io.String.Output("path", display_name="path", tooltip="Where the file lies."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name) -> bool | str:
        """A name that cannot be a file's is refused before anything runs."""
        try:
            if name is not None:
                export.check_name(name)
        except ValueError as err:
            return str(err)
        return True

    @classmethod
    def execute(cls, lora, name, dtype) -> io.NodeOutput:
        path = export.save(lora, loras_folder(), name, dtype)
        return io.NodeOutput(path.name, str(path), ui={"text": (f"Saved {path.name}",)})
