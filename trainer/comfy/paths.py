"""Knows where ComfyUI keeps its files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import folder_paths

from ..data.captions.table import SUFFIXES
from ..data.naming import name_some, pasted

PACK_DATASETS = Path(__file__).resolve().parents[2] / "example_workflows"


def dataset_folder(text: str) -> Path:
    """Returns an absolute path as it is, else a folder under ComfyUI's input or one that comes with LiveLoRA
    (demo_dataset).

    Raises ValueError if the text is empty or leads out of the input folder."""
    if not pasted(text):
        raise ValueError("The dataset folder is empty. Give an absolute path, or the name of a folder under ComfyUI's "
                         f"input folder ({folder_paths.get_input_directory()}).")
    path, home = _path(text), Path(folder_paths.get_input_directory())
    if path.is_absolute():
        return path
    if ".." in path.parts:
        raise ValueError(f"The dataset folder '{text}' leads out of ComfyUI's input folder. Give an absolute path "
                         "instead.")
    own = PACK_DATASETS / path
    return own if os.path.isdir(own) and not os.path.exists(home / path) else home / path


def table_path(text: str) -> Path:
    """Returns an absolute path as it is, else a file under ComfyUI's input folder.

    Raises ValueError if it is no .csv or .jsonl file or leads out of the input folder."""
    path, home = _path(text), Path(folder_paths.get_input_directory())
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"A table is a .csv or a .jsonl file, got '{text}'. Give an absolute path, or a name under "
                         f"ComfyUI's input folder ({home}) such as captions.csv.")
    if not path.is_absolute() and ".." in path.parts:
        raise ValueError(f"The table '{text}' leads out of ComfyUI's input folder. Give an absolute path instead.")
    return home / path


def absolute_path(text: str, name: str, what: str) -> Path:
    """Returns the path that a person typed into the input `name`. Raises ValueError if it is not absolute; the message
    says that it must lead to `what`."""
    path = _path(text)
    if not path.is_absolute():
        raise ValueError(f"{name} must be the absolute path of {what}, got '{text}'.")
    return path


def _path(text: str) -> Path:
    """Returns the path that a person pasted. Raises ValueError if no file can have it: pathlib's own questions, such as
    `exists`, would raise errors of other kinds."""
    bare = pasted(text)
    try:
        bare.encode()  # Linux has names that are no text, but no message could hold one
        path = os.path.expanduser(bare)
        os.stat(path)
    except ValueError:
        raise ValueError(f"'{name_some([bare])[:80]}' has a character that no path can have. Write it anew.") from None
    except OSError as err:
        if err.errno == errno.ENAMETOOLONG:
            raise ValueError(f"The path '{bare[:80]}…' has {len(bare)} letters, more than a disk takes. Correct it: "
                             "did you paste other text here?") from err
    return Path(path)


def loras_folder() -> Path:
    """Returns the folder for new LoRAs: the first of ComfyUI's loras folders."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def lora_names() -> list[str]:
    """Returns the names of LoRA files as Load LoRA lists them."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """Returns the file of a LoRA, given its name in Load LoRA's list."""
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def own_folder(user: str) -> Path:
    """Returns the folder for a person's jobs and encodings. Raises ValueError if ComfyUI cannot have a user of that
    name."""
    folder = folder_paths.get_public_user_directory(user)
    if folder is None or Path(folder).parent != Path(folder_paths.get_user_directory()):
        raise ValueError(f"ComfyUI has no user '{user}'.")
    return Path(folder) / "livelora"
