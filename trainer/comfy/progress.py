"""Moves the progress bar of the node that runs. It is called in the prompt's own thread."""

from __future__ import annotations

import comfy.utils


def show_progress(done: int, total: int) -> None:
    """Moves the bar to `done` of `total`. Raises ComfyUI's InterruptProcessingException if its stop button was
    pressed."""
    comfy.utils.ProgressBar(total).update_absolute(done)
