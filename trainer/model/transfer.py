"""Copies tensors: to the device, beside its other work, and to have them back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on `device`. A CUDA device fetches what is on the CPU by itself, from pinned memory, once its
    earlier work is done: nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@torch.no_grad()
def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns copies of tensors, on their own device or, if they do not fit there, on the CPU."""
    try:
        return [tensor.clone() for tensor in tensors]
    except torch.OutOfMemoryError:
        return [tensor.to("cpu", copy=True) for tensor in tensors]


class Aside:
    """Lets a CUDA device do something beside its other work. Other devices do it at once.

    Memory that is taken aside and given back is taken by what is done aside later, and that begins only when the device
    has done what it had to do by then. So nobody needs to note which work uses such memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Lets the device do what is asked of it inside beside its other work, once it has done what was asked before.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Lets the device wait until all that was asked for aside is done, before it goes on with other work."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
