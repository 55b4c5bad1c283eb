"""Lends the weights of live modules, and keeps copies that are made of them and of adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

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
        self._fetch = partial(fetch, live)
        self._holds, self._loan = False, None
        self._kind: Any = None  # the device and dtype of the loan

    def __call__(self, like: Tensor) -> Weight:
        """Returns the weight in the device and dtype of `like`. While it is held it is the same one each time."""
        if not self._holds:
            return self._fetch(like)
        return self.keep(like)._replace(release=_nothing)

    def hold(self) -> None:
        """Keeps the next loan, or the one that is kept already, until `let_go`."""
        self._holds = True

    def keep(self, like: Tensor) -> Weight:
        """Returns the loan that is kept. If there is none of this device and dtype it is fetched, for the time when it
        is held."""
        if self._loan is None or self._kind != (like.device, like.dtype):
            loan = self._fetch(like)
            self._loan, self._kind = loan if loan.lasting else _copied(loan), (like.device, like.dtype)
        return self._loan

    def let_go(self) -> None:
        """Gives back what is kept."""
        self._holds, loan, self._loan = False, self._loan, None
        if loan:
            loan.release()


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
