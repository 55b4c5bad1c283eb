"""Imports the packages that training needs. They are imported when training starts, not when ComfyUI does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

PACKAGES = ("peft", "bitsandbytes", "diffusers", "diffusers.optimization")


def require(name: str) -> ModuleType:
    """Imports a module of an installed package.

    Raises RuntimeError with the line that installs the package, for the Python that runs ComfyUI (a portable one
    too)."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        package = (err.name or name).split(".")[0].replace("_", "-")  # as PyPI spells names
        raise RuntimeError(f"This needs the Python package '{package}', which is not installed. Install it, "
                           f'then restart ComfyUI:\n"{sys.executable}" -m pip install {package}') from err


def check_all(more: tuple[str, ...] = ()) -> None:
    """Raises RuntimeError, before a run starts, if a package it will need is missing. Imports nothing.

    `more`: what this run needs on top, from `optim.packages_for`."""
    for name in (*PACKAGES, *more):
        if "." not in name and importlib.util.find_spec(name) is None:
            require(name)


def load_all(more: tuple[str, ...] = ()) -> None:
    """Imports everything that training needs. It takes seconds and is best called while nobody waits for the lease."""
    for name in (*PACKAGES, *more):
        require(name)
