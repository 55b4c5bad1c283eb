"""The pictures the demo model is made of: emoji drawn from two npm packages, as RGB tensors with their names."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image

SIZE = 128
"""Edge of a picture in pixels."""
SEED = 20
"""Decides which names go where."""
PACKAGES = {"noto": "@iconify-json/noto@1.2.9", "fluent": "@iconify-json/fluent-emoji-flat@1.2.6"}
TRAIN_NAMES = 24
HELD_OUT_NAMES = 64


def icons(style: str) -> dict:
    """`icons.json` of the npm package of `style`, fetched once with the npm client into the temporary folder."""
    folder = Path(tempfile.gettempdir()) / "livelora-emoji"
    path = folder / f"{style}.json"
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("npm was not found. Install Node.js: the emoji come as npm packages.")
        folder.mkdir(exist_ok=True)
        packed = subprocess.run([npm, "pack", "--silent", PACKAGES[style]], cwd=folder, check=True, capture_output=True,
                                text=True)
        with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
            path.write_bytes(archive.extractfile("package/icons.json").read())
    return json.loads(path.read_text(encoding="utf-8"))


def names(collection: dict) -> list[str]:
    """Names of the icons without skin-tone variants."""
    return sorted(n for n in collection["icons"] if "skin-tone" not in n and "-tone" not in n)


def draw(collection: dict, name: str, size: int = SIZE) -> Image.Image:
    """One icon on white, `size` pixels square, with a small margin."""
    icon = collection["icons"][name]
    width, height = (icon.get(side, collection[side]) for side in ("width", "height"))
    edge = max(width, height) * 9 / 8
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
           f'viewBox="{(width - edge) / 2} {(height - edge) / 2} {edge} {edge}">{icon["body"]}</svg>')
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))))
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn.convert("RGBA"))
    return page.convert("RGB")


def caption(name: str) -> str:
    """The words of a name: `red-apple` is captioned "red apple"."""
    return name.replace("-", " ")


def pictures(style: str, chosen: list[str] | None = None) -> tuple[list[str], torch.Tensor]:
    """Names and their pictures (N, 3, SIZE, SIZE), uint8."""
    collection = icons(style)
    chosen = names(collection) if chosen is None else chosen
    arrays = [np.asarray(draw(collection, name)) for name in chosen]
    return chosen, torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def split() -> tuple[list[str], list[str], list[str]]:
    """Names that both styles have: 24 to train the demo LoRA on, 64 held out, and the rest."""
    shared = sorted(set(names(icons("noto"))) & set(names(icons("fluent"))))
    random.Random(SEED).shuffle(shared)
    train, rest = shared[:TRAIN_NAMES], shared[TRAIN_NAMES:]
    return train, rest[:HELD_OUT_NAMES], rest[HELD_OUT_NAMES:]
