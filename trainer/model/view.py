"""Builds the training view: a second module tree over a live model, with module objects of its own and no weights.

The live tree stays untouched: its weights may be inference tensors, quantized, on another device or streamed. Each use
of a weight asks the live module for it through `fetch`, in the forward and again in the backward pass.

Shapes: B images, L tokens, I input width, O output width, R rank of a LoRA.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functions import (
    Matrices,
    Multiply,
    MultiplyAndTell,
    MultiplyWithLora,
    RmsNorm,
    exactly,
    multiply,
    multiply_with_lora,
)
from .lending import Copies, Fetch, Lender, Live

HAVE_RMS_NORM = ("cuda", "mps", "xpu")
"""The devices on which PyTorch has a kernel for RMS norms. Elsewhere it puts them together from operators, six forward
and thirteen backward."""


def lenders(part: nn.Module) -> list[Lender]:
    """Returns what lends the weights in a part of a view."""
    return [module.lender for module in part.modules() if isinstance(module, (FrozenLinear, FrozenNorm))]


class FrozenLinear(nn.Linear):
    """A Linear whose weight is the live module's. Its own `weight` is a placeholder of one element, expanded to
    (O, I): adapters read their shape, device and dtype from it. Adapters that compute with the weight itself (DoRA,
    PiSSA) see it within `real_weights`."""

    def __init__(self, live: Live, fetch: Fetch, like: Tensor, copies: Copies) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = live.in_features, live.out_features
        placeholder = like.new_zeros(1).expand(self.out_features, self.in_features)
        self.placeholder = nn.Parameter(placeholder, requires_grad=False)
        self.lends, self.copies = False, copies
        self.lender = Lender(live, fetch)

    @property
    def weight(self) -> Tensor:
        """Returns the placeholder; within `real_weights` a copy of the live weight (O, I), in the placeholder's dtype.
        """
        return self._real()[0] if self.lends else self.placeholder

    @property
    def bias(self) -> Tensor | None:
        """Returns None; within `real_weights` a copy of the live bias (O,)."""
        return self._real()[1] if self.lends else None

    @torch.no_grad()
    def _real(self) -> list[Any]:
        weight, bias, release, _ = self.lender(self.placeholder)
        copies = [None if t is None else t.detach().clone() for t in (weight, bias)]
        release()
        return copies

    def forward(self, x: Tensor) -> Tensor:
        """Computes the Linear: (B, L, I) → (B, L, O)."""
        # Autograd would record what is done with live weights that ask for gradients.
        return Multiply.apply(x, self.lender) if torch.is_grad_enabled() else multiply(x, self.lender)

    def with_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes the Linear, (B, L, I) → (B, L, O), and returns beside it the bias (O,) that is in it."""
        return MultiplyAndTell.apply(x, self.lender)

    def with_lora(self, x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float,
                  beside: Callable[[], tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Computes the Linear, (B, L, I) → (B, L, O), with the LoRA matrices A (R, I) and B (O, R) in effect at
        `scale`. They are multiplied in the dtype of `x` (Micikevicius et al. 2018, arXiv:1710.03740). `beside`
        returns another such pair, which is in effect too and gets no gradients."""
        lora = self.copies.of((self, x.dtype), lambda: Matrices.of(lora_a, lora_b, x.dtype, beside and beside()))
        if torch.is_grad_enabled():
            return MultiplyWithLora.apply(x, lora_a, lora_b, lora, scale, self.lender)
        return multiply_with_lora(x, lora, scale, self.lender)[0]


@contextlib.contextmanager
def real_weights(view: nn.Module) -> Iterator[None]:
    """While inside, `weight` and `bias` of every FrozenLinear in `view` are copies of the live ones."""
    linears = [m for m in view.modules() if isinstance(m, FrozenLinear)]
    for linear in linears:
        linear.lends = True
    try:
        yield
    finally:
        for linear in linears:
            linear.lends = False


def copied_once(view: nn.Module) -> contextlib.AbstractContextManager[None]:
    """While inside, `view` casts each matrix of an adapter once and not at each use. The adapter must not change
    meanwhile."""
    return next(m.copies for m in view.modules() if isinstance(m, FrozenLinear)).kept()


class FrozenNorm(nn.Module):
    """A layer norm or RMS norm with the live module's weights. The layer norm works on a copy of its input, because
    transformer blocks later add into the tensor that they normalised."""

    def __init__(self, live: Live, fetch: Fetch, copies: Copies) -> None:
        super().__init__()
        self.lender, self._shape, self._eps = Lender(live, fetch), live.normalized_shape, live.eps
        self._copies, self._is_layer_norm = copies, isinstance(live, nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x`; its shape and dtype stay the same."""
        if self._is_layer_norm:
            weight, bias = self._copies.of((self, x.dtype), lambda: self._weights(x))
            keeps = x.requires_grad and torch.is_grad_enabled()
            return F.layer_norm(x.clone() if keeps else x, self._shape, weight, bias, self._eps)
        if x.device.type not in HAVE_RMS_NORM and len(self._shape) == 1:
            return self._rms_norm(x)
        weight, _ = self._copies.of((self, x.dtype), lambda: self._weights(x))
        return F.rms_norm(x, self._shape, weight, self._eps)

    def _rms_norm(self, x: Tensor) -> Tensor:
        exact, width = exactly(x.dtype), self._shape[0]
        least = (width * (torch.finfo(exact).eps if self._eps is None else self._eps)) ** 0.5
        return RmsNorm.apply(x, self._copies.of((self, x.dtype), lambda: self._scale(x)),
                             self._copies.of((least, exact), lambda: x.new_full((), least, dtype=exact)))

    def _weights(self, like: Tensor) -> list[Tensor | None]:
        weight, bias, release, _ = self.lender(like)
        # Autograd keeps the weights past `release`; and the live ones may ask for gradients, which they must not get.
        copies = [None if t is None else t.detach().clone() for t in (weight, bias)]
        release()
        return copies

    @torch.no_grad()
    def _scale(self, like: Tensor) -> Tensor:
        """Returns w √D (D,), in fp32 at least."""
        weight, _, release, _ = self.lender(like)
        exact = exactly(like.dtype)
        wide = weight if weight is None or weight.dtype == exact else weight.to(exact)
        scale = (like.new_ones(self._shape, dtype=exact) if wide is None else wide) * self._shape[0] ** 0.5
        release()
        return scale


def is_linear(module: nn.Module) -> bool:
    """Returns whether a module is a Linear. Quantized layers that are no `nn.Linear` but have a Linear's weight and
    sizes count too."""
    return isinstance(module, nn.Linear) or all(hasattr(module, n) for n in ("in_features", "out_features", "weight"))


def build_view(live: nn.Module, fetch: Fetch, like: Tensor) -> nn.Module:
    """Builds a tree of new modules that computes what `live` computes, differentiably.

    `like` has the device and dtype that adapters on the view get.
    Raises TypeError for a layer with weights that is neither a Linear nor a norm: such a model is not supported."""
    return _build(live, fetch, like, Copies(), "")


def _build(live: nn.Module, fetch: Fetch, like: Tensor, copies: Copies, name: str) -> nn.Module:
    if is_linear(live):
        return FrozenLinear(live, fetch, like, copies)
    if isinstance(live, (nn.LayerNorm, nn.RMSNorm)):
        return FrozenNorm(live, fetch, copies)
    if any(p is not None for p in live._parameters.values()):
        raise TypeError(f"LiveLoRA cannot train through '{name}' ({type(live).__name__}): it has weights and is "
                        "neither a Linear nor a norm. Choose another model.")
    view = copy.copy(live)
    view.__dict__.update(_modules={}, _parameters=dict(live._parameters), _buffers=dict(live._buffers))
    for child_name, child in live.named_children():
        view._modules[child_name] = _build(child, fetch, like, copies, f"{name}.{child_name}".lstrip("."))
    return view
