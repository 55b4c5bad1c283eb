"""Builds the training view: a second module tree over a live model, with module objects of its own and no weights.

The live tree stays untouched: its weights may be inference tensors, quantized, on another device or streamed. Each use
of a weight asks the live module for it through `fetch`, in the forward and again in the backward pass.

Shapes: B images, L tokens, I input width, O output width, R rank of a LoRA.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def __call__(self, like: Tensor) -> Weight:
        """Returns the weight in the device and dtype of `like`. Within `held` it is the same one each time."""
        if not self._holds:
            return self._fetch(like)
        if self._loan is None:
            loan = self._fetch(like)
            self._loan = loan if loan.lasting else _copied(loan)
        return self._loan._replace(release=_nothing)

    def hold(self) -> None:
        """Keeps the next loan, until `let_go`."""
        self._holds = True

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


@contextlib.contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """While inside, each weight in a part of a view is fetched once at most."""
    lenders = [part.lender for part in module.modules() if isinstance(part, (FrozenLinear, FrozenNorm))]
    for lender in lenders:
        lender.hold()
    try:
        yield
    finally:
        for lender in lenders:
            lender.let_go()


class _Multiply(torch.autograd.Function):
    """Computes y = x Wᵀ + b. Nothing is saved for the backward pass: W is borrowed again."""

    @staticmethod
    def forward(ctx, x: Tensor, borrow: Lender) -> Tensor:
        ctx.borrow = borrow
        weight, bias, release, _ = borrow(x)
        y = F.linear(x, weight, bias)
        release()
        return y

    @staticmethod
    def backward(ctx, *grads: Tensor):
        if not ctx.needs_input_grad[0]:
            return None, None
        weight, _, release, _ = ctx.borrow(grads[0])
        grad_x = grads[0] @ weight
        release()
        return grad_x, None


class _MultiplyAndTell(_Multiply):
    """Computes y = x Wᵀ + b, and returns b beside it."""

    @staticmethod
    def forward(ctx, x: Tensor, borrow: Lender) -> tuple[Tensor, Tensor | None]:
        ctx.borrow = borrow
        weight, bias, release, _ = borrow(x)
        y, bias = F.linear(x, weight, bias), None if bias is None else bias.detach().clone()
        release()
        if bias is not None:
            ctx.mark_non_differentiable(bias)
        return y, bias


class _MultiplyWithLora(torch.autograd.Function):
    """Computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ. The LoRA term and its gradient are added in place: autograd's own way
    allocates and passes over tensors of y's size twice more in the forward and three times more in the backward pass.
    """

    @staticmethod
    def forward(ctx, x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float, borrow: Lender) -> Tensor:
        weight, bias, release, _ = borrow(x)
        y = F.linear(x, weight, bias)
        release()
        down = F.linear(x, lora_a)
        y.flatten(0, -2).addmm_(down.flatten(0, -2), lora_b.T, alpha=scale)
        ctx.borrow, ctx.scale = borrow, scale
        ctx.save_for_backward(x, lora_a, lora_b, down)
        return y

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, lora_a, lora_b, down = ctx.saved_tensors
        grad_y = grads[0].flatten(0, -2)
        grad_down = (grad_y @ lora_b).mul_(ctx.scale)
        grad_a, grad_b = grad_down.T @ x.flatten(0, -2), (grad_y.T @ down.flatten(0, -2)).mul_(ctx.scale)
        if not ctx.needs_input_grad[0]:
            return None, grad_a, grad_b, None, None
        weight, _, release, _ = ctx.borrow(grad_y)
        grad_x = grad_y @ weight
        release()
        return grad_x.addmm_(grad_down, lora_a).view_as(x), grad_a, grad_b, None, None


class FrozenLinear(nn.Linear):
    """A Linear whose weight is the live module's. Its own `weight` is a placeholder of one element, expanded to
    (O, I): adapters read their shape, device and dtype from it. Adapters that compute with the weight itself (DoRA,
    PiSSA) see it within `real_weights`."""

    def __init__(self, live: Live, fetch: Fetch, like: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = live.in_features, live.out_features
        placeholder = like.new_zeros(1).expand(self.out_features, self.in_features)
        self.placeholder = nn.Parameter(placeholder, requires_grad=False)
        self.lends = False
        self.lender = Lender(live, fetch)

    @property
    def weight(self) -> Tensor:
        """Returns the placeholder; within `real_weights` a copy of the live weight (O, I), in the placeholder's dtype.
        """
        return self._copies()[0] if self.lends else self.placeholder

    @property
    def bias(self) -> Tensor | None:
        """Returns None; within `real_weights` a copy of the live bias (O,)."""
        return self._copies()[1] if self.lends else None

    @torch.no_grad()
    def _copies(self) -> list[Any]:
        weight, bias, release, _ = self.lender(self.placeholder)
        copies = [None if t is None else t.detach().clone() for t in (weight, bias)]
        release()
        return copies

    def forward(self, x: Tensor) -> Tensor:
        """Computes the Linear: (B, L, I) → (B, L, O)."""
        return _Multiply.apply(x, self.lender)

    def with_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes the Linear, (B, L, I) → (B, L, O), and returns beside it the bias (O,) that is in it."""
        return _MultiplyAndTell.apply(x, self.lender)

    def with_lora(self, x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
        """Computes the Linear, (B, L, I) → (B, L, O), with the LoRA matrices A (R, I) and B (O, R) in effect at
        `scale`. They are multiplied in the dtype of `x` (Micikevicius et al. 2018, arXiv:1710.03740)."""
        return _MultiplyWithLora.apply(x, lora_a.to(x.dtype), lora_b.to(x.dtype), scale, self.lender)


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


class FrozenNorm(nn.Module):
    """A layer norm or RMS norm with the live module's weights. The layer norm works on a copy of its input, because
    transformer blocks later add into the tensor that they normalised."""

    def __init__(self, live: Live, fetch: Fetch) -> None:
        super().__init__()
        self.lender, self._shape, self._eps = Lender(live, fetch), live.normalized_shape, live.eps
        self._is_layer_norm = isinstance(live, nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x`; its shape and dtype stay the same."""
        weight, bias, release, _ = self.lender(x)
        # Autograd keeps the weights past `release`; and the live ones may ask for gradients, which they must not get.
        weight, bias = (None if t is None else t.detach().clone() for t in (weight, bias))
        release()
        if self._is_layer_norm:
            return F.layer_norm(x.clone(), self._shape, weight, bias, self._eps)
        return F.rms_norm(x, self._shape, weight, self._eps)


def is_linear(module: nn.Module) -> bool:
    """Returns whether a module is a Linear. Quantized layers that are no `nn.Linear` but have a Linear's weight and
    sizes count too."""
    return isinstance(module, nn.Linear) or all(hasattr(module, n) for n in ("in_features", "out_features", "weight"))


def build_view(live: nn.Module, fetch: Fetch, like: Tensor, name: str = "") -> nn.Module:
    """Builds a tree of new modules that computes what `live` computes, differentiably.

    `like` has the device and dtype that adapters on the view get.
    Raises TypeError for a layer with weights that is neither a Linear nor a norm: such a model is not supported."""
    if is_linear(live):
        return FrozenLinear(live, fetch, like)
    if isinstance(live, (nn.LayerNorm, nn.RMSNorm)):
        return FrozenNorm(live, fetch)
    if any(p is not None for p in live._parameters.values()):
        raise TypeError(f"LiveLoRA cannot train through '{name}' ({type(live).__name__}): it has weights and is "
                        "neither a Linear nor a norm. Choose another model.")
    view = copy.copy(live)
    view.__dict__.update(_modules={}, _parameters=dict(live._parameters), _buffers=dict(live._buffers))
    for child_name, child in live.named_children():
        view._modules[child_name] = build_view(child, fetch, like, f"{name}.{child_name}".lstrip("."))
    return view
