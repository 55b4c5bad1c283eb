"""What is to be looked at in a dataset: pictures, and how they are balanced. Captions are `caption_findings`'."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..item import Dataset, Item
from ..pictures.images import EDGE

FEW = 10
"""Fewer pictures are learned by heart."""
ALIKE = 5
"""Bits of 64 in which the difference hashes of one picture differ at most, saved smaller, brighter or as a bad JPEG:
up to 5 in 20 of the 25 pictures of scikit-image. Any two others of them differ in at least 13."""
LEAST_SHARPNESS = 15.0
"""Of `images.sharpness`: those 25 lie above 40, but for one that was moved (6) and two without edges (2); blurred by 2
pixels of 512 they lie between 1 and 21."""
SHARPNESS_SHARE = 0.1
"""Of the dataset's median: a picture below it is blurred, measured by its neighbours."""
IMBALANCE = 3.0
"""How much oftener one folder may come than another."""
BLOCK = 256
"""Hashes compared at once with all others, which bounds the memory."""
BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
"""Ones in each byte. NumPy has a function for it only since 2.0."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should look at."""

    kind: str
    """A word for programs, such as `blurred`."""
    what: str
    """A sentence without its full stop."""
    files: tuple[str, ...]
    """Names of the pictures, or of the folders, that it is about."""
    advice: str
    """What to do, a sentence."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Which of the files belong together."""


def about_pictures(dataset: Dataset, names: dict[Path, str]) -> Iterator[Finding]:
    """All about pixels and counts."""
    items = [item for item in dataset.items if item.latents is None]
    learned = {item.digest for item in dataset.items if not item.regularization}
    if len(learned) < FEW:
        yield Finding("few", f"only {len(learned)} different images" if len(learned) > 1 else "only 1 image", (),
                      "A LoRA learns so few by heart; 15 to 30 varied ones work better.")
    yield from _small(items, dataset.resolution, names)
    unique = list({item.path: item for item in items}.values())
    yield from _copies(unique, names)
    yield from _similar(list({item.digest: item for item in unique}.values()), names)
    yield from _blurred(unique, names)
    yield from _unbalanced(dataset, names)


def _small(items: Sequence[Item], resolution: int, names: dict[Path, str]) -> Iterator[Finding]:
    enlarged = dict.fromkeys(names[i.path] for i in items if i.size[0] < i.bucket[0] or i.size[1] < i.bucket[1])
    if enlarged:
        yield Finding("enlarged", f"{len(enlarged)} smaller than their training size, enlarged", tuple(enlarged),
                      "The LoRA learns their blur: find larger ones, or lower the resolution.")
    small = dict.fromkeys(names[i.path] for i in items if i.size[0] * i.size[1] < resolution**2)
    if rest := tuple(name for name in small if name not in enlarged):
        yield Finding("small", f"{len(rest)} smaller than {resolution}×{resolution} pixels, trained at a smaller size",
                      rest, "Fine for a few; else find larger ones, or lower the resolution.")


def _copies(unique: Sequence[Item], names: dict[Path, str]) -> Iterator[Finding]:
    """Files with the same content."""
    alike: dict[str, list[str]] = defaultdict(list)
    for item in unique:
        alike[item.digest].append(names[item.path])
    if groups := tuple(tuple(group) for group in alike.values() if len(group) > 1):
        yield Finding("copies", f"{sum(map(len, groups))} images are exact copies", _flat(groups),
                      "Keep one of each; to train one more often, use repeats.", groups)


def _similar(different: Sequence[Item], names: dict[Path, str]) -> Iterator[Finding]:
    """Pictures with nearly the same hash, and those that are connected by others. Plain ones have no hash to compare.
    """
    known = [(names[i.path], i.perceptual_hash) for i in different
             if i.perceptual_hash is not None and ALIKE < i.perceptual_hash.bit_count() < 64 - ALIKE]
    group = list(range(len(known)))  # union-find

    def root(place: int) -> int:
        while group[place] != place:
            group[place] = place = group[group[place]]
        return place

    for one, other in _near([hash for _, hash in known]):
        group[root(other)] = root(one)
    members: dict[int, list[str]] = defaultdict(list)
    for place, (name, _) in enumerate(known):
        members[root(place)].append(name)
    if groups := tuple(tuple(found) for found in members.values() if len(found) > 1):
        yield Finding("similar", f"{sum(map(len, groups))} images look nearly alike", _flat(groups),
                      "Look at them: of several shots of a scene keep the best, or the LoRA learns the scene.", groups)


def _near(hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Places (i, j), i < j, of hashes that differ in at most ALIKE bits."""
    table = np.array(hashes, dtype=np.uint64)
    for start in range(0, len(table), BLOCK):
        differing = table[start:start + BLOCK, None] ^ table[None, start:]
        distance = BITS[differing.view(np.uint8)].reshape(*differing.shape, 8).sum(axis=2, dtype=np.uint8)
        for row, column in np.argwhere(distance <= ALIKE).tolist():
            if row < column:
                yield start + row, start + column


def _blurred(unique: Sequence[Item], names: dict[Path, str]) -> Iterator[Finding]:
    """Only pictures that were made smaller to be measured: larger ones of little detail look blurred by nature."""
    judged = {names[i.path]: i.sharpness for i in unique
              if i.sharpness is not None and i.size[0] * i.size[1] >= EDGE**2}
    if not judged:
        return
    least = max(LEAST_SHARPNESS, SHARPNESS_SHARE * statistics.median(judged.values()))
    if blurred := sorted((name for name in judged if judged[name] < least), key=judged.__getitem__):
        yield Finding("blurred", f"{len(blurred)} blurred, or with hardly an edge", tuple(blurred),
                      "Leave out those that are out of focus: the LoRA learns that as well.")


def _unbalanced(dataset: Dataset, names: dict[Path, str]) -> Iterator[Finding]:
    """Folders whose pictures × repeats differ much. Images of a class are not compared with what is learned."""
    counts: Counter[Path] = Counter()
    for item in dataset.items:
        if not item.regularization:
            counts[item.path.parent] += item.num_repeats
    ordered = [(_folder(place, dataset, names), count) for place, count in counts.most_common()]
    if len(ordered) > 1 and ordered[0][1] > IMBALANCE * ordered[-1][1]:
        (most, many), (least, few) = ordered[0], ordered[-1]
        yield Finding("unbalanced", f"'{most}' comes {many / few:.1f} times as often as '{least}' ({many} and {few} "
                      "with repeats)", tuple(name for name, _ in ordered),
                      f"If both matter alike, give '{least}' more repeats (10_name comes 10 times) or more images.")


def _folder(place: Path, dataset: Dataset, names: dict[Path, str]) -> str:
    """A folder as the names of its pictures call it; the dataset's own by its name."""
    name = next(names[i.path] for i in dataset.items if i.path.parent == place)
    return name.rpartition("/")[0] or place.name


def _flat(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for group in groups for name in group)
