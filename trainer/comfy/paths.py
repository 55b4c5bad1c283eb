"""Where ComfyUI keeps things."""

from __future__ import annotations

from pathlib import Path

import folder_paths

PACK_DATASETS = Path(__file__).resolve().parents[2] / "example_workflows"


def dataset_folder(text: str) -> Path:
    """An absolute path as it is; else a folder under ComfyUI's input, or one that comes with LiveLoRA (demo_dataset).

    Raises ValueError if the text is empty or leads out of the input folder."""
    if not text.strip():
        raise ValueError("The dataset folder is empty. Give an absolute path, or the name of a folder under ComfyUI's "
                         f"input folder ({folder_paths.get_input_directory()}).")
    path, home = Path(text.strip()).expanduser(), Path(folder_paths.get_input_directory())
    if path.is_absolute():
        return path
    if ".." in path.parts:
        raise ValueError(f"The dataset folder '{text}' leads out of ComfyUI's input folder. Give an absolute path "
                         "instead.")
    own = PACK_DATASETS / path
    return own if own.is_dir() and not (home / path).exists() else home / path


def loras_folder() -> Path:
    """Where new LoRAs go: the first of ComfyUI's loras folders."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def lora_names() -> list[str]:
    """LoRA files as Load LoRA lists them."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """The file of a LoRA by its name in that list."""
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def jobs_folder() -> Path:
    """Where jobs live."""
    return Path(folder_paths.get_user_directory()) / "livelora" / "jobs"
