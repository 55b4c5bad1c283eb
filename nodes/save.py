"""Save LoRA: writes a LoRA into models/loras, ready for LoraLoader in the same graph."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.comfy import loras
from ..trainer.comfy.paths import loras_folder
from ..trainer.jobs.saving import SaveAs
from ..trainer.jobs.workflow import Graph
from ..trainer.lora.file import FILE_DTYPES
from ..trainer.lora.formats import FORMATS, Format
from .choices import checked
from .jobs import EVERYBODY
from .types import CATEGORY, LoraModel, refusal, told


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraSave",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Writes the LoRA into models/loras, whole or not at all, with its recipe as metadata. A name "
                        "that is taken gets a number: nothing is overwritten. A training does so by itself when it "
                        "ends or is stopped, also in the background.",
            search_aliases=["export lora", "write lora", "convert lora"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                LoraModel.Input("lora", tooltip="From LoRA Train, or LoRA Merge and Resize."),
                io.String.Input("name", default="my_lora", tooltip=(
                    "The file's name. With a folder before it, such as people/anna, it is saved in that folder of "
                    "models/loras.")),
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
        return name is None or refusal(loras.check, name)

    @classmethod
    @checked
    def execute(cls, lora, name, dtype, format: Format = "ComfyUI", embed_workflow=False) -> io.NodeOutput:
        how = SaveAs(name, dtype, format, embed_workflow)
        graph = Graph(cls.hidden.prompt or {}, "", (cls.hidden.extra_pnginfo or {}).get("workflow"))
        job = EVERYBODY.book_of_prompt().get(lora.job) if getattr(lora, "job", "") else None
        file = job.saving.save(lora, how, graph) if job else loras.Loras().write(lora, how, graph)
        return io.NodeOutput(file, str(loras_folder() / file), ui=told(f"Saved {file}"))
