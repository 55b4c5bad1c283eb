"""Finds what a person should look at in the pictures of a dataset and in their balance.

`caption_findings` looks at the captions."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...disk.text import counted
from ..item import Dataset, Item
from ..pictures.images import EDGE

FEW = 10
"""The number of different pictures below which they are learned by heart."""
ALIKE = 5
"""The most bits of 64 in which the difference hashes of two pictures that look alike differ. Measured with the 25
pictures of scikit-image: saved smaller, brighter or as a bad JPEG, 20 of them differ from the original in up to 5
bits. Any two different ones differ in at least 13."""
LEAST_SHARPNESS = 15.0
"""The `images.sharpness` below which a picture counts as blurred. The same 25 pictures have more than 40, except one
that was moved (6) and two without edges (2). Blurred by 2 pixels of 512 they have between 1 and 21."""
SHARPNESS_SHARE = 0.1
"""The share of the dataset's median sharpness below which a picture counts as blurred, compared to the others."""
IMBALANCE = 3.0
"""How many times as often one folder may come as another before the report mentions it."""
BLOCK = 256
"""How many hashes are compared with all others at once, which limits the memory."""
BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
"""The number of ones in each byte. NumPy has a function for it only since 2.0."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Describes something that a person should look at."""

    kind: str
    """A word for programs, such as `blurred`."""
    what: str
    """A sentence without its full stop."""
    files: tuple[str, ...]
    """Names of the pictures, or of the folders, that it is about."""
    advice: str
    """A sentence that says what to do."""
    groups: tuple[tuple[str, ...], ...] = ()
    """The files that belong together, group by group."""


def about_pictures(dataset: Dataset, names: dict[Path, str]) -> Iterator[Finding]:
    """Yields every finding about pixels and counts."""
    items = [item for item in dataset.items if item.latents is None]
    learned = {item.digest for item in dataset.items if not item.regularization}
    if len(learned) < FEW:
        yield Finding("few", f"only {counted(len(learned), 'different image')}", (),
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
        yield Finding("enlarged", f"{len(enlarged)} smaller than the training size, enlarged", tuple(enlarged),
                      "The LoRA learns their blur: find larger ones, or lower the resolution.")
    small = dict.fromkeys(names[i.path] for i in items if i.size[0] * i.size[1] < resolution**2)
    if rest := tuple(name for name in small if name not in enlarged):
        yield Finding("small", f"{len(rest)} smaller than {resolution}×{resolution} pixels, trained at a smaller size",
                      rest, "Fine for a few; else find larger ones, or lower the resolution.")


def _copies(unique: Sequence[Item], names: dict[Path, str]) -> Iterator[Finding]:
    """Yields a finding if several files have the same content."""
    alike: dict[str, list[str]] = defaultdict(list)
    for item in unique:
        alike[item.digest].append(names[item.path])
    if groups := tuple(tuple(group) for group in alike.values() if len(group) > 1):
        yield Finding("copies", f"{sum(map(len, groups))} images are exact copies", _flat(groups),
                      "Keep one of each; to train one more often, use repeats.", groups)


def _similar(different: Sequence[Item], names: dict[Path, str]) -> Iterator[Finding]:
    """Yields a finding if pictures have nearly the same hash. Pictures are also in one group if others between them
    connect them. Plain ones are left out, because all their hashes are alike."""
    alike: dict[int, list[str]] = defaultdict(list)
    for item in different:
        if item.perceptual_hash is not None and ALIKE < item.perceptual_hash.bit_count() < 64 - ALIKE:
            alike[item.perceptual_hash].append(names[item.path])
    group = {hash: hash for hash in alike}  # union-find

    def root(hash: int) -> int:
        while group[hash] != hash:
            group[hash] = hash = group[group[hash]]
        return hash

    for one, other in _near([*alike]):
        group[root(other)] = root(one)
    members: dict[int, list[str]] = defaultdict(list)
    for hash, these in alike.items():
        members[root(hash)] += these
    if groups := tuple(tuple(found) for found in members.values() if len(found) > 1):
        yield Finding("similar", f"{sum(map(len, groups))} images look nearly alike", _flat(groups),
                      "Look at them: of several shots of a scene keep the best, or the LoRA learns the scene.", groups)


def _near(hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields pairs of different hashes that differ in at most ALIKE bits, some of them several times.

    Of ALIKE + 1 parts of two such hashes one is equal, so only hashes with an equal part are compared, not all."""
    table = np.array(hashes, dtype=np.uint64)
    cuts = np.linspace(0, 64, ALIKE + 2, dtype=np.uint64)
    for low, high in itertools.pairwise(cuts):
        part = (table >> low) & ((np.uint64(1) << (high - low)) - np.uint64(1))
        ordered = table[np.argsort(part, kind="stable")]
        _, counts = np.unique(part, return_counts=True)
        for same in np.split(ordered, np.cumsum(counts)[:-1]):
            yield from _near_of(same) if len(same) > 1 else ()


def _near_of(table: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the pairs of hashes that differ in at most ALIKE bits."""
    for start in range(0, len(table), BLOCK):
        differing = table[start:start + BLOCK, None] ^ table[None, start:]
        distance = BITS[differing.view(np.uint8)].reshape(*differing.shape, 8).sum(axis=2, dtype=np.uint8)
        for row, column in np.argwhere(distance <= ALIKE).tolist():
            if row < column:
                yield int(table[start + row]), int(table[start + column])


def _blurred(unique: Sequence[Item], names: dict[Path, str]) -> Iterator[Finding]:
    """Yields a finding if pictures are blurred. Looks only at pictures that were made smaller to be measured: one that
    was enlarged has little detail and would look blurred in any case."""
    judged = {names[i.path]: i.sharpness for i in unique
              if i.sharpness is not None and i.size[0] * i.size[1] >= EDGE**2}
    if not judged:
        return
    least = max(LEAST_SHARPNESS, SHARPNESS_SHARE * statistics.median(judged.values()))
    if blurred := sorted((name for name in judged if judged[name] < least), key=judged.__getitem__):
        yield Finding("blurred", f"{len(blurred)} blurred, or with hardly an edge", tuple(blurred),
                      "Leave out those that are out of focus: the LoRA learns that as well.")


def _unbalanced(dataset: Dataset, names: dict[Path, str]) -> Iterator[Finding]:
    """Yields a finding if the pictures × repeats of folders differ much. Images of a class are not compared with what
    is learned."""
    counts: Counter[Path] = Counter()
    folders: dict[Path, str] = {}
    for item in dataset.items:
        if not item.regularization:
            place = item.path.parent
            counts[place] += item.num_repeats
            # as in the pictures' names
            folders.setdefault(place, names[item.path].rpartition("/")[0] or dataset.folder.name)
    ordered = [(folders[place], count) for place, count in counts.most_common()]
    if len(ordered) > 1 and ordered[0][1] > IMBALANCE * ordered[-1][1]:
        (most, many), (least, few) = ordered[0], ordered[-1]
        yield Finding("unbalanced", f"'{most}' comes {many / few:.1f} times as often as '{least}' ({many} and {few} "
                      "with repeats)", tuple(name for name, _ in ordered),
                      f"If both matter alike, give '{least}' more repeats (10_name comes 10 times) or more images.")


def _flat(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for group in groups for name in group)
