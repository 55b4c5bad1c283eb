"""Collects what a grid of samples shows: a job's pictures by step, or pictures drawn now by strength.

Shapes: h w pixels."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..data.pictures.pixels import to_image
from ..jobs.folder import JobFolder
from ..model.host import Host
from ..training.task import Sample
from .grid import Cells

log = logging.getLogger(__name__)

SAMPLE_NAME = re.compile(r"step_(\d+)_(\d+)\.png")
MOST_STRENGTH = 10.0


class Table(NamedTuple):
    """Holds pictures with the titles of their rows and columns."""

    cells: Cells
    rows: list[str]
    columns: list[str]


def saved(folder: JobFolder, most: int) -> Table:
    """Returns a job's samples, prompts × steps. There are at most `most` steps, evenly chosen, with the first and the
    last among them. A prompt that was changed on the way has a row for each of its wordings.

    Raises ValueError if there are none."""
    rounds: dict[int, dict[int, str]] = {}
    for name in folder.samples():
        if match := SAMPLE_NAME.fullmatch(name):
            rounds.setdefault(int(match[1]), {})[int(match[2])] = name
    steps = spread(sorted(rounds), most)
    found: dict[tuple[int, str], dict[int, Image.Image]] = {}
    for step in steps:
        for index, name in rounds[step].items():
            path = folder.sample_path(name)
            if path and (sample := _read(path)):
                found.setdefault((index, sample[1]), {})[step] = sample[0]
    if not found:
        raise ValueError(f"The job {folder.path.name} has no samples to show. Wire LoRA Sample Preview into its LoRA "
                         "Train, or set columns to 'strengths' to draw some now.")
    places = sorted(found, key=lambda place: place[0])
    cells: Cells = [[found[place].get(step) for step in steps] for place in places]
    return Table(cells, [prompt for _, prompt in places], [f"step {step}" for step in steps])


def spread(steps: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` steps, evenly chosen by their place, with the first and the last among them. If `most` is
    1, it returns the last."""
    if len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[-1]]
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def _read(path: Path) -> tuple[Image.Image, str] | None:
    """Returns a sample and its prompt; None if it cannot be read, or was not written by a job."""
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB"), json.loads(opened.info["livelora"])["prompt"]
    except (OSError, SyntaxError, ValueError, KeyError) as err:
        log.warning("The sample %s cannot be read (%s: %s)", path, type(err).__name__, err)
        return None


def parse_strengths(text: str) -> list[float]:
    """Reads numbers between commas. Raises ValueError that names every part that is not a number or out of range."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    bad = [part for part in parts if not _is_strength(part)]
    if bad or not parts:
        raise ValueError(f"strengths are numbers from -{MOST_STRENGTH:g} to {MOST_STRENGTH:g} with commas between, got "
                         f"{', '.join(map(repr, bad or [text]))}. Write for example 0, 0.5, 1")
    return [float(part) for part in parts]


def _is_strength(part: str) -> bool:
    try:
        return math.isfinite(float(part)) and abs(float(part)) <= MOST_STRENGTH
    except ValueError:
        return False


def drawn(host: Host, lora: dict[str, Tensor], samples: Sequence[Sample], strengths: Sequence[float],
          tell: Callable[[int, int], None]) -> Table:
    """Draws every sample with the LoRA at every strength; 0 is the base model. `tell` hears, before each picture and at
    the end, how many pictures are done and how many there will be.

    The caller holds the lease. Raises Interrupted if a person stops it."""
    texts = {text: host.encode_text(text) for sample in samples for text in (sample.prompt, sample.negative)}
    cells: Cells = [[] for _ in samples]
    total = len(samples) * len(strengths)
    for column, strength in enumerate(strengths):  # the outer loop: the model is patched once for each
        # Adding nothing is not the same as leaving a weight alone: a quantized one would be quantized a second time.
        draw = host.sampler(lora if strength else {}, strength)
        for row, sample in enumerate(samples):
            tell(column * len(samples) + row, total)
            image = draw(texts[sample.prompt], texts[sample.negative], sample.settings, _nobody_waits)
            cells[row].append(to_image(image))
    tell(total, total)
    return Table(cells, [sample.prompt for sample in samples], [f"strength {strength:g}" for strength in strengths])


def _nobody_waits() -> bool:
    return False
