"""LiveLoRA: trains LoRAs inside ComfyUI, on the Flux model that is already loaded, and hands them to LoraLoader."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./web"


class LiveLora(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes import caption, dataset, demo_model, merge, preview, save, train

        return [dataset.DatasetLoader, caption.Captioner, train.Train, preview.SamplePreview, save.SaveLora,
                merge.MergeLoras, demo_model.DemoModel]


async def comfy_entrypoint() -> LiveLora:
    return LiveLora()
