"""LoRA Dataset Loader: finds images and captions in a folder, an archive, or another trainer's configuration."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import get_args

from comfy_api.latest import io, ui

from ..trainer.comfy.paths import dataset_folder
from ..trainer.comfy.progress import show_progress
from ..trainer.comfy.tokens import counter
from ..trainer.data.cache import trim
from ..trainer.data.item import Dataset, OnMissingCaption
from ..trainer.data.pictures.augment import Augment, Crop
from ..trainer.data.pictures.masks import Masks
from ..trainer.data.places import fingerprint
from ..trainer.data.report import report as reports
from ..trainer.data.report.sheet import contact_sheet, report_picture
from ..trainer.data.scan import Cut, OnBadImage, scan
from ..trainer.data.sources.choose import check
from .choices import checked
from .jobs import EVERYBODY
from .types import CATEGORY, LoraDataset, refusal, told

SMALLEST, LARGEST = 64, 2048
"""The smallest and the largest resolution."""


class DatasetLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraDataset",
            display_name="LoRA Dataset Loader",
            category=CATEGORY,
            description="Finds the images to train on and their captions, in text files beside them (cat.png, cat.txt) "
                        "or in a table, checks every one before any model is loaded, and shows what it found.",
            search_aliases=["training images", "load dataset", "image folder"],
            is_output_node=True,
            inputs=[
                io.String.Input("folder", default="demo_dataset", tooltip=(
                    "The folder with your images: an absolute path, or a folder under ComfyUI's input folder. "
                    "Subfolders named like 10_name are read too, each image 10 times an epoch; so is metadata.jsonl or "
                    "metadata.csv. A .zip, a dataset .toml of sd-scripts and a .yaml or .json of ai-toolkit work as "
                    "well. 'demo_dataset' comes with LiveLoRA.")),
                resolution_input(
                    "512 is fast and enough for most LoRAs; 768 or 1024 for fine detail, at two to four times the time "
                    "and memory. If another trainer's configuration names a resolution, that one is used."),
                io.String.Input("trigger_word", default="", tooltip=(
                    "The word that will call your LoRA, best one that means nothing else, like ohwx_cat. It is noted "
                    "in the LoRA file. The LoRA Captioner can write it into the captions.")),
                missing_captions_input(),
                io.Combo.Input("bad_images", options=list(get_args(OnBadImage)), advanced=True, tooltip=(
                    "What to do with images that cannot be read, are too large or have an unusable mask. refuse: name "
                    "them and stop. skip: leave them out.")),
                io.Combo.Input("masks", options=list(get_args(Masks)), default="ignore", optional=True, advanced=True,
                               tooltip=(
                    "Train all of each image, or only what its mask shows: white in a picture cat-masklabel.png or "
                    "cat_mask.png beside cat.png, or in mask/cat.png, else what is not transparent in the image "
                    "itself. Use it to keep backgrounds or other people out of the LoRA.")),
                *cutting(),
                clip_input(),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, folder) -> bool | str:
        """Refuses, before anything runs, what is not there, has no images, or cannot be read as a configuration.
        ComfyUI repeats an error for each parameter of this method, so it has only one. The rest is checked in
        `execute`, which runs first because this is an output node."""
        return folder is None or refusal(_check, folder)

    @classmethod
    def fingerprint_inputs(cls, folder, **_) -> str:
        """Returns a value that changes when a file changes in a place that is read."""
        if folder is None:  # linked: ComfyUI has not computed it yet
            return ""
        return fingerprint(dataset_folder(folder))

    @classmethod
    @checked
    def execute(cls, folder, resolution, trigger_word, missing_captions, bad_images, masks: Masks = "ignore",
                clip=None, **cut) -> io.NodeOutput:
        scratch = EVERYBODY.scratch()
        dataset = scan(dataset_folder(folder), cut=cut_of(resolution, **cut), trigger_word=trigger_word.strip(),
                       scratch=scratch, on_bad_image=bad_images, on_missing_caption=missing_captions, masks=masks,
                       tell=show_progress)
        trim(scratch, "unpacked/*")
        return shown(cls, dataset, clip)


def _check(folder: str) -> None:
    """Raises ValueError if a dataset cannot be read. What has not changed since it was good is not looked at again."""
    source = dataset_folder(folder)
    _check_once(source, fingerprint(source))


@functools.lru_cache
def _check_once(source: Path, fingerprint: str) -> None:
    check(source)


def resolution_input(more: str) -> io.Input:
    """Returns the input for the resolution. `more` ends its tooltip."""
    return io.Int.Input("resolution", default=512, min=SMALLEST, max=LARGEST, step=16, tooltip=(
        "Images are trained at about resolution × resolution pixels, in the shape that fits each best. " + more))


def missing_captions_input() -> io.Input:
    """Returns the input that says what happens to images without a caption."""
    return io.Combo.Input("missing_captions", options=list(get_args(OnMissingCaption)), tooltip=(
        "What LoRA Train does with images that have no caption. refuse: it names them and does not start; LoRA "
        "Captioner can write them before. use the trigger word: it trains them with the trigger word alone."))


def clip_input() -> io.Input:
    """Returns the input that takes a CLIP for the report."""
    return io.Clip.Input("clip", optional=True, tooltip=(
        "Wire in the CLIP you train with: the report then counts the tokens of the captions and names those that are "
        "too long for it."))


def cutting() -> list[io.Input]:
    """Returns the inputs that say how pictures are brought to size."""
    return [
        io.String.Input("more_resolutions", default="", optional=True, advanced=True, tooltip=(
            "Other resolutions that every image is trained at as well, such as 768, 1024. The LoRA then works at all "
            "of them; each is another picture to train on.")),
        io.Boolean.Input("upscale", default=False, optional=True, advanced=True, tooltip=(
            "Off: an image that is smaller than the training resolution is trained at its own size. On: it is "
            "enlarged, and the LoRA learns its blur.")),
        io.Combo.Input("crop", options=list(get_args(Crop)), default="centre", optional=True, advanced=True,
                       tooltip=(
            "Which part of an image stays where it is longer than its training shape. top keeps heads; random takes "
            "four different parts in turn.")),
        io.Boolean.Input("flip_aug", default=False, optional=True, advanced=True, tooltip=(
            "Also train every image mirrored. It stretches a small dataset; not for faces, text, or anything that has "
            "a left and a right.")),
        io.Boolean.Input("color_aug", default=False, optional=True, advanced=True, tooltip=(
            "Also train every image in slightly other colours. Not for a style, whose colours are what you want.")),
    ]


def outputs() -> list[io.Output]:
    """Returns the outputs of a node that makes a dataset: the dataset and its report."""
    return [
        LoraDataset.Output("dataset", display_name="dataset",
                           tooltip="The images and captions, for LoRA Captioner and LoRA Train."),
        io.String.Output("report", display_name="report", tooltip="What was found, as text."),
        io.String.Output("report_json", display_name="report (JSON)",
                         tooltip="The report as JSON with every finding and its files, for other programs."),
        io.Image.Output("report_picture", display_name="report (picture)",
                        tooltip="Sizes, and what to mend, as a picture."),
        io.Image.Output("contact_sheet", display_name="contact sheet",
                        tooltip="The first images with their captions, as they will be cut."),
    ]


def cut_of(resolution: int, more_resolutions: str = "", upscale: bool = False, crop: Crop = "centre",
           flip_aug: bool = False, color_aug: bool = False) -> Cut:
    """Returns how to bring pictures to size, from the inputs of `cutting`. Raises ValueError for resolutions that are
    not numbers that are allowed."""
    words = more_resolutions.replace(",", " ").replace(";", " ").split()
    wrong = [word for word in words if not word.isdecimal() or not SMALLEST <= int(word) <= LARGEST]
    if wrong:
        raise ValueError(f"more_resolutions must be numbers from {SMALLEST} to {LARGEST} such as '768, 1024', got "
                         f"{', '.join(map(repr, wrong))}.")
    return Cut(resolution=resolution, more_resolutions=tuple(map(int, words)), upscale=upscale,
               augment=Augment(crop=crop, flip=flip_aug, color=color_aug))


def shown(node: type[io.ComfyNode], dataset: Dataset, clip) -> io.NodeOutput:
    """Returns what a node puts out and shows: a dataset with its report."""
    report = reports.make(dataset, *counter(clip)) if clip is not None else reports.make(dataset)
    sheet = ui.PreviewImage(contact_sheet(dataset.items)[None], cls=node)
    return io.NodeOutput(dataset, report.text, json.dumps(report.as_dict(), indent=1, ensure_ascii=False),
                         report_picture(report)[None], contact_sheet(dataset.items, captions=True)[None],
                         ui={**sheet.as_dict(), **told(report.text, report.warnings)})


def check_own_files(dataset: Dataset) -> None:
    """Raises ValueError if captions would be written beside copies that LiveLoRA made, where nobody finds them."""
    if any(item.path.is_relative_to(EVERYBODY.scratch()) for item in dataset.items):
        raise ValueError("write_files is on, but this dataset comes from a zip or from other nodes, so its files are "
                         "copies that LiveLoRA made. Unpack the zip (or save the images to a folder) and load that, or "
                         "turn write_files off and keep the captions with LoRA Caption Review's table.")
