"""The dataset report: what was found, and what a person should look at before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..item import Dataset
from ..naming import NAMED, name_some
from .caption_findings import about_captions, count_tokens, shortened
from .findings import Finding, about_pictures

REPEATS = ((20, (10, 15)), (51, (5, 8)))
"""Below how many images how many repeats of each are usual, as trainers that count epochs advise."""
REPEATS_OF_MANY = (3, 5)
SHOWN_BUCKETS = 8
"""How many sizes the text lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A dataset for a person, and for programs."""

    folder: Path
    images: int
    """Files."""
    pictures: int
    """Images × resolutions."""
    with_repeats: int
    """What an epoch trains."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """The smallest and the largest image, (width, height) in pixels, by area."""
    buckets: tuple[tuple[tuple[int, int], int], ...]
    """((width, height), pictures), the most used first."""
    masked: int
    weighted: int
    regularization: int
    repeats: tuple[int, int]
    """From … to are usual for so many images."""
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    """Why images were left out, a sentence each."""
    captions: tuple[tuple[str, str], ...]
    """(caption, file) of the first images."""
    longest: int | None
    """Tokens of the longest caption. None: not counted."""
    most_tokens: int
    """What the model is made for."""

    @property
    def text(self) -> str:
        """For a person: what there is, what to look at, what was left out, and how the captions begin."""
        found = [in_words(finding, self.images) for finding in self.findings]
        return "\n".join([*self.summary, *found, *self._left_out(), *self._rest()])

    @property
    def summary(self) -> list[str]:
        """What there is, in lines."""
        more = [f", at several resolutions {self.pictures}"] if self.pictures > self.images else []
        more += [f", {self.with_repeats} with repeats"] if self.with_repeats > self.pictures else []
        lines = [f"{self.images} images in {self.folder}{''.join(more)}"]
        lines += [f"{count} × {width}×{height}" for (width, height), count in self.buckets[:SHOWN_BUCKETS]]
        if rest := self.buckets[SHOWN_BUCKETS:]:
            lines.append(f"{sum(count for _, count in rest)} × {len(rest)} other sizes")
        return lines + self.counts

    @property
    def counts(self) -> list[str]:
        """What only some images have, in lines."""
        counts = ((self.masked, "with masks"), (self.weighted, "with a weight of their own"),
                  (self.regularization, "for regularization"))
        return [f"{count} {what}" for count, what in counts if count]

    def as_dict(self) -> dict[str, Any]:
        """For programs: numbers, strings, lists and dictionaries only."""
        return {**asdict(self), "folder": str(self.folder),
                "buckets": [{"width": w, "height": h, "pictures": count} for (w, h), count in self.buckets],
                "captions": [{"file": name, "caption": caption} for caption, name in self.captions],
                "findings": [asdict(finding) for finding in self.findings]}

    def _left_out(self) -> list[str]:
        more = [f"Skipped: {len(self.skipped) - NAMED} more"] if len(self.skipped) > NAMED else []
        return [f"Skipped: {reason}" for reason in self.skipped[:NAMED]] + more

    def _rest(self) -> list[str]:
        lines = [f"“{shortened(caption, 200)}” ({name})" for caption, name in self.captions]
        if self.longest is not None:
            lines.append(f"The longest caption has {self.longest} of at most {self.most_tokens} tokens")
        low, high = self.repeats
        return [*lines, f"Usual for {self.images} images: {low}–{high} repeats. LiveLoRA counts steps, so they matter "
                        "only for balance, and to count epochs."]


def make(dataset: Dataset, count_tokens_of: Callable[[str], int] | None = None, most_tokens: int = 512) -> Report:
    """Looks at a dataset, without reading its files again.

    `count_tokens_of` says how many tokens a caption has; without it long captions are not found. `most_tokens`: what
    the model is made for."""
    names = dataset.names()
    items = dataset.items
    unique = list({item.path: item for item in items}.values())
    sizes = sorted((item.size for item in unique), key=lambda size: size[0] * size[1])
    tokens = count_tokens(items, count_tokens_of) if count_tokens_of else {}
    findings = (*about_pictures(dataset, names), *about_captions(dataset, names, tokens, most_tokens))
    return Report(
        folder=dataset.folder, images=len(unique), pictures=len(items),
        with_repeats=sum(item.num_repeats for item in items), sizes=(sizes[0], sizes[-1]),
        buckets=tuple(sorted(Counter(item.bucket for item in items).items(), key=lambda entry: (-entry[1], entry[0]))),
        masked=sum(item.mask is not None for item in unique), weighted=sum(item.weight != 1 for item in unique),
        regularization=sum(item.regularization for item in unique),
        repeats=suggested_repeats(sum(not item.regularization for item in unique)), findings=findings,
        skipped=dataset.skipped, captions=tuple((item.caption, names[item.path]) for item in unique[:3]),
        longest=max(tokens.values(), default=None), most_tokens=most_tokens)


def suggested_repeats(images: int) -> tuple[int, int]:
    """From … to: a rule of thumb."""
    return next((repeats for below, repeats in REPEATS if images < below), REPEATS_OF_MANY)


def in_words(finding: Finding, images: int) -> str:
    """A finding in one line. Files are named unless it is all of the `images`."""
    named = [" ~ ".join(group) for group in finding.groups] or list(finding.files)
    where = f": {name_some(named)}" if named and len(finding.files) < images and finding.kind != "unbalanced" else ""
    return f"• {finding.what}{where}. {finding.advice}"
