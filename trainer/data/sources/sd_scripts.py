"""Reads dataset configurations of sd-scripts (kohya-ss/sd-scripts, `--dataset_config`, TOML), with the same images,
repeats, sizes and captions as there."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..captions.files import CaptionFiles
from ..captions.rules import CaptionRules
from ..naming import name_some, pasted, sentences
from ..pictures import masks
from ..pictures.augment import Augment
from ..pictures.buckets import FINEST, Buckets
from ..pictures.listing import entries, list_pictures
from . import sd_scripts_metadata
from .configuration import load_toml
from .folder import subfolders, unused_captions
from .foreign import program
from .found import Found
from .sd_scripts_keys import LARGEST, not_followed, problems

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
"""The extensions of the files that sd-scripts takes for images."""
CAPTION_RULES = tuple(field.name for field in fields(CaptionRules))
MOST_BYTES = 2**20
PATHS = ("image_dir", "metadata_file", "conditioning_data_dir")
AUGMENTATIONS = ("random_crop", "flip_aug", "color_aug")
Texts = dict[Path, tuple[str | None, Path | None]]
"""The caption of each image, or None if it lies beside it, and the caption file beside it."""


@dataclass(frozen=True, slots=True)
class _Subset:
    """Holds one subset with all that it inherits."""

    home: Path
    """The folder of the TOML file."""
    settings: dict[str, Any]
    buckets: tuple[Buckets, ...]


def read_toml(path: Path) -> tuple[list[Found], list[str]]:
    """Returns the images of all subsets, and a sentence for everything that is passed over or done in another way than
    in sd-scripts.

    An image comes once for each dataset that it is in. Raises ValueError with all that is wrong: it is no TOML,
    settings are unknown or unusable, or folders do not exist or have no images."""
    config = load_toml(path)
    if whose := program(config):
        raise ValueError(f"'{path}' {whose}")
    wrong, found, notes = problems(config), [], []
    for number, dataset in enumerate([] if wrong else config["datasets"], 1):
        inherited = {key: v for key, v in (config.get("general", {}) | dataset).items() if key != "subsets"}
        try:
            buckets = _buckets(inherited)
        except ValueError as err:
            wrong.append(f"Dataset {number}: {err}")
            continue
        notes += [f"Dataset {number}: {note}" for note in _about_sizes(inherited)]
        seen: set[str] = set()
        for place, own in enumerate(dataset["subsets"], 1):
            settings = {key: pasted(value) if key in PATHS else value for key, value in (inherited | own).items()}
            name, subset = f"Dataset {number}, subset {place}", _Subset(path.parent, settings, buckets)
            try:
                images, said = _images(subset, seen)
                found += images
                notes += [f"{name}: {note}" for note in said]
            except ValueError as err:
                wrong.append(f"{name}: {err}")
    if not wrong and not found:
        wrong.append("No subset has images with a num_repeats of at least 1.")
    if wrong:
        raise ValueError(f"The dataset configuration '{path}' cannot be used:\n" + "\n".join(dict.fromkeys(wrong)))
    return found, list(dict.fromkeys(notes + _not_read(found)))


def folders(path: Path) -> Iterator[Path]:
    """Yields the folders and files that a configuration is read from, without reading pictures or captions. Raises
    ValueError as `read_toml` does."""
    config = load_toml(path)
    subsets = [] if problems(config) else [own for dataset in config["datasets"] for own in dataset["subsets"]]
    for own in subsets:
        places = {key: path.parent / pasted(own[key]) for key in PATHS if key in own}
        yield from places.values()
        if "metadata_file" in places:
            yield from sd_scripts_metadata.folders(places["metadata_file"], places.get("image_dir", path.parent))


# The sizes

def _buckets(settings: dict[str, Any]) -> tuple[Buckets, ...]:
    """Returns the buckets of a dataset. There are none if the configuration has no resolution, which was then given to
    sd-scripts in another way. Raises ValueError if a size is impossible."""
    if "resolution" not in settings:
        return ()
    given = settings["resolution"]
    resolution = (given, given) if isinstance(given, int) else (given[0], given[1])
    if max(resolution) > LARGEST:
        raise ValueError(f"resolution must be at most {LARGEST}, got {given}. 512 to 1024 are usual.")
    if not settings.get("enable_bucket", False):
        if min(resolution) < FINEST or any(edge % FINEST for edge in resolution):
            raise ValueError(f"Without enable_bucket, resolution must be multiples of {FINEST}, got {given}. Correct "
                             "it, or set enable_bucket = true.")
        return (Buckets(resolution, enabled=False),)
    step = settings.get("bucket_reso_steps", 64)
    if step < FINEST or step % FINEST:
        raise ValueError(f"bucket_reso_steps must be a multiple of {FINEST}, got {step}. 64 is usual.")
    smallest = settings.get("min_bucket_reso", 256) // step * step
    largest = -(-settings.get("max_bucket_reso", 1024) // step) * step
    if not 0 < smallest <= min(resolution):
        raise ValueError(f"min_bucket_reso must be at least bucket_reso_steps ({step}) and at most the shorter edge of "
                         f"the resolution ({min(resolution)}), got {settings.get('min_bucket_reso', 256)}.")
    if largest < max(resolution):
        raise ValueError("max_bucket_reso must be at least the longer edge of the resolution "
                         f"({max(resolution)}), got {settings.get('max_bucket_reso', 1024)}.")
    return (Buckets(resolution, step, smallest, largest, not settings.get("bucket_no_upscale", False)),)


def _about_sizes(settings: dict[str, Any]) -> Iterator[str]:
    if "resolution" not in settings:
        yield "It has no resolution, so the sizes are those of LoRA Dataset Loader."
    elif not settings.get("enable_bucket", False):
        yield (f"enable_bucket is not on, so every image is cropped to {settings['resolution']}. Set enable_bucket = "
               "true for sizes near the images' own shapes.")


# The images

def _images(subset: _Subset, seen: set[str]) -> tuple[list[Found], list[str]]:
    """Returns the images of one subset, and sentences about it. `seen`: the folders or metadata files that this dataset
    had before. Raises ValueError if the subset cannot be read."""
    settings, notes = subset.settings, not_followed(subset.settings)
    source = "metadata_file" if "metadata_file" in settings else "image_dir"
    if source not in settings:
        raise ValueError("It has no image_dir. Say where its images are.")
    if settings.get("num_repeats", 1) < 1:
        return [], [f"num_repeats is {settings['num_repeats']}, so its images are left out."]
    if settings[source] in seen:
        return [], [f"{source} = '{settings[source]}' was there before in this dataset, so it is left out."]
    seen.add(settings[source])
    notes += [f"{key} = '{settings[key]}' is looked for beside the TOML file (sd-scripts looks where it is started)."
              for key in PATHS if key in settings and not Path(settings[key]).is_absolute()]
    if settings.get("keep_tokens_separator") and not _moves(settings):
        notes.append("keep_tokens_separator does nothing without shuffle_caption: "
                     f"'{settings['keep_tokens_separator']}' stays in the captions, as in sd-scripts.")
    if source == "metadata_file":
        file, folder = subset.home / settings[source], subset.home / settings.get("image_dir", ".")
        captions = sd_scripts_metadata.read(file, folder, settings)
        texts: Texts = {image: (caption, None) for image, caption in captions.items()}
        notes += _unnamed(subset, texts)
    else:
        images, left_out = _files(subset)
        texts, about = _captions(images, settings)
        notes += left_out + about
    no_images = {mask for masks in masks.among([*texts]).values() for mask in masks}
    texts = {image: text for image, text in texts.items() if image not in no_images}
    notes += sentences((sorted(mask.name for mask in no_images), "mask", "beside images passed over: only those in "
                        "conditioning_data_dir are used", ""))
    own, about = _masks(subset, [*texts])
    notes += about
    return [_found(subset, path, own[path], *text) for path, text in texts.items()], notes


def _moves(settings: dict[str, Any]) -> bool:
    return settings.get("shuffle_caption", False) or settings.get("caption_tag_dropout_rate", 0) > 0


def _found(subset: _Subset, path: Path, masks: tuple[Path, ...], caption: str | None, file: Path | None) -> Found:
    settings = subset.settings
    rules = CaptionRules(**{name: settings[name] for name in CAPTION_RULES if name in settings})
    return Found(path, settings.get("num_repeats", 1), 1.0, masks, caption=caption, caption_file=file,
                 rules=rules, augment=_augment(settings), buckets=subset.buckets,
                 masked=True if masks else settings.get("alpha_mask"), regularization=settings.get("is_reg", False))


def _augment(settings: dict[str, Any]) -> Augment | None:
    if not any(name in settings for name in AUGMENTATIONS):
        return None
    crop, flip, color = (settings.get(name, False) for name in AUGMENTATIONS)
    return Augment(crop="random" if crop else "centre", flip=flip, color=color)


def _folder(subset: _Subset, key: str) -> Path:
    folder = subset.home / subset.settings[key]  # an absolute path replaces `home`
    if not os.path.isdir(folder):  # unlike Path's, it returns False for a name that is too long
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise ValueError(f"The {key} '{folder}' {what}. Correct it. A path that is not absolute begins at the folder "
                         "of the TOML file.")
    return folder


def _files(subset: _Subset) -> tuple[list[Path], list[str]]:
    """Returns the images of a folder, and sentences about pictures that are left out. Raises ValueError if there are no
    images."""
    folder = _folder(subset, "image_dir")
    pictures, left_out = list_pictures(folder)
    images = [path for path in pictures if path.suffix.lower() in EXTENSIONS]
    if not images:
        files = [entry.name for entry in entries(folder) if os.path.isfile(entry.path)]
        there = f"it has {name_some(files)}" if files else "it is empty"
        raise ValueError(f"No images in the image_dir '{folder}' ({there}). Subfolders are not read: give each a "
                         "subset.")
    others = [path.name for path in pictures if path.suffix.lower() not in EXTENSIONS]
    return images, left_out + sentences((others, "file", "left out, which sd-scripts does not take for an image", ""))


def _not_read(found: list[Found]) -> list[str]:
    """Returns a sentence about the folders with pictures that lie in those that are read, but are not read."""
    read = {path.parent for entry in found for path in (entry.path, *entry.masks)}
    below = sorted({sub for place in read for sub in subfolders(place)} - read)
    return sentences(([f"{sub.parent.name}/{sub.name}" for sub in below if _has_pictures(sub)],
                      "folder", "with pictures not read, because of lying in the folder of another subset",
                      " Give each a subset to train them."))


def _has_pictures(place: Path) -> bool:
    try:
        return bool(list_pictures(place)[0])
    except ValueError:  # it is not read, so it need not be readable
        return False


def _captions(images: list[Path], settings: dict[str, Any]) -> tuple[Texts, list[str]]:
    """Returns the captions of images, and sentences about their files."""
    extension, notes = settings.get("caption_extension", ""), []
    if not extension:
        notes.append("caption_extension is not given, so captions are read from .caption, or else from .txt.")
    files = CaptionFiles(extension) if extension else CaptionFiles(".caption", ".txt")  # sd-scripts looks in this order
    beside = {image: files.of(image) for image in images}
    tokens = settings.get("class_tokens")
    return ({image: (None if os.path.isfile(file) else tokens, file) for image, file in beside.items()},
            notes + unused_captions(beside, files))


def _masks(subset: _Subset, images: list[Path]) -> tuple[masks.Found, list[str]]:
    """Returns the picture of the same name in conditioning_data_dir of each image, as sd-scripts does with
    --masked_loss (docs/masked_loss_README.md), and sentences about masks that are left out. Raises ValueError if an
    image has none."""
    if "conditioning_data_dir" not in subset.settings:
        return dict.fromkeys(images, ()), []
    folder = _folder(subset, "conditioning_data_dir")
    found, said = masks.inside(folder, images)
    if without := [image.name for image in images if not found[image]]:
        raise ValueError(f"No mask for {name_some(without)} in the conditioning_data_dir '{folder}'. Add a picture "
                         "with the same name.")
    return found, said


def _unnamed(subset: _Subset, named: Texts) -> list[str]:
    """Returns a sentence about the pictures of image_dir that the metadata file does not name."""
    pictures = list_pictures(_folder(subset, "image_dir"))[0] if "image_dir" in subset.settings else []
    return sentences(([path.name for path in pictures if path not in named],
                      "picture", "left out, which the metadata_file does not name", ""))
