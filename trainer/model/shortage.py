"""Notices that memory ran out, and does again what failed for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


class OutOfMemory(RuntimeError):
    """Is raised when there is not enough memory for a piece of work, whichever way it is done."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that there was no memory left on the device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in (
            "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")))


def once_more(work: Callable[[], Result], make_room: Callable[[], None]) -> Result:
    """Returns the result of `work`, which is done again, after `make_room`, if memory runs out. Raises OutOfMemory if
    it does so again."""
    try:
        return work()
    except Exception as err:
        if not is_out_of_memory(err):
            raise
    make_room()  # out here, where nothing refers to the tensors of the work that failed
    try:
        return work()
    except Exception as err:
        if not is_out_of_memory(err):
            raise
        raise OutOfMemory("Memory ran out, and again when there was more room. Close other programs that use the "
                          f"graphics card, and try again. ({str(err).splitlines()[0]})") from err
