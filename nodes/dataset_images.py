"""LoRA Dataset from Images: makes a dataset of what other nodes computed."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..trainer.comfy.families import FAMILIES, USUAL, names
from ..trainer.comfy.progress import show_progress
from ..trainer.data.cache import trim
from ..trainer.data.given import Given, dataset
from ..trainer.data.scan import scan
from .choices import checked
from .dataset import clip_input, cut_of, cutting, missing_captions_input, outputs, resolution_input, shown
from .jobs import EVERYBODY
from .types import CATEGORY

GUIDANCE = "guidance"
"""A part of a conditioning that may be there: the recipe says what takes its place."""


class DatasetFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraDatasetFromImages",
            display_name="LoRA Dataset from Images",
            category=CATEGORY,
            description="Takes images and captions from other nodes to train on, such as ComfyUI's own dataset nodes: "
                        "a batch or a list, or latents and conditioning that are encoded already.",
            search_aliases=["training images", "image batch", "dataset"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Image.Input("images", optional=True, tooltip="A batch or a list of images."),
                io.String.Input("captions", optional=True, force_input=True, tooltip=(
                    "A list with a caption for each image, or one text with a caption in each line; one caption alone "
                    "is for all images.")),
                io.Mask.Input("masks", optional=True, tooltip=(
                    "One mask for each image: only what is painted (white) is trained.")),
                io.Latent.Input("latents", optional=True, tooltip=(
                    "In place of images: latents from the VAE of the model that is trained, as Resolution Bucket gives "
                    "them.")),
                io.Conditioning.Input("conditioning", optional=True, tooltip=(
                    "In place of captions: conditioning from the CLIP of the model that is trained. Captions that are "
                    "encoded already cannot be shuffled or edited.")),
                resolution_input("Latents keep the size that they have."),
                io.String.Input("trigger_word", default="", tooltip=(
                    "The word that will call your LoRA, best one that means nothing else, like ohwx_cat.")),
                missing_captions_input(),
                *cutting(),
                clip_input(),
            ],
            outputs=outputs(),
        )

    @classmethod
    @checked
    def execute(cls, resolution, trigger_word, missing_captions, images=(), captions=(), masks=(), latents=(),
                conditioning=(), clip=(None,), **cut) -> io.NodeOutput:
        word = trigger_word[0].strip()
        parts: dict[str, Any] = {"images": [image for batch in images for image in batch],
                                 "masks": [mask for batch in masks for mask in batch],
                                 "latents": [part for batch in latents for part in _samples(batch)],
                                 "texts": [text for batch in conditioning for entry in batch for text in _texts(entry)]}
        count = len(parts["images"] or parts["latents"])
        given = Given(**parts, captions=_captions(captions, count))
        root = EVERYBODY.scratch() / "graph"
        read = partial(scan, cut=cut_of(resolution[0], **{name: values[0] for name, values in cut.items()}),
                       trigger_word=word, scratch=EVERYBODY.scratch(), masks="use" if masks else "ignore",
                       tell=show_progress,
                       on_missing_caption="use the trigger word" if given.texts else missing_captions[0])
        found = dataset(given, root, word, read)
        trim(root, "*")
        return shown(cls, found, clip[0])


def _samples(latents: dict[str, Any]) -> Tensor:
    """Returns the latents of a batch. Raises ValueError if they have a mask, which training would leave out."""
    if latents.get("noise_mask") is not None:
        raise ValueError("The latents hold a noise_mask as well, which training would leave out. Wire in images and "
                         "masks in place of the latents, or latents without a mask.")
    return latents["samples"]


def _captions(captions: list[str], count: int) -> list[str]:
    """Returns a caption for each image, from a list or from the lines of one text."""
    texts = [*captions]
    if len(texts) == 1 and count != 1:
        lines = [line.strip() for line in texts[0].splitlines() if line.strip()]
        texts = lines * count if len(lines) == 1 else lines
    return texts


def _texts(entry: list) -> list[dict[str, Any]]:
    """Returns the texts of a conditioning one by one. Raises ValueError if it lacks parts for every family that can be
    trained, or has parts that training would leave out."""
    cond, extra = entry
    given = {"cond": cond, **extra}
    there = {part for part, value in given.items() if value is not None}
    family = next((family for family in FAMILIES if {*family.text_parts} <= there), None)
    if family is None:
        raise ValueError(f"The conditioning lacks what {names()} takes: {' and '.join(USUAL.text_parts)} (it has "
                         f"{', '.join(given)}). Encode the captions with the CLIP that belongs to the model.")
    if more := sorted(there - {*family.text_parts, GUIDANCE}):
        raise ValueError(f"The conditioning holds {', '.join(more)} as well, which training would leave out. Wire in "
                         "the conditioning as CLIP Text Encode gives it.")
    parts = {part: given[part] for part in family.text_parts}
    if len({len(part) for part in parts.values()}) > 1:
        raise ValueError("The parts of the conditioning are for different numbers of captions: " + ", ".join(
            f"{len(part)} in {name}" for name, part in parts.items()) + ". Encode the captions again, together.")
    return [{name: part[i][None].float() for name, part in parts.items()} for i in range(len(cond))]
