"""Collects the kinds of adapter. Each is one entry in one of these files, and the entry holds everything that sets the
kind apart."""

from __future__ import annotations

from . import lycoris, oft, pair
from .kind import NAME, Kind, Layer, Settings

__all__ = ["KINDS", "NAME", "Kind", "Layer", "Settings"]

KINDS: dict[str, Kind] = {**pair.KINDS, **lycoris.KINDS, **oft.KINDS}
"""The kinds of adapter, by the names that a recipe uses."""
