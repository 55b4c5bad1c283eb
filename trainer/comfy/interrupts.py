"""Makes ComfyUI's stop button usable for training. The button sets one flag. Whatever looks at it first clears it and
raises something that is no Exception."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import comfy.model_management as mm

from ..model.host import Interrupted


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """While inside, an interruption is raised as `Interrupted`, which training can catch."""
    try:
        yield
    except mm.InterruptProcessingException as err:
        raise Interrupted from err
