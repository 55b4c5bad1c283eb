"""Injects the trainable part, PEFT adapters, into a training view, and runs the Linears that have one.

Shapes: L tokens, B images, I input width, O output width.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..disk.packages import require
from ..model.view import real_weights
from . import kinds
from .kinds import KINDS, NAME, Kind

BUFFERS = tuple(f".{name}" for kind in KINDS.values() for name in kind.buffers)


class Settings(kinds.Settings, Protocol):
    """Lists the settings of a recipe that `inject` reads."""

    @property
    def adapter(self) -> str: ...
    @property
    def module_dropout(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """Holds the shape of an adapter: the rank and the scale of every Linear that gets one."""

    ranks: dict[str, int]
    scales: dict[str, float]


def inject(view: nn.Module, settings: Settings, shape: Layout) -> list[nn.Parameter]:
    """Adds the recipe's adapter to the view and returns its trainable parameters.

    Raises RuntimeError if peft is not installed."""
    kind = KINDS[settings.adapter]
    # PEFT draws from the global generator, which must stay as it is, and may read the weights.
    reads_weights = kind.reads_weights or settings.init in kind.inits_from_weights
    with torch.random.fork_rng(devices=[]), real_weights(view) if reads_weights else contextlib.nullcontext():
        torch.default_generator.manual_seed(settings.seed)
        require("peft").inject_adapter_in_model(_peft_config(kind, settings, shape), view)
        for name, rank in shape.ranks.items():
            layer: Any = view.get_submodule(name)
            kind.finish(layer, settings, rank, shape.scales[name])
            layer.forward = Adapted(layer, kind, settings)
    return [p for p in view.parameters() if p.requires_grad]


def _peft_config(kind: Kind, settings: Settings, shape: Layout) -> Any:
    ranks = {name: rank for name, rank in shape.ranks.items() if rank != settings.rank}
    alphas = {name: shape.scales[name] * rank for name, rank in shape.ranks.items()}
    return kind.config(settings, {"target_modules": list(shape.ranks)}, {
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items()},
        "alpha_pattern": {re.escape(name): alpha for name, alpha in alphas.items()}})


class Adapted:
    """Replaces the forward of a Linear with an adapter: (B, L, I) → (B, L, O)."""

    def __init__(self, layer: Any, kind: Kind, settings: Settings) -> None:
        self.layer, self.enabled = layer, True
        self._module_dropout, self._peft = settings.module_dropout, type(layer).forward.__get__(layer)
        self._reads_weights = kind.reads_weights
        self._run = self._pefts
        if kind.forward and not (settings.dropout or settings.rank_dropout):
            self._run = kind.forward(layer)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.enabled or self._left_out():
            return self.layer.base_layer(x)
        return self._run(x)

    def _left_out(self) -> bool:
        return self._module_dropout > 0 and self.layer.training and torch.rand(()).item() < self._module_dropout

    def _pefts(self, x: Tensor) -> Tensor:
        """Runs PEFT's own forward, which multiplies in the adapter's dtype: half-precision models need autocast."""
        half = x.dtype in (torch.bfloat16, torch.float16)
        lend = real_weights(self.layer.base_layer) if self._reads_weights else contextlib.nullcontext()
        with torch.autocast(x.device.type, dtype=x.dtype if half else None, enabled=half, cache_enabled=False), lend:
            return self._peft(x)


def adapted(view: nn.Module) -> dict[str, Any]:
    """Returns PEFT's layers in a view, by their names."""
    return {name: m for name, m in view.named_modules() if isinstance(m.__dict__.get("forward"), Adapted)}


@contextlib.contextmanager
def disabled(view: nn.Module) -> Iterator[None]:
    """While inside, the view answers as the base model does."""
    runs = [layer.forward for layer in adapted(view).values()]
    for run in runs:
        run.enabled = False
    try:
        yield
    finally:
        for run in runs:
            run.enabled = True


@contextlib.contextmanager
def without_dropout(view: nn.Module) -> Iterator[None]:
    """While inside, nothing of the adapter is dropped."""
    layers = list(adapted(view).values())
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def weights(view: nn.Module) -> dict[str, Tensor]:
    """Returns the adapter's own tensors by name, not copied, such as `<module>.lora_A.weight` (R, I) and
    `<module>.lora_B.weight` (O, R)."""
    found = {name.replace(f".{NAME}", ""): p for name, p in view.named_parameters() if p.requires_grad}
    return {**found, **{name: b for name, b in view.named_buffers() if name.endswith(BUFFERS)}}


def load_weights(view: nn.Module, values: dict[str, Tensor]) -> None:
    """Puts saved values into the adapter. Raises ValueError if names or shapes differ."""
    own = weights(view)
    wrong = sorted({*own} ^ {*values}) or [n for n, v in values.items() if v.shape != own[n].shape]
    if wrong:
        raise ValueError(f"The saved adapter does not fit this model: {', '.join(wrong[:3])} and {len(wrong)} in all.")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
