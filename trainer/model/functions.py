"""Computes products and norms with weights on loan, and their gradients.

Shapes: L tokens, I input width, O output width, R rank of a LoRA, D width of a norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .lending import Lender


def exactly(dtype: torch.dtype) -> torch.dtype:
    """Returns the type in which norms and rotations are computed for values of a type: fp32 at least."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class Matrices(NamedTuple):
    """Holds a LoRA's matrices as they are multiplied: in the dtype of the computation, without autograd."""

    a: Tensor
    """(R, I), or more rows if others are in effect beside those that are trained."""
    b: Tensor
    """(O, R)"""
    a_t: Tensor
    b_t: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, lora_a: Tensor, lora_b: Tensor, dtype: torch.dtype,
           beside: tuple[Tensor, Tensor] | None = None) -> Matrices:
        """Returns A and B, cast where they are of another dtype, and behind them those of another pair."""
        if beside:
            lora_a, lora_b = torch.cat((lora_a, beside[0])), torch.cat((lora_b, beside[1]), dim=1)
        a, b = lora_a.to(dtype), lora_b.to(dtype)
        return cls(a, b, a.T, b.T)


def multiply(x: Tensor, borrow: Lender) -> Tensor:
    """Returns y = x Wᵀ + b."""
    weight, bias, release, _ = borrow(x)
    y = F.linear(x, weight, bias)
    release()
    return y


class Multiply(torch.autograd.Function):
    """Computes y = x Wᵀ + b. Nothing is saved for the backward pass: W is borrowed again."""

    @staticmethod
    def forward(ctx, x: Tensor, borrow: Lender) -> Tensor:
        ctx.borrow = borrow
        return multiply(x, borrow)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        weight, _, release, _ = ctx.borrow(grads[0])
        grad_x = grads[0] @ weight
        release()
        return grad_x, None


class MultiplyAndTell(Multiply):
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


def multiply_with_lora(x: Tensor, lora: Matrices, scale: float, borrow: Lender) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = x Wᵀ + b + s (x Aᵀ) Bᵀ, and the rows of x (L, I) and of x Aᵀ (L, R) of which it is made."""
    rows = x.flatten(0, -2)
    y = multiply(rows, borrow)
    down = rows @ lora.a_t
    y.addmm_(down, lora.b_t, alpha=scale)
    return y.view(*x.shape[:-1], -1), rows, down


class MultiplyWithLora(torch.autograd.Function):
    """Computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ. The LoRA term and its gradient are added in place: autograd's own way
    allocates and passes over tensors of y's size twice more in the forward and three times more in the backward pass.

    A and B are there for their gradients alone: `lora` has what is multiplied."""

    @staticmethod
    def forward(ctx, x: Tensor, lora_a: Tensor, lora_b: Tensor, lora: Matrices, scale: float, borrow: Lender) -> Tensor:
        y, rows, down = multiply_with_lora(x, lora, scale, borrow)
        ctx.borrow, ctx.scale, ctx.shape = borrow, scale, x.shape
        ctx.dtype, ctx.rank = lora_a.dtype, len(lora_a)
        ctx.save_for_backward(rows, down, lora.a, lora.b)
        return y

    @staticmethod
    def backward(ctx, *grads: Tensor):
        rows, down, a, b = ctx.saved_tensors
        grad_y = grads[0].flatten(0, -2)
        grad_down, grad_b = grad_y @ b, grad_y.T @ down[:, :ctx.rank]
        if ctx.scale != 1:
            grad_down.mul_(ctx.scale)
            grad_b.mul_(ctx.scale)
        grad_a, grad_b = (grad_down[:, :ctx.rank].T @ rows).to(ctx.dtype), grad_b.to(ctx.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_a, grad_b, None, None, None
        weight, _, release, _ = ctx.borrow(grad_y)
        grad_x = grad_y @ weight
        release()
        return grad_x.addmm_(grad_down, a).view(ctx.shape), grad_a, grad_b, None, None, None


class RmsNorm(torch.autograd.Function):
    """Computes y = w x / √(mean(x²) + ε) (Zhang & Sennrich 2019, arXiv:1910.07467) over a last dimension of D values,
    with a gradient for x alone. `scale` is w √D and `least` √(D ε), because D (mean(x²) + ε) = |x|² + D ε."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, least: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=scale.dtype)
        length = torch.hypot(length, least)
        ctx.save_for_backward(x, scale, length)
        return (x / length).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, scale, length = ctx.saved_tensors
        grad = grads[0] * scale
        along = (grad * x).sum(-1, keepdim=True).div_(length.square())
        return grad.addcmul_(x, along, value=-1).div_(length).to(x.dtype), None, None
