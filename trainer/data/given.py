"""Makes a dataset of what a graph computes. It is written to files once, so that all else works as with a folder.

Shapes: C latent channels, H W latent rows and columns, h w pixels."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..disk.files import creating_folder, write_atomic, write_tensors
from ..disk.text import check_text, counted
from ..model.host import Text
from .captions.files import MOST_BYTES
from .item import Dataset, Item
from .pictures.buckets import FINEST, LATENT
from .pictures.pixels import to_image

NODES = Path("other nodes")
"""What messages and the report name in place of the folder, which nobody chose."""
FILES = re.compile(r"(?:\bimage )?\b(\d{4,})(-masklabel\.png|\.png|\.txt)\b")
KINDS = {"-masklabel.png": "mask", ".png": "image", ".txt": "caption"}
"""What the files hold that a dataset is written to, by the ends of their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """Holds pictures or their latents, with a caption or an encoded caption for each.

    Raises ValueError if there are neither pictures nor latents or both, if captions or masks differ from them in
    number, if there are masks for latents, or if latents have an odd number of rows or columns."""

    images: Sequence[Tensor] = ()
    """Pictures (h, w, 3 or 4) in 0…1."""
    masks: Sequence[Tensor] = ()
    """Masks (h, w) in 0…1. Where a mask is 1, its image counts."""
    latents: Sequence[Tensor] = ()
    """Latents (C, H, W), as a VAE gives them."""
    captions: Sequence[str] = ()
    texts: Sequence[Text] = ()

    def __post_init__(self) -> None:
        if bool(self.images) == bool(self.latents):
            raise ValueError("Wire in images or latents, one of the two: got "
                             f"{counted(len(self.images), 'image')} and {counted(len(self.latents), 'latent')}.")
        if self.latents and self.masks:
            raise ValueError("Masks need images. Wire in the images in place of their latents.")
        for name, parts in (("captions", self.captions), ("conditioning", self.texts), ("masks", self.masks)):
            if parts and len(parts) != len(self):
                raise ValueError(f"Wire in one for each image: {counted(len(self), 'image')}, {len(parts)} in {name}.")
        sizes = [tuple(latents.shape[1:]) for latents in self.latents]
        if odd := [size for size in sizes if any(edge * LATENT % FINEST for edge in size)]:
            raise ValueError(f"{counted(len(odd), 'latent')} with an odd number of rows or columns, such as "
                             f"{odd[0][0]}×{odd[0][1]}. Bring the images to multiples of {FINEST} pixels before "
                             "encoding them.")

    def __len__(self) -> int:
        return len(self.images or self.latents)


def dataset(given: Given, root: Path, trigger_word: str, scan: Callable[[Path], Dataset]) -> Dataset:
    """Returns a dataset of everything in `given`, written to a folder of `root` that is named after its content.

    `scan` reads a folder of images. Raises ValueError if latents have no caption and there is no trigger word, or if a
    text cannot be written."""
    check_text("trigger_word", trigger_word)
    for i, caption in enumerate(given.captions, 1):
        check_text(f"Caption {i}", caption)
        if (size := len(caption.encode())) > MOST_BYTES:
            raise ValueError(f"Caption {i} has {size / 2**20:.1f} MB, and a caption has at most {MOST_BYTES / 2**20:g} "
                             "MB. Shorten it in the node that gives it.")
    folder = root / _digest(given)
    if folder.is_dir():
        os.utime(folder)
    else:
        root.mkdir(parents=True, exist_ok=True)
        with creating_folder(folder) as temporary:
            _write(given, temporary)
    captions = list(given.captions) or ["(encoded)" if given.texts else ""] * len(given)
    if given.latents:
        found = _of_latents(given, folder, [caption or trigger_word for caption in captions], trigger_word)
    else:
        for i, caption in enumerate(captions, 1):  # written anew each time: LoRA Captioner may have changed them
            write_atomic(folder / f"{i:04}.txt", caption.encode())
        try:
            found = scan(folder)
        except ValueError as err:
            raise ValueError(_numbered(str(err))) from err
        found = replace(found, folder=NODES, skipped=tuple(map(_numbered, found.skipped)))
    if not given.texts:
        return found
    items = (replace(i, text=folder / f"{i.path.name[:4]}.text.safetensors", has_caption=True) for i in found.items)
    return replace(found, items=tuple(items))


def _numbered(sentence: str) -> str:
    """Returns a sentence with "image 1" in place of "0001.png", a file that the person has not."""
    return FILES.sub(lambda found: f"{KINDS[found[2]]} {int(found[1])}", sentence)


def _of_latents(given: Given, folder: Path, captions: list[str], trigger_word: str) -> Dataset:
    if not all(captions):
        raise ValueError(f"{captions.count('')} of {counted(len(captions), 'latent')} without a caption. Wire in "
                         "captions or conditioning, or give a trigger word to be trained alone.")
    items = []
    for i, (latents, caption) in enumerate(zip(given.latents, captions, strict=True), 1):
        path = folder / f"{i:04}.latents.safetensors"
        size = latents.shape[2] * LATENT, latents.shape[1] * LATENT
        items.append(Item(path, caption, 1, size, size, hashlib.sha256(path.read_bytes()).hexdigest(), latents=path))
    edge = round(math.sqrt(items[0].size[0] * items[0].size[1]))
    return Dataset(NODES, edge, trigger_word, tuple(items))


def _digest(given: Given) -> str:
    digest = hashlib.sha256()
    texts = [part for text in given.texts for _, part in sorted(text.items())]
    for part in (*given.images, *given.masks, *given.latents, *texts):
        about = repr((part.dtype, tuple(part.shape))).encode()
        digest.update(about + part.float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _write(given: Given, folder: Path) -> None:
    for i, image in enumerate(given.images, 1):
        to_image(image).save(folder / f"{i:04}.png")
    for i, mask in enumerate(given.masks, 1):
        to_image(mask).save(folder / f"{i:04}-masklabel.png")
    for i, latents in enumerate(given.latents, 1):
        write_tensors(folder / f"{i:04}.latents.safetensors", {"latents": latents.float().contiguous()})
    for i, text in enumerate(given.texts, 1):
        write_tensors(folder / f"{i:04}.text.safetensors", text)
