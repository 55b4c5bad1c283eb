"""The parts of a training view, on layers alone: what they compute, what they copy, what they ask of the live ones."""

from __future__ import annotations

import collections

import pytest
import torch
import torch.nn.functional as F
from livelora.trainer.model.functions import RmsNorm
from livelora.trainer.model.lending import Weight
from livelora.trainer.model.view import build_view, copied_once
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts the operators that are called while inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Lender:
    """Lends weights as they are, cast, and counts how often each module was asked."""

    def __init__(self) -> None:
        self.asked: collections.Counter[nn.Module] = collections.Counter()

    def __call__(self, live, like):
        self.asked[live] += 1
        cast = [None if t is None else t.detach().to(like.dtype) for t in (live.weight, getattr(live, "bias", None))]
        return Weight(*cast, lambda: None)


def pair(draw: int = 0) -> tuple[nn.Parameter, nn.Parameter]:
    """A (3, 8) and B (6, 3) of a LoRA."""
    seeded = torch.Generator().manual_seed(draw)
    return nn.Parameter(torch.randn(3, 8, generator=seeded)), nn.Parameter(torch.randn(6, 3, generator=seeded))


def test_the_gradient_of_an_rms_norm_is_a_finite_difference():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
    scale, least = torch.rand(8, dtype=torch.float64) + 0.5, torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: RmsNorm.apply(x, scale, least), (x,))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-3, None])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_an_rms_norm_is_pytorchs(dtype, near, eps, affine):
    live = nn.RMSNorm(8, eps=eps, elementwise_affine=affine, dtype=dtype)
    if affine:
        nn.init.uniform_(live.weight, 0.5, 1.5)
    view, x = build_view(live, Lender(), torch.zeros(1)), (3 * torch.randn(2, 5, 8)).to(dtype).requires_grad_()
    weight = torch.randn(2, 5, 8).to(dtype)
    found = [(y, *torch.autograd.grad((y * weight).sum(), x)) for y in (view(x), live(x))]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=near, rtol=near)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_a_lora_is_cast_once_and_its_gradients_arrive_in_its_own_type(scale):
    """Two uses in bf16: without keeping, each casts A and B anew. The gradients are equal, bit for bit."""
    view, x = build_view(nn.Linear(8, 6), Lender(), torch.zeros(1)), torch.randn(2, 4, 8).bfloat16()
    found = []
    for keep in (False, True):
        lora = pair()
        with Calls() as calls:
            if keep:
                with copied_once(view):
                    loss = sum(view.with_lora(x, *lora, scale).square().sum() for _ in range(2))
                    forward = calls.names["_to_copy"]
                    loss.backward()
            else:
                loss = sum(view.with_lora(x, *lora, scale).square().sum() for _ in range(2))
                forward = calls.names["_to_copy"]
                loss.backward()
        found.append([loss.detach(), *(p.grad for p in lora)])
        assert [p.grad.dtype for p in lora] == [torch.float32] * 2
        casts_of_the_live_layer = 4
        assert forward - casts_of_the_live_layer == (2 if keep else 4)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_a_cast_does_not_outlive_its_step():
    view, x, lora = build_view(nn.Linear(8, 6), Lender(), torch.zeros(1)), torch.randn(2, 4, 8).bfloat16(), pair()
    outputs = []
    for _ in range(2):
        with copied_once(view), pytest.raises(RuntimeError, match="out of memory"):
            outputs.append(view.with_lora(x, *lora, 1.0).detach())
            raise RuntimeError("out of memory")
        with torch.no_grad():
            lora[1].mul_(2)
    with copied_once(view):
        outputs.append(view.with_lora(x, *lora, 1.0).detach())
    outputs.append(view.with_lora(x, *lora, 1.0).detach())
    assert not outputs[0].equal(outputs[1]) and not outputs[1].equal(outputs[2]) and outputs[2].equal(outputs[3])


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8)])
def test_gradients_of_a_lora_are_autograds(shape):
    """Of an input that lies in memory another way round as well."""
    live, (a, b) = nn.Linear(8, 6).double(), (p.double().detach().requires_grad_() for p in pair())
    view = build_view(live, Lender(), torch.zeros(1))
    x = torch.randn(shape, dtype=torch.float64).transpose(0, -2).contiguous().transpose(0, -2).requires_grad_()
    y = torch.randn(*shape[:-1], 6, dtype=torch.float64)
    ours = torch.autograd.grad((view.with_lora(x, a, b, 0.7) * y).sum(), (x, a, b))
    theirs = torch.autograd.grad((F.linear(x, live.weight + 0.7 * b @ a, live.bias) * y).sum(), (x, a, b))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


class Block(nn.Module):
    """Two Linears after norms, the second with a LoRA. It adds into its input, as transformer blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.one, self.two = nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, lora):
        x += self.one(self.before(x))
        return self.two.with_lora(x, *lora, 1.0) if lora else self.two(x)


def test_nothing_is_done_for_gradients_before_the_first_layer_that_is_trained():
    """No copy for a norm, no weight fetched for a backward pass: only the last Linear needs the gradient of its input.
    """
    live, lender = nn.ModuleList(Block() for _ in range(3)), Lender()
    view = build_view(live, lender, torch.zeros(1))
    lora = [nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(8, 3))]
    with Calls() as calls:
        x = view[1](view[0](torch.randn(1, 4, 8), None), lora)
        assert calls.names["clone"] == 0
        view[2](x.clone(), None).square().sum().backward()
    assert calls.names["clone"] == 2  # ours above, and one norm's
    asked = [[lender.asked[linear] for linear in (block.one, block.two)] for block in live]
    assert asked == [[1, 1], [1, 1], [2, 2]]
