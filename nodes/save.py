"""Save LoRA: writes a LoRA into models/loras, ready for LoraLoader in the same graph."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..trainer.comfy.families import FAMILIES
from ..trainer.comfy.paths import loras_folder
from ..trainer.lora.file import FILE_DTYPES, check_name, save
from ..trainer.lora.formats import FORMATS, Format
from .choices import checked
from .types import CATEGORY, LoraModel, refusal, told


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraSave",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Writes the LoRA into models/loras, whole or not at all, with its recipe as metadata. A name "
                        "that is taken gets a number: nothing is overwritten.",
            search_aliases=["export lora", "write lora", "convert lora"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                LoraModel.Input("lora", tooltip="From LoRA Train, or LoRA Merge and Resize."),
                io.String.Input("name", default="my_lora", tooltip=(
                    "The file's name, without folder and without .safetensors.")),
                io.Combo.Input("dtype", options=list(FILE_DTYPES), default="fp16", advanced=True, tooltip=(
                    "The kind of numbers in the file. fp16 is half the size of fp32 and looks the same; bf16 is "
                    "coarser but what some other programs want.")),
                io.Combo.Input("format", options=list(FORMATS), default="ComfyUI", optional=True, advanced=True,
                               tooltip=(
                    "Whose names the layers have in the file. ComfyUI reads all three. kohya is for sd-scripts, Forge "
                    "and other WebUIs; diffusers for Python's diffusers, which takes only LoRA, rsLoRA and DoRA.")),
                io.Boolean.Input("embed_workflow", default=False, optional=True, advanced=True, tooltip=(
                    "Puts the workflow into the file, as Save Image does. Leave it off for files that you give away: "
                    "it tells your folders and prompts.")),
            ],
            outputs=[
                io.AnyType.Output("lora_name", display_name="lora_name", tooltip=(
                    "The file's name as Load LoRA knows it: link it to Load LoRA's lora_name.")),
                io.String.Output("path", display_name="path", tooltip="Where the file lies."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name) -> bool | str:
        """Refuses, before anything runs, a name that cannot be a file's."""
        return name is None or refusal(check_name, name)

    @classmethod
    @checked
    def execute(cls, lora, name, dtype, format: Format = "ComfyUI", embed_workflow=False) -> io.NodeOutput:
        graph = cls._graph() if embed_workflow else None
        path = save(lora, loras_folder(), name, dtype, FAMILIES, format, graph)
        return io.NodeOutput(path.name, str(path), ui=told(f"Saved {path.name}"))

    @classmethod
    def _graph(cls) -> dict[str, str]:
        """Returns the graph as core's Save Image writes it: `prompt`, and `workflow` if it was queued from the browser.
        """
        found = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        return {key: json.dumps(value) for key, value in found.items() if value is not None}
