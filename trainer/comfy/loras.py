"""Keeps LoRA files in ComfyUI's models/loras, where Load LoRA and other nodes find them."""

from __future__ import annotations

import json
import os

from torch import Tensor

from ..jobs.saving import SaveAs
from ..jobs.workflow import Graph
from ..lora.file import check_name, save
from .families import FAMILIES
from .paths import loras_folder


def check(name: str) -> None:
    """Raises ValueError if a LoRA of that name cannot be saved, because it can be no file's, or because a file stands
    where one of its folders should be."""
    check_name(name)
    home = loras_folder()
    for folder in (home / name.replace("\\", "/")).relative_to(home).parents[:-1]:
        if os.path.isfile(home / folder):
            raise ValueError(f"'{home / folder}' is a file, so the LoRA '{name}' cannot be saved in a folder of that "
                             "name. Choose another.")


class Loras:
    """Is the shelf for jobs (see `Shelf`): ComfyUI's first folder for LoRAs. Files are named as Load LoRA lists them.
    """

    def write(self, lora: dict[str, Tensor], how: SaveAs, graph: Graph | None) -> str:
        """Writes a new file and returns its name. Raises ValueError or OSError if it cannot."""
        texts = {"prompt": graph and graph.prompt, "workflow": graph and graph.workflow} if how.embed_workflow else {}
        folder = loras_folder()
        path = save(lora, folder, how.name, how.dtype, FAMILIES, how.format,
                    {key: json.dumps(value) for key, value in texts.items() if value is not None})
        return os.path.relpath(path, folder)

    def has(self, file: str) -> bool:
        """Tells whether a file is there."""
        return (loras_folder() / file).exists()
