"""Lends the weights of live modules, and keeps copies that are made of them and of adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Weight(NamedTuple):
    """A weight on loan. It is valid until `release` is called."""

    weight: Any
    """The tensor; None for a norm without weights."""
    bias: Tensor | None
    release: Callable[[], None]
    lasting: bool = True
    """Whether it stays valid until then. If not, the next loan may overwrite it."""


Live = Any
"""A module of the live tree: a Linear or a norm of whatever class ComfyUI chose."""
Fetch = Callable[[Live, Tensor], Weight]
"""`fetch(live, like)` gives the weight of `live` in the device and dtype of `like`."""


class Lender:
    """Lends the weight of one live module."""

    def __init__(self, live: Live, fetch: Fetch) -> None:
        self._fetch, self._holds = partial(fetch, live), False
        self.kept: dict[tuple[torch.device, torch.dtype], Weight] = {}
        """The loans that are kept, by device and dtype."""

    def __call__(self, like: Tensor) -> Weight:
        """Returns the weight in the device and dtype of `like`. While it is held it is the same one each time."""
        return self.keep(like)._replace(release=_nothing) if self._holds else self._fetch(like)

    def hold(self) -> None:
        """Keeps what is lent from now on, beside what is kept already, until `let_go`."""
        self._holds = True

    def keep(self, like: Tensor) -> Weight:
        """Returns the loan that is kept for the device and dtype of `like`. If there is none it is fetched, for the
        time when it is held."""
        kind = like.device, like.dtype
        if kind not in self.kept:
            loan = self._fetch(like)
            self.kept[kind] = loan if loan.lasting else _copied(loan)
        return self.kept[kind]

    def let_go(self) -> None:
        """Gives back what is kept."""
        self._holds = False
        while self.kept:
            self.kept.popitem()[1].release()


def _copied(loan: Weight) -> Weight:
    """Returns a copy of a weight, which is given back at once."""
    weight, bias = (None if value is None else value.detach().clone() for value in (loan.weight, loan.bias))
    loan.release()
    return Weight(weight, bias, _nothing)


def _nothing() -> None:
    return None


class Copies:
    """Makes the copies that a view computes with: the matrices of adapters and the weights of norms. Each is made at
    every use, or once while they are kept."""

    def __init__(self) -> None:
        self._kept: dict[Any, Any] | None = None

    def of(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns what `make` makes. `key` tells copies apart."""
        if self._kept is None:
            return make()
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps copies while inside. What they are copies of must not change meanwhile."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None
