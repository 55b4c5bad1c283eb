"""Says which settings a dataset configuration of sd-scripts may have, where, and what is wrong with those it has."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any

FOR_SUBSETS: dict[str, type] = {
    "num_repeats": int, "shuffle_caption": bool, "caption_separator": str, "keep_tokens": int,
    "keep_tokens_separator": str, "secondary_separator": str, "enable_wildcard": bool, "caption_prefix": str,
    "caption_suffix": str, "caption_extension": str, "class_tokens": str, "caption_dropout_rate": float,
    "caption_dropout_every_n_epochs": int, "caption_tag_dropout_rate": float, "color_aug": bool, "flip_aug": bool,
    "random_crop": bool, "face_crop_aug_range": tuple, "token_warmup_min": int, "token_warmup_step": float,
    "cache_info": bool, "custom_attributes": dict, "resize_interpolation": str}
"""The settings that may stand in [general], [[datasets]] and [[datasets.subsets]]. The innermost one counts."""
FOR_DATASETS: dict[str, type] = {
    "resolution": list, "batch_size": int, "enable_bucket": bool, "min_bucket_reso": int, "max_bucket_reso": int,
    "bucket_reso_steps": int, "bucket_no_upscale": bool, "network_multiplier": float, "validation_split": float,
    "validation_seed": int}
"""The settings that may stand in [general] and [[datasets]]."""
IN_SUBSETS: dict[str, type] = {"image_dir": str, "metadata_file": str, "conditioning_data_dir": str, "is_reg": bool,
                               "alpha_mask": bool}
"""The settings that may stand only in [[datasets.subsets]]."""
GENERAL, DATASET, SUBSET = "[general]", "[[datasets]]", "[[datasets.subsets]]"
ALLOWED = {GENERAL: FOR_DATASETS | FOR_SUBSETS, DATASET: FOR_DATASETS | FOR_SUBSETS, SUBSET: FOR_SUBSETS | IN_SUBSETS}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes", dict: "a table",
         list: "a whole number or two, such as [768, 512]", tuple: "two numbers"}
LARGEST = 16384
"""The longest edge of a bucket in pixels. Choosing among larger ones would take minutes, and no model could be trained
with them."""
RANGES = {"keep_tokens": (0, math.inf), "caption_dropout_rate": (0, 1), "caption_tag_dropout_rate": (0, 1),
          "num_repeats": (0, 100_000), "max_bucket_reso": (0, LARGEST)}
NOT_FOLLOWED = {
    "batch_size": (1, "the batch_size of LoRA Train counts"),
    "network_multiplier": (1, "the LoRA is trained at strength 1"),
    "validation_split": (0, "held_out of LoRA Train does that"),
    "validation_seed": (None, "held-out images are chosen by their content"),
    "resize_interpolation": (None, "images are resized as LiveLoRA does it"),
    "caption_dropout_every_n_epochs": (0, "use caption_dropout_rate"),
    "face_crop_aug_range": (None, "no faces are looked for"),
    "token_warmup_min": (1, "all tags are trained from the first step"),
    "token_warmup_step": (0, "all tags are trained from the first step"),
    "cache_info": (False, "what is known of pictures is always kept"),
    "custom_attributes": ({}, "nothing reads them")}
"""Settings that do nothing here, each with the value that sd-scripts takes if it is not set, and the reason why another
value changes nothing."""


def problems(config: dict[str, Any]) -> list[str]:
    """Returns a sentence for each setting of a configuration that is wrong by itself. Empty: nothing is wrong."""
    found = [f"'{key}' is not one of its parts, which are {GENERAL} and {DATASET}{_hint(key, GENERAL)}."
             for key in config if key not in ("general", "datasets")]
    datasets = config.get("datasets", [])
    if not _tables(datasets):
        return [*found, f"It has no {DATASET}. Choose the file that sd-scripts takes as --dataset_config, which is not "
                        "the one for --config_file."]
    if not isinstance(config.get("general", {}), dict):
        return [*found, f"'general' must be a table, {GENERAL}."]
    found += _of_table(config.get("general", {}), GENERAL, GENERAL)
    for number, dataset in enumerate(datasets, 1):
        subsets = dataset.get("subsets", [])
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        found += _of_table(own, f"dataset {number}", DATASET)
        if not _tables(subsets):
            found.append(f"Dataset {number} has no {SUBSET}, which say where its images are.")
            continue
        for place, subset in enumerate(subsets, 1):
            found += _of_table(subset, f"dataset {number}, subset {place}", SUBSET)
    return found


def not_followed(settings: dict[str, Any]) -> list[str]:
    """Returns a sentence for each setting that would do something in sd-scripts and does nothing here."""
    return [f"{key} = {settings[key]!r} is not followed: {why}." for key, (usual, why) in NOT_FOLLOWED.items()
            if settings.get(key, usual) != usual]


def _tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(table, dict) for table in value)


def _of_table(table: dict[str, Any], where: str, level: str) -> Iterator[str]:
    for key, value in table.items():
        kind = ALLOWED[level].get(key)
        low, high = RANGES.get(key, (-math.inf, math.inf))
        if kind is None:
            yield f"'{key}' ({where}) is no setting of {level}{_hint(key, level)}."
        elif not _fits(value, kind):
            yield f"{key} ({where}) must be {WORDS[kind]}, got {value!r}."
        elif kind in (int, float) and not low <= value <= high:
            allowed = f"{low} to {high}" if high < math.inf else f"at least {low}"
            yield f"{key} ({where}) must be {allowed}, got {value}."
        elif key in ("caption_separator", "image_dir", "metadata_file") and not value:
            yield f"{key} ({where}) is empty. Write something, or take it out."


def _fits(value: Any, kind: type) -> bool:
    if kind is list:
        return _fits(value, int) or (isinstance(value, list) and [type(edge) for edge in value] == [int, int])
    if kind is tuple:
        return isinstance(value, list) and len(value) == 2 and all(_fits(number, float) for number in value)
    return type(value) is kind or (kind is float and type(value) is int)


def _hint(key: str, level: str) -> str:
    """Returns words that say where a misplaced setting belongs, or which known one is most like it."""
    if places := [place for place, known in ALLOWED.items() if key in known]:
        return f"; it belongs in {places[-1]}"
    close = difflib.get_close_matches(key, [*ALLOWED[level], *("general", "datasets")], 1)
    return f"; did you mean '{close[0]}'" if close else ""
