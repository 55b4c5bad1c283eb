"""Captions pictures with a tagger of the WD14 kind: an ONNX file that gives each of its tags a probability.

Shapes: N tags, S the side of the square that the model takes."""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.pictures.pixels import to_image
from ..disk.packages import require
from .engine import Describe

GENERAL, CHARACTER = 0, 4
"""The categories in selected_tags.csv that are kept. Others, such as 9 (rating), are left out."""
USUAL_SIDE = 448
"""The side of the square in pixels that WD14 taggers take, for a graph that does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagger:
    """Describes pictures with a local ONNX tagger on the CPU. Its table of tags (tag_id, name, category, count) lies
    beside it, as selected_tags.csv or under its own name with .csv."""

    path: Path
    general: float = 0.35
    """The lowest probability with which a tag of what can be seen is kept."""
    character: float = 0.85
    """The lowest probability with which the name of a character is kept."""

    @property
    def name(self) -> str:
        return f"Tagger {self.path.name}"

    @property
    def settings(self) -> tuple[str | float, ...]:
        return str(self.path), self.general, self.character

    @property
    def max_side(self) -> int:
        return 1024  # well above what these models take, so that scaling twice costs nothing

    @contextlib.contextmanager
    def opened(self) -> Iterator[Describe]:
        """Loads the tagger and yields the function that describes pictures. Raises ValueError if there is no such file,
        if there is no table, or if the two do not belong together."""
        tags = read_tags(table_beside(self.path))
        session: Any = require("onnxruntime").InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        [given, *_], [gives, *_] = session.get_inputs(), session.get_outputs()
        side, channels_first = layout(given.shape)
        self._check(gives.shape[-1], len(tags))

        def describe(picture: Tensor, seed: int) -> str:
            pixels = square(picture, side)
            pixels = pixels.transpose(2, 0, 1) if channels_first else pixels
            [found, *_] = session.run(None, {given.name: np.ascontiguousarray(pixels[None])})
            return ", ".join(self._kept(tags, np.asarray(found, dtype=np.float64).reshape(-1)))

        yield describe

    def _kept(self, tags: list[tuple[str, int]], found: np.ndarray) -> list[str]:
        """Returns the names of characters first, then the other tags, each by how sure the model is. Raises ValueError
        if the values are no probabilities."""
        self._check(len(found), len(tags))
        if not (found.min() > -0.01 and found.max() < 1.01):  # half precision rounds
            raise ValueError(f"{self.path.name} gives values from {found.min():.3g} to {found.max():.3g} where a "
                             "tagger gives probabilities. Choose a tagger of the WD14 kind.")
        least = {GENERAL: self.general, CHARACTER: self.character}
        kept = [(category != CHARACTER, -p, name) for (name, category), p in zip(tags, found.tolist(), strict=True)
                if category in least and p >= least[category]]
        return [as_words(name) for *_, name in sorted(kept)]

    def _check(self, values: int | str | None, tags: int) -> None:
        """Raises ValueError if the graph says how many values it gives and these are not as many as the tags."""
        if isinstance(values, int) and values != tags:
            raise ValueError(f"{self.path.name} gives {values} values and its table names {tags} tags. Put the "
                             "selected_tags.csv that belongs to this tagger beside it.")


def table_beside(path: Path) -> Path:
    """Returns the path of the table with a tagger's tags. Raises ValueError if there is no table, or no tagger."""
    if path.suffix.lower() != ".onnx" or not os.path.isfile(path):
        raise ValueError(f"'{path}' is not an .onnx file. Give the path of a tagger of the WD14 kind, such as "
                         "/models/taggers/model.onnx, with its selected_tags.csv beside it.")
    candidates = [path.with_suffix(".csv"), path.with_name("selected_tags.csv")]
    if found := [candidate for candidate in candidates if os.path.isfile(candidate)]:
        return found[0]
    raise ValueError(f"There is no {candidates[1].name} beside '{path}' (nor {candidates[0].name}). Download it from "
                     "where you got the tagger, and put it there.")


def read_tags(path: Path) -> list[tuple[str, int]]:
    """Returns the names and categories of the tags, in the order of the model's values. Raises ValueError if it is no
    such table."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return [(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{path.name} is not a tagger's table: it needs the columns name and category, with a number "
                         "in the latter. Use the selected_tags.csv that belongs to the tagger.") from err


def layout(shape: list[int | str | None]) -> tuple[int, bool]:
    """Returns the side S of a graph's input, and whether its channels come first. Raises ValueError if the graph takes
    no pictures."""
    if len(shape) == 4 and 3 in (shape[1], shape[3]):
        channels_first = shape[1] == 3
        side = shape[2] if channels_first else shape[1]
        return (side if isinstance(side, int) and side > 0 else USUAL_SIDE), channels_first
    raise ValueError(f"The tagger's input has the shape {shape}, not that of one picture (1, S, S, 3) or (1, 3, S, S). "
                     "Choose a tagger of the WD14 kind.")


def square(picture: Tensor, side: int) -> np.ndarray:
    """Puts a picture (h, w, 3) in 0…1 in the middle of a white square and scales it: (S, S, 3) in 0…255, blue first."""
    image = to_image(picture)
    edge = max(image.size)
    page = Image.new("RGB", (edge, edge), "white")
    page.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    pixels = np.asarray(page.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.ascontiguousarray(pixels[:, :, ::-1])


def as_words(tag: str) -> str:
    """Turns the underscores of a tag into spaces. Faces made of characters, such as >_< and 0_0, keep them: no two
    letters stand together in them."""
    return tag.replace("_", " ") if re.search(r"[^\W_]{2}", tag) else tag
