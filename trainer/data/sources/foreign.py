"""Recognises the files of other programs, to say what to choose in their place."""

from __future__ import annotations

import os
from typing import Any

from ..captions import table
from ..pictures.images import EXTENSIONS

SIGNS: tuple[tuple[set[str], str, str], ...] = (
    ({"concept_file_name"}, "OneTrainer", "path"), ({"path", "text"}, "OneTrainer", "path"),
    *(({key}, "SimpleTuner", "instance_data_dir")
      for key in ("data_backend_config", "instance_data_dir", "caption_strategy", "dataset_type")),
    ({"train_data_dir"}, "kohya's GUI", "train_data_dir"), ({"image_directory"}, "musubi-tuner", "image_directory"),
    ({"video_directory"}, "musubi-tuner", "image_directory"), ({"directory"}, "diffusion-pipe", "path"))
"""What other programs' files have: names that all occur in them, the program, and the name of the images' folder."""
IMAGES = ("file_name", "image_path", "image", "file")
"""What lists of captions call the name of an image."""
TO_TABLE = 'Write each image on a line of its own, like {"file_name": "cat.png", "text": "a cat"}, into metadata.jsonl.'


def program(config: Any) -> str:
    """Returns which program's configuration a file is, and what to choose in its place; or nothing if it is no known
    one's."""
    inside = [config] if isinstance(config, dict) else []
    lists = [config, *(entry.get(key) for entry in inside for key in ("concepts", "datasets", "directory"))]
    inside += [entry for entries in lists if isinstance(entries, list) for entry in entries if isinstance(entry, dict)]
    there = {str(key).lstrip("-") for entry in inside for key in entry}
    for names, whose, folder in SIGNS:
        if names <= there:
            place = next((f", which is {entry[folder][:200]!r}" for entry in inside
                          if isinstance(entry.get(folder), str) and entry[folder]), "")
            return f"is a configuration of {whose}, which is not read. Choose the images' folder{place}."
    return ""


def of_another(config: Any) -> str:
    """Returns what a JSON or YAML file is and what to choose in its place, if it is no configuration of ai-toolkit but
    another list of images or datasets; else nothing."""
    if whose := program(config):
        return whose
    if isinstance(config, dict):
        datasets = config.get("datasets")
        if isinstance(datasets, list) and any(isinstance(entry, dict) and "subsets" in entry for entry in datasets):
            return "is a dataset configuration of sd-scripts in JSON. Save the same settings as .toml, and choose that."
        if any(map(_is_of_image, config.values())) and all(isinstance(v, dict | None) for v in config.values()):
            return ("is a list of captions for sd-scripts. Choose a .toml with a subset that names it as metadata_file "
                    "and the images' folder as image_dir.")
        if any(isinstance(value, str) and os.path.splitext(str(name))[1].lower() in EXTENSIONS
               for name, value in config.items()):
            return f"is a list of captions. {TO_TABLE}"
    keys = {key for entry in config if isinstance(entry, dict) for key in entry} if isinstance(config, list) else set()
    if keys & {*IMAGES} and (keys & {*table.TEXTS} or table.KEY in keys):
        return f"is a list of captions. {TO_TABLE}"
    if "prompt" in keys:
        return "is a list of prompts for pictures, and no dataset. Choose the images' folder."
    return ""


def _is_of_image(about: Any) -> bool:
    return isinstance(about, dict) and bool({"caption", "tags", "train_resolution"} & {*about})
