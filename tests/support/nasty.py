"""A corpus of pictures that break naive readers, made anew for each test run: each with the pixels it was made from, or
with what its error must say."""

from __future__ import annotations

from pathlib import Path

import nasty_damaged
import nasty_good
from nasty_case import Case, Corpus


def pictures(folder: Path) -> list[Case]:
    """All of them, written into an empty folder."""
    corpus = Corpus(folder)
    for kind in (nasty_good.formats, nasty_good.orientations, nasty_good.modes, nasty_good.profiles,
                 nasty_damaged.animated, nasty_damaged.sizes, nasty_damaged.truncated, nasty_damaged.damaged,
                 nasty_damaged.disguised, nasty_damaged.names, nasty_damaged.links):
        kind(corpus)
    return corpus.cases
