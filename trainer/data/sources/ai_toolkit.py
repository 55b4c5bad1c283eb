"""Reads datasets as ai-toolkit's job configurations describe them."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...disk.text import check_text
from ..captions import brackets
from ..captions import files as captions
from ..captions.files import CaptionFiles
from ..captions.rules import CaptionRules
from ..naming import name_some, pasted
from ..parsing import parse_json
from ..pictures import masks
from ..pictures.augment import Augment
from ..pictures.buckets import FINEST, Buckets
from ..pictures.listing import list_pictures
from .ai_toolkit_keys import KNOWN, PASSED_OVER, REFUSED
from .configuration import load
from .folder import check_folder, shared_captions, unused_captions, with_masks
from .foreign import of_another
from .found import Found

MAX_RESOLUTION = 4096
STEP = 32
"""The step of edges in pixels that ai-toolkit has for models with tokens of 16 pixels (8 pixels for a latent, 2 latents
for a token): it is twice that, see `get_bucket_divisibility`."""
ROUNDED = ("Picture sizes are chosen as sd-scripts does without enlarging, in steps of 32 pixels; ai-toolkit's are "
           "often one or more steps longer.")
LEFT_OUT = ("_controls", *masks.FOLDERS)
"""Folders whose pictures are not trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Describes one dataset of a configuration."""

    folder: Path
    trigger_word: str
    default_caption: str
    extension: str
    mask_folder: Path | None
    alpha_mask: bool
    common: Found
    """What all images of the dataset have in common. Its path is the folder's."""


def read_config(path: Path) -> tuple[list[Found], list[str]]:
    """Returns the images of the datasets in a job configuration, YAML or JSON, and sentences about what is not
    followed.

    The file may also be a bare list of datasets, or one dataset. Paths begin at the folder of the file. Raises
    ValueError that names the file and all that is wrong in it."""
    found, said, problems = [], [], []
    config = load(path)
    if whose := of_another(config):
        raise ValueError(f"'{path}' {whose}")
    for number, entry in enumerate(_datasets(path, config), 1):
        try:
            block = _block(entry, path.parent)
            images, about = _images(block)
            found += images
            said += [f"Dataset {number} ('{block.folder.name}'): {what}" for what in (*_passed_over(entry), *about)]
        except ValueError as err:
            problems.append(f"Dataset {number}: {err}")
    if problems:
        raise ValueError(f"'{path}' cannot be used:\n" + "\n".join(problems))
    return found, said + ([ROUNDED] if any(entry.buckets for entry in found) else [])


def folders(path: Path) -> Iterator[Path]:
    """Yields the folders that a configuration is read from, without reading what lies in them. Raises ValueError as
    `read_config` does."""
    for entry in _datasets(path, load(path)):
        block = _block(entry, path.parent)
        yield from _folders(block)
        yield from filter(None, [block.mask_folder])


def _datasets(path: Path, config: Any) -> list[dict[str, Any]]:
    """Returns the datasets of all processes. One without a trigger word gets that of its process. Settings that are
    null are left out."""
    inner = config.get("config", config) if isinstance(config, dict) else config
    processes = inner.get("process", [inner]) if isinstance(inner, dict) else [{"datasets": inner}]
    entries = []
    for process in processes if isinstance(processes, list) else [processes]:
        if not isinstance(process, dict):
            continue
        blocks = [process] if {"folder_path", "dataset_path"} & {*process} else process.get("datasets")
        for entry in blocks if isinstance(blocks, list) else []:
            if not isinstance(entry, dict):
                raise ValueError(f"'{path}': a dataset must have settings such as folder_path: cats, got "
                                 f"{str(entry)[:40]!r}.")
            common = {"trigger_word": process.get("trigger_word")}
            given = {str(key): value for key, value in entry.items() if value is not None}
            entries.append({key: value for key, value in (common | given).items() if value is not None})
    if not entries:
        raise ValueError(f"'{path}' has no datasets. A configuration of ai-toolkit has them under config, process, "
                         "datasets, each with a folder_path.")
    return entries


def _block(entry: dict[str, Any], home: Path) -> Block:
    """Returns a dataset as its settings describe it. Raises ValueError if they are unknown or impossible."""
    problems = [*_unknown(entry), *_refused(entry)]
    if problems:
        raise ValueError(" ".join(problems))
    if not (place := pasted(_text(entry, "dataset_path")) or pasted(_text(entry, "folder_path"))):
        raise ValueError("it has no folder_path.")
    folder = Path(os.path.normpath(home / place))
    check_folder(folder)
    mask_folder = Path(os.path.normpath(home / text)) if (text := pasted(_text(entry, "mask_path"))) else None
    if mask_folder and not os.path.isdir(mask_folder):
        raise ValueError(f"its mask_path '{name_some([str(mask_folder)])}' is no folder.")
    return Block(folder=folder, trigger_word=_text(entry, "trigger_word"),
                 default_caption=_text(entry, "default_caption"), mask_folder=mask_folder,
                 alpha_mask=_flag(entry, "alpha_mask"), common=_common(entry, folder),
                 extension=_text(entry, "caption_type") or _text(entry, "caption_ext") or "txt")


def _common(entry: dict[str, Any], folder: Path) -> Found:
    said = {"shuffle_tokens", "keep_tokens", "token_dropout_rate", "caption_dropout_rate"} & {*entry}
    augmented = {"flip_x", "random_crop"} & {*entry}
    augment = Augment(crop="random" if _flag(entry, "random_crop") else "centre", flip=_flag(entry, "flip_x"))
    return Found(folder, int(_number(entry, "num_repeats", 1, 1, 100_000, whole=True)),
                 _number(entry, "loss_multiplier", 1, 0, 1e6), (), rules=_rules(entry) if said else None,
                 augment=augment if augmented else None, buckets=_buckets(entry),
                 regularization=_flag(entry, "is_reg"))


def _rules(entry: dict[str, Any]) -> CaptionRules:
    caption_rate = _number(entry, "caption_dropout_rate", 0, 0, 1) if "caption_dropout_rate" in entry else None
    token_rate = _number(entry, "token_dropout_rate", 0, 0, 1)
    if _flag(entry, "cache_text_embeddings"):  # ai-toolkit then drops nothing
        caption_rate = token_rate = 0.0
    return CaptionRules(shuffle_caption=_flag(entry, "shuffle_tokens"), caption_dropout_rate=caption_rate,
                        keep_tokens=int(_number(entry, "keep_tokens", 0, 0, 1000, whole=True)),
                        caption_tag_dropout_rate=token_rate)


def _buckets(entry: dict[str, Any]) -> tuple[Buckets, ...]:
    given = entry.get("resolution", [])
    edges = [int(_number({"resolution": r}, "resolution", 0, 64, MAX_RESOLUTION, whole=True))
             for r in (given if isinstance(given, list) else [given])]
    square = _flag(entry, "square_crop") or not _flag(entry, "buckets", True)
    if square:
        edges = [edge // FINEST * FINEST for edge in edges]
    return tuple(Buckets((edge, edge), enabled=False) if square else Buckets((edge, edge), step=STEP, upscale=False)
                 for edge in dict.fromkeys(edges))


def _images(block: Block) -> tuple[list[Found], list[str]]:
    """Returns the images of a dataset's folder and of all folders in it, as ai-toolkit does, and sentences about what
    is left out. Raises ValueError if there are none."""
    found, said, files = [], [], CaptionFiles(block.extension)
    places = [*_folders(block)]
    for place in places:
        pictures, left_out = list_pictures(place)
        chosen, about_masks = with_masks(place, pictures)
        found += [replace(block.common, path=path, masks=own, caption_file=files.of(path))
                  for path, own in chosen.items()]
        said += left_out + about_masks
    if not found:
        raise ValueError(f"no images in '{block.folder}'. Choose a folder with .png, .jpg or .webp files.")
    used = {entry.path: entry.caption_file for entry in found if entry.caption_file}
    said += shared_captions(found) + unused_captions(used, files, places)
    found, about_masks = _masked(found, block)
    said += about_masks
    return [replace(entry, caption=_caption(entry, block)) for entry in found], said


def _folders(block: Block) -> Iterator[Path]:
    def refuse(err: OSError) -> None:
        raise ValueError(f"'{err.filename}' cannot be read ({err.strerror}). Look at its permissions.") from err

    for place, inside, _ in os.walk(block.folder, onerror=refuse):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and name.lower() not in LEFT_OUT
                           and not (block.mask_folder and os.path.samefile(Path(place, name), block.mask_folder)))
        check_folder(Path(place))
        yield Path(place)


def _masked(found: list[Found], block: Block) -> tuple[list[Found], list[str]]:
    """Returns the images with the masks that the dataset says, and sentences about masks that are left out: alpha
    channels, or else the pictures of the same names in its mask folder."""
    if block.alpha_mask:
        unused = f"mask_path is not used, because alpha_mask goes before: '{block.mask_folder}'."
        return [replace(entry, masks=(), masked=True) for entry in found], [unused] if block.mask_folder else []
    if not block.mask_folder:
        return found, []
    own, said = masks.inside(block.mask_folder, [entry.path for entry in found])
    return [replace(entry, masks=own[entry.path], masked=bool(own[entry.path])) for entry in found], said


def _caption(entry: Found, block: Block) -> str | None:
    """Returns the caption of an image's text file, or the default one. The trigger word is put in front if the caption
    lacks it, but not for regularization. None: the file cannot be read."""
    try:
        text = captions.read(entry.caption_file) if entry.caption_file else ""
    except ValueError:
        return None  # `scan` reads it again and says why
    if text and block.extension.lower().endswith("json"):
        text = _from_json(entry, text)
    caption = captions.one_line(text or "") or block.default_caption
    for placeholder in ("[trigger]", "[name]"):
        caption = caption.replace(placeholder, block.trigger_word)
    known = brackets.bare(block.trigger_word) in brackets.bare(caption)
    if block.trigger_word and not entry.regularization and not known:
        caption = f"{block.trigger_word} {caption}"
    return caption.strip()


def _from_json(entry: Found, text: str) -> str:
    """Returns the caption in a JSON file such as {"caption": "a cat"}. Raises ValueError if there is none."""
    try:
        caption = parse_json(text)["caption"]
    except (ValueError, LookupError, TypeError):
        caption = None
    if not isinstance(caption, str):
        raise ValueError(f"the caption of {entry.path.name} is not JSON like {{\"caption\": \"a cat\"}}. Correct it, "
                         "or set caption_ext to txt.")
    return caption


def _unknown(entry: dict[str, Any]) -> Iterator[str]:
    for key in sorted({*entry} - {*KNOWN}):
        near = difflib.get_close_matches(key, KNOWN, 1)
        yield f"ai-toolkit has no setting {key[:40]!r}{f' (is {near[0]} meant?)' if near else ''}."


def _refused(entry: dict[str, Any]) -> Iterator[str]:
    for key, usual in REFUSED.items():
        if key in entry and entry[key] != usual:
            yield f"{key} is {str(entry[key])[:40]!r}, which cannot be trained here. Take the setting out."


def _passed_over(entry: dict[str, Any]) -> Iterator[str]:
    for key, usual in PASSED_OVER.items():
        counts = key != "mask_min_value" or "mask_path" in entry or "alpha_mask" in entry  # ai-toolkit's UI writes it
        if counts and key in entry and entry[key] and entry[key] != usual:
            yield f"{key} is not followed."
    if entry.get("shuffle_tokens") and entry.get("keep_tokens"):
        yield "keep_tokens holds the first tokens in front; in ai-toolkit they are never dropped, but shuffled."
    if entry.get("token_dropout_rate") and entry.get("trigger_word"):
        yield "token_dropout_rate can drop the trigger word with the first token; set keep_tokens to keep it."


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, got {str(value)[:40]!r}. Put it between quotes.")
    check_text(key, value)
    return value.strip()


def _flag(entry: dict[str, Any], key: str, usual: bool = False) -> bool:
    value = entry.get(key, usual)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {str(value)[:40]!r}.")
    return value


def _number(entry: dict[str, Any], key: str, usual: float, low: float, high: float, whole: bool = False) -> float:
    """Returns the number of a setting. It may be a text, because YAML takes 5e-2 for one. Raises ValueError if it is
    not a number from `low` to `high`."""
    value = entry.get(key, usual)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high or (whole and number != int(number)):
        raise ValueError(f"{key} must be a {'whole ' if whole else ''}number from {low:g} to {high:g}, got "
                         f"{str(value)[:40]!r}.")
    return number
