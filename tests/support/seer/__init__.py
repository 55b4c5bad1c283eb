"""Custom nodes for the test server alone: a text encoder that can see, Qwen3.5 as ComfyUI has it, with tiny random
weights, which babbles by the same code as a real one; and one that tells what ComfyUI has loaded."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.qwen35 as qwen35
import torch
from comfy_api.latest import ComfyExtension, io

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "vision": {"hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "depth": 2}}


def make_clip() -> comfy.sd.CLIP:
    """Through ComfyUI's own table of sizes. It is the same in every process."""
    qwen35.QWEN35_MODELS["tiny"] = TINY
    target = comfy.supported_models_base.ClipTarget(qwen35.tokenizer("tiny"), qwen35.te(model_type="tiny"))
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in clip.cond_stage_model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    return clip


class Seer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestSeer", category="tests", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(make_clip())


class Loaded(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestLoaded", category="tests", is_output_node=True, not_idempotent=True,
                         inputs=[io.AnyType.Input("after")])

    @classmethod
    def execute(cls, after) -> io.NodeOutput:
        found = [type(loaded.model.model).__name__ for loaded in mm.current_loaded_models if loaded.model is not None]
        return io.NodeOutput(ui={"text": (", ".join(found),)})


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Seer, Loaded]


async def comfy_entrypoint() -> Extension:
    return Extension()
