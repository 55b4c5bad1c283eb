"""Custom nodes for the test server alone: one that fails as others' nodes do, one that takes its time, and a route that
tells what LiveLoRA has left behind."""

from __future__ import annotations

import sys
import threading
import time

import comfy.model_management as mm
import torch
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

ERRORS = {"ValueError": ValueError("The test wanted this prompt to fail."),
          "OutOfMemoryError": torch.OutOfMemoryError("The test says that the GPU is full.")}


class Fail(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TroublemakerFail", category="tests", is_output_node=True, not_idempotent=True,
                         inputs=[io.Combo.Input("error", options=list(ERRORS)), io.Int.Input("seed")])

    @classmethod
    def execute(cls, error: str, seed: int) -> io.NodeOutput:
        raise ERRORS[error]


class Dawdle(io.ComfyNode):
    """Holds the prompt queue, and ends at ComfyUI's stop button."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TroublemakerDawdle", category="tests", is_output_node=True, not_idempotent=True,
                         inputs=[io.Float.Input("seconds"), io.Int.Input("seed")])

    @classmethod
    def execute(cls, seconds: float, seed: int) -> io.NodeOutput:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            mm.throw_exception_if_processing_interrupted()
            time.sleep(0.02)
        return io.NodeOutput()


@PromptServer.instance.routes.get("/troublemaker/health")
async def health(_: web.Request) -> web.Response:
    """What must be as it was before anything was trained."""
    [jobs] = [module for name, module in list(sys.modules.items()) if name.endswith("livelora.nodes.jobs")]
    return web.json_response({"threads": sorted(t.name for t in threading.enumerate()),
                              "idle": jobs.EVERYBODY.lease.idle, "in_training": getattr(mm, "in_training", False)})


class Troublemaker(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Fail, Dawdle]


async def comfy_entrypoint() -> Troublemaker:
    return Troublemaker()
