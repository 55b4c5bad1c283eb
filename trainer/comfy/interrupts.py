"""ComfyUI's stop button: one flag, read and cleared by whatever looks first, raising what is no Exception."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import comfy.model_management as mm

from ..model.host import Interrupted


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Inside, an interruption is raised as `Interrupted`, which training can catch."""
    try:
        yield
    except mm.InterruptProcessingException as err:
        raise Interrupted from err
