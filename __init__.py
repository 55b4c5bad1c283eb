"""LiveLoRA: trains LoRAs inside ComfyUI, on the Flux model that is already loaded, and hands them to LoraLoader."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./web"


class LiveLora(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes import (
            caption,
            dataset,
            dataset_images,
            demo_model,
            grid,
            live,
            memory_plan,
            merge,
            preview,
            quantize,
            review,
            save,
            train,
        )

        return [dataset.DatasetLoader, dataset_images.DatasetFromImages, caption.Captioner, review.CaptionReview,
                train.Train, preview.SamplePreview, save.SaveLora, live.Live, grid.Grid, merge.MergeLoras,
                memory_plan.MemoryPlan, quantize.QuantizeModel, demo_model.DemoModel]


async def comfy_entrypoint() -> LiveLora:
    from .nodes import routes

    routes.install()
    return LiveLora()
