"""Makes the dataset report: what was found, and what a person should look at before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...disk.text import counted
from ..item import Dataset
from ..naming import NAMED, name_some
from .caption_findings import about_captions, about_missing_captions, count_tokens, shortened
from .findings import Finding, about_pictures

REPEATS = ((20, (10, 15)), (51, (5, 8)))
"""The usual repeats (from, to) of an image, each behind the number of images below which they are usual. Trainers that
count epochs advise them."""
REPEATS_OF_MANY = (3, 5)
"""The usual repeats (from, to) for more images than REPEATS lists."""
SHOWN_BUCKETS = 8
"""The most sizes that the text lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Describes a dataset for a person, and for programs."""

    folder: Path
    images: int
    """The number of image files."""
    pictures: int
    """The number of pictures: images × resolutions."""
    with_repeats: int
    """The number of pictures that an epoch trains, with repeats."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """The smallest and the largest image by area, (width, height) in pixels."""
    buckets: tuple[tuple[tuple[int, int], int], ...]
    """The training sizes as ((width, height), number of pictures), the most used first."""
    masked: int
    weighted: int
    regularization: int
    repeats: tuple[int, int]
    """The repeats (from, to) that are usual for so many images."""
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    """Why images were left out, a sentence each."""
    captions: tuple[tuple[str, str], ...]
    """The (caption, file) of the first images that have one."""
    longest: int | None
    """The number of tokens of the longest caption. None: not counted."""
    most_tokens: int
    """The number of tokens that the model is made for."""

    @property
    def text(self) -> str:
        """Returns the report for a person: what there is, what to look at, what is left out, and the first captions."""
        return "\n".join([*self.summary, *self.warnings, *self._rest()])

    @property
    def warnings(self) -> list[str]:
        """Returns the lines of the text that say what to look at and what is left out."""
        more = [f"Skipped: {len(self.skipped) - NAMED} more"] if len(self.skipped) > NAMED else []
        return [*(in_words(finding, self.images) for finding in self.findings),
                *(f"Skipped: {reason}" for reason in self.skipped[:NAMED]), *more]

    @property
    def summary(self) -> list[str]:
        """Returns lines that say what there is."""
        more = [f", at several resolutions {self.pictures}"] if self.pictures > self.images else []
        more += [f", {self.with_repeats} with repeats"] if self.with_repeats > self.pictures else []
        lines = [f"{counted(self.images, 'image')} in {self.folder}{''.join(more)}"]
        lines += [f"{count} × {width}×{height}" for (width, height), count in self.buckets[:SHOWN_BUCKETS]]
        if rest := self.buckets[SHOWN_BUCKETS:]:
            lines.append(f"{sum(count for _, count in rest)} × {counted(len(rest), 'other size')}")
        return lines + self.counts

    @property
    def counts(self) -> list[str]:
        """Returns lines that say how many images have a mask, have a weight, or are for regularization."""
        counts = ((self.masked, "with masks"), (self.weighted, "with a weight of their own"),
                  (self.regularization, "for regularization"))
        return [f"{count} {what}" for count, what in counts if count]

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for programs, as numbers, strings, lists and dictionaries only."""
        return {**asdict(self), "folder": str(self.folder),
                "buckets": [{"width": w, "height": h, "pictures": count} for (w, h), count in self.buckets],
                "captions": [{"file": name, "caption": caption} for caption, name in self.captions],
                "findings": [asdict(finding) for finding in self.findings]}

    def _rest(self) -> list[str]:
        lines = [f"“{shortened(caption, 200)}” ({name})" for caption, name in self.captions]
        if self.longest is not None:
            lines.append(f"The longest caption has {self.longest} of at most {self.most_tokens} tokens")
        low, high = self.repeats
        return [*lines, f"Usual for {counted(self.images, 'image')}: {low}–{high} repeats. LiveLoRA counts steps, so "
                        "they matter only for balance, and to count epochs."]


def make(dataset: Dataset, count_tokens_of: Callable[[str], int] | None = None, most_tokens: int = 512) -> Report:
    """Returns the report of a dataset, without reading its files again.

    `count_tokens_of` says how many tokens a caption has; without it long captions are not found. `most_tokens`: the
    number of tokens that the model is made for."""
    names = dataset.names()
    items = dataset.items
    unique = list({item.path: item for item in items}.values())
    captioned = [item for item in unique if item.has_caption]
    sizes = sorted((item.size for item in unique), key=lambda size: size[0] * size[1])
    tokens = count_tokens(items, count_tokens_of) if count_tokens_of else {}
    findings = (*about_missing_captions(dataset, names), *about_pictures(dataset, names),
                *about_captions(dataset, names, tokens, most_tokens))
    return Report(
        folder=dataset.folder, images=len(unique), pictures=len(items),
        with_repeats=sum(item.num_repeats for item in items), sizes=(sizes[0], sizes[-1]),
        buckets=tuple(sorted(Counter(item.bucket for item in items).items(), key=lambda entry: (-entry[1], entry[0]))),
        masked=sum(item.mask is not None for item in unique), weighted=sum(item.weight != 1 for item in unique),
        regularization=sum(item.regularization for item in unique),
        repeats=suggested_repeats(sum(not item.regularization for item in unique)), findings=findings,
        skipped=dataset.skipped, captions=tuple((item.caption, names[item.path]) for item in captioned[:3]),
        longest=max(tokens.values(), default=None), most_tokens=most_tokens)


def suggested_repeats(images: int) -> tuple[int, int]:
    """Returns the repeats (from, to) that are usual for so many images, by a rule of thumb."""
    return next((repeats for below, repeats in REPEATS if images < below), REPEATS_OF_MANY)


def in_words(finding: Finding, images: int) -> str:
    """Returns a finding as one line. Its files are named unless they are all of the `images`."""
    named = [" ~ ".join(group) for group in finding.groups] or list(finding.files)
    where = f": {name_some(named)}" if named and len(finding.files) < images and finding.kind != "unbalanced" else ""
    return f"• {finding.what}{where}. {finding.advice}"
