"""LoRA Dataset Loader: a folder of images and captions."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..trainer.comfy.paths import dataset_folder
from ..trainer.data.dataset import scan
from ..trainer.data.find import find
from ..trainer.data.images import contact_sheet
from ..trainer.data.masks import Masks
from .types import CATEGORY, LoraDataset


class DatasetLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraDataset",
            display_name="LoRA Dataset Loader",
            category=CATEGORY,
            description="Finds the images to train on, with a caption in a text file beside each (cat.png, cat.txt), "
                        "checks every one before any model is loaded, and shows what it found.",
            search_aliases=["training images", "load dataset", "image folder"],
            is_output_node=True,
            inputs=[
                io.String.Input("folder", default="demo_dataset", tooltip=(
                    "The folder with your images: an absolute path, or a folder under ComfyUI's input folder. "
                    "Subfolders named like 10_name are read too, each image 10 times an epoch. 'demo_dataset' comes "
                    "with LiveLoRA.")),
                io.Int.Input("resolution", default=512, min=64, max=2048, step=16, tooltip=(
                    "Images are trained at about resolution × resolution pixels, in the shape that fits each best. 512 "
                    "is fast and enough for most LoRAs; 768 or 1024 for fine detail, at two to four times the time and "
                    "memory.")),
                io.String.Input("trigger_word", default="", tooltip=(
                    "The word that will call your LoRA, best one that means nothing else, like ohwx_cat. It is noted "
                    "in the LoRA file. The LoRA Captioner can write it into the captions.")),
                io.Combo.Input("missing_captions", options=["refuse", "use the trigger word"], advanced=True, tooltip=(
                    "Images without a caption: say which and stop, or train them with the trigger word alone.")),
                io.Combo.Input("bad_images", options=["refuse", "skip"], advanced=True, tooltip=(
                    "Images that cannot be read, are too large or have an unusable mask: say which and stop, or leave "
                    "them out.")),
                io.Combo.Input("masks", options=["ignore", "use"], default="ignore", optional=True, advanced=True,
                               tooltip=(
                    "Train all of each image, or only what its mask shows: white in a picture cat-masklabel.png or "
                    "cat_mask.png beside cat.png, else what is not transparent in the image itself. Use it to keep "
                    "backgrounds or other people out of the LoRA.")),
            ],
            outputs=[
                LoraDataset.Output("dataset", display_name="dataset",
                                   tooltip="The images and captions, for LoRA Captioner and LoRA Train."),
                io.String.Output("report", display_name="report", tooltip="What was found, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder) -> bool | str:
        """A folder that is not there, or has no images or unusable weights, is refused before anything runs. ComfyUI
        repeats an error for each input named here, so it is one; the rest is checked in `execute`, which runs first
        because this is an output node."""
        try:
            if folder is not None:
                find(dataset_folder(folder))
        except ValueError as err:
            return str(err)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, **_) -> list:
        """Changes when a file in the folder does."""
        if folder is None:  # linked: ComfyUI has not computed it yet
            return []
        files = sorted(p for p in dataset_folder(folder).rglob("*") if p.is_file())
        return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]

    @classmethod
    def execute(cls, folder, resolution, trigger_word, missing_captions, bad_images,
                masks: Masks = "ignore") -> io.NodeOutput:
        dataset = scan(dataset_folder(folder), resolution=resolution, trigger_word=trigger_word.strip(),
                       on_bad_image=bad_images, on_missing_caption=missing_captions, masks=masks)
        report = dataset.report()
        sheet = ui.PreviewImage(contact_sheet(dataset)[None], cls=cls)
        return io.NodeOutput(dataset, report, ui={**sheet.as_dict(), "text": (report,)})
