"""The kinds of adapter. Each is one entry, which holds everything that sets it apart, in one of these files."""

from __future__ import annotations

from . import lycoris, oft, pair
from .kind import NAME, Kind, Layer, Settings

__all__ = ["KINDS", "NAME", "Kind", "Layer", "Settings"]

KINDS: dict[str, Kind] = {**pair.KINDS, **lycoris.KINDS, **oft.KINDS}
"""By what a recipe calls them."""
