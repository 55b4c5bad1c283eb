"""Saves and loads LoRA files: their names, how they are written into the loras folder, and the metadata that every one
of them has."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk.files import write_tensors
from ..disk.text import check_text
from ..model.family import Family
from .formats import Families, Format, write
from .layers import STORED
from .peft_config import beside
from .values import numbers

SUFFIX = ".safetensors"
LONGEST = 255 - len(f"_00002{SUFFIX}")
"""The longest name in UTF-8 bytes, so that a number and the suffix still fit. Linux takes 255 bytes and Windows 255
UTF-16 units, which are never more than the bytes. The same holds for the folders before it."""
LONGEST_WITH_FOLDERS = 512
"""The longest name with its folders, in UTF-8 bytes. A whole path has at most 1024 on macOS."""
UNFIT = re.compile(r'[:*?"<>|\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff]')
"""Characters that some system does not take in a name, or that nobody sees in it."""
DEVICE = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?")
"""The names that Windows keeps for devices, with any extension."""
FILE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SCALES = tuple(name for kind in STORED.values() for name in kind.more)
"""The ends of the names of tensors that scale whole rows."""


class Lora(dict[str, Tensor]):
    """A LoRA as a state dict, which is how ComfyUI's nodes hand it on. It also carries the metadata for its file."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = metadata
        self.job = ""
        """The id of the job that it comes from, if it comes from one."""


def about(family: Family, architecture: str, trigger: str) -> dict[str, str]:
    """Returns the metadata with which every file of ours begins (modelspec.*: Stability AI's ModelSpec 1.0.0).
    `architecture` is ModelSpec's name of the model that was trained. The caller must leave out what is empty."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": family.implementation,
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f"Trigger word: {trigger}" if trigger else "",
    }


def check_name(name: str) -> None:
    """Raises ValueError unless `name` can be a file name on every system, with or without folders before it and
    .safetensors behind it."""
    for part in _parts(name):
        _check_part(part)
    if (size := len(name.encode())) > LONGEST_WITH_FOLDERS:
        raise ValueError(f"The LoRA's name '{name[:20]}…' with its folders is too long for a disk: {size} bytes, and "
                         f"at most {LONGEST_WITH_FOLDERS} fit. Use fewer folders.")


def _parts(name: str) -> list[str]:
    """Returns the folders and the name of a file, which people write with either slash."""
    return re.split(r"[/\\]", _stem(name))


def _check_part(name: str) -> None:
    if not name.strip() or name != name.strip():
        raise ValueError(f"The LoRA needs a name without spaces around it, got {name!r}. Write for example "
                         "my_character, or people/my_character for a folder.")
    if ".." in name or UNFIT.search(name) or name.startswith(".") or name.endswith("."):
        raise ValueError(f"The LoRA's name must be a file name, with folders before it if you like, but without '..' "
                         f"or any of :*?\"<>|, got {name!r}. It is saved in ComfyUI's models/loras folder.")
    check_text("The LoRA's name", name)
    if (size := len(name.encode())) > LONGEST:
        raise ValueError(f"The LoRA's name '{name[:20]}…' is too long for a disk: {len(name)} letters are {size} "
                         f"bytes, and at most {LONGEST} fit. Write a shorter one.")
    if DEVICE.fullmatch(name):
        raise ValueError(f"Windows keeps the name {name!r} for a device. Write for example my_{name}")


def _stem(name: str) -> str:
    return name[:-len(SUFFIX)] if name.lower().endswith(SUFFIX) else name


def name_of(text: str) -> str:
    """Returns a file name for a LoRA, made of any text: what cannot be in a name becomes a hyphen."""
    bare = re.sub(rf'(?:{UNFIT.pattern}|[/\\\ud800-\udfff.\s])+', "-", text)[:LONGEST // 4].strip("-")
    try:
        check_name(bare)
    except ValueError:
        return f"lora-{bare}".strip("-")
    return bare


def save(lora: dict[str, Tensor], folder: Path, name: str, dtype: str, families: Families, format: Format = "ComfyUI",
         extra: dict[str, str] | None = None) -> Path:
    """Writes `name.safetensors`, or `name_00002.safetensors` and so on if that file exists: a name is never used twice,
    because ComfyUI remembers LoRA files by name. `name` may have folders before it. `extra` is added to the metadata.

    Raises ValueError for a bad name or a format that cannot hold the LoRA, OSError if the file cannot be written. In
    that case nothing is left behind."""
    check_name(name)
    *folders, name = _parts(name)
    folder = folder.joinpath(*folders)
    _check_values(lora)
    tensors = {key: _stored(key, value, dtype) for key, value in write(lora, format, families).items()}
    path, counter = folder / f"{name}{SUFFIX}", 1
    while os.path.exists(path):
        counter += 1
        path = folder / f"{name}_{counter:05}{SUFFIX}"
    facts = getattr(lora, "metadata", {}) | (extra or {})
    facts |= {"modelspec.title": path.stem, "ss_output_name": path.stem,
              "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    if format == "diffusers":
        facts["modelspec.implementation"] = "diffusers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, facts | hashes(tensors, facts))
    except OSError as err:
        raise OSError(f"The LoRA could not be written to '{folder}': {err.strerror or err}. Free some space there or "
                      "allow writing, then queue again.") from err
    return path


def _check_values(lora: dict[str, Tensor]) -> None:
    """Raises ValueError if a LoRA has no tensors, or values that nobody could read."""
    if not lora:
        raise ValueError("This LoRA has no tensors, so there is nothing to save. Wire in another one.")
    for key, value in lora.items():
        numbers(key, value)


def _stored(key: str, value: Tensor, dtype: str) -> Tensor:
    """Returns a tensor as it is saved. Numbers for whole layers, rows or columns are fp32: they are few. So is a matrix
    with a number that is too large for fp16 and would become infinite."""
    found = value.to(torch.float32 if value.ndim < 2 or key.endswith(SCALES) else FILE_DTYPES[dtype])
    return (found if found.isfinite().all() else value.float()).contiguous()


def hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Returns the hashes by which LoRA managers recognise a file, whatever is written into its metadata later.

    ModelSpec and sd-scripts take the SHA-256 of everything after the header. The older hash of sd-scripts is the first
    8 digits of the SHA-256 of the 64 KiB that begin at 1 MiB, in a file that has only the ss_* metadata."""
    content = safetensors.torch.save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    whole = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"modelspec.hash_sha256": f"0x{whole}", "sshs_model_hash": whole, "sshs_legacy_hash": legacy}


def load(path: Path) -> Lora:
    """Reads a LoRA file, with its metadata and PEFT's configuration. Raises ValueError if it is not a safetensors file.

    The tensors are copies: Windows refuses to replace a file that is mapped into memory."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
            return Lora(tensors, {**beside(path, tensors), **(file.metadata() or {})})
    except SafetensorError as err:
        raise ValueError(f"'{path.name}' cannot be read as safetensors ({err}). Choose a file that ends in "
                         ".safetensors; if this one does, get it again.") from err
