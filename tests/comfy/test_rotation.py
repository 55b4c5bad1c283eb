"""Rotary positions: ComfyUI's own rotation, and its gradient, without keeping queries and keys."""

from __future__ import annotations

import comfy.ldm.flux.layers
import comfy.ldm.flux.math
import pytest
import torch
from livelora.trainer.comfy.families.flux1 import RotaryAttention, _Rotate, rotation_of

AXES = [4, 6, 6]
KINDS = pytest.mark.parametrize("kind", ["numbers", "matrices"])


def positions(count: int) -> torch.Tensor:
    """Ids (1, L, 3) with text at the origin, as pictures have them."""
    ids = torch.zeros(1, count, 3)
    ids[:, 2:, 1] = torch.arange(count - 2).float() // 3
    ids[:, 2:, 2] = torch.arange(count - 2).float() % 3
    return ids


def embedded(count: int) -> torch.Tensor:
    return comfy.ldm.flux.layers.EmbedND(sum(AXES), 10_000, AXES)(positions(count))


def of_kind(kind: str, matrices: torch.Tensor) -> torch.Tensor:
    """A rotation as the CPU takes it, or as a GPU does."""
    return rotation_of(matrices) if kind == "numbers" else matrices


def by_hand(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Su et al. 2021, equation 34: pair i of axis a at position p turns by p θ^(−2i/d), written with complex exponents.
    """
    angles = [ids[..., axis, None].double() * 10_000.0 ** -(torch.arange(0, width, 2).double() / width)
              for axis, width in enumerate(AXES)]
    turn = torch.polar(torch.ones(1).double(), torch.cat(angles, dim=-1))[:, None]
    pairs = torch.complex(x.double()[..., 0::2], x.double()[..., 1::2]) * turn
    return torch.stack((pairs.real, pairs.imag), dim=-1).flatten(-2)


@KINDS
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_it_is_comfyuis_and_the_papers_rotation(kind, dtype, near):
    matrices = embedded(11)
    q, k = (torch.randn(2, 3, 11, 16).to(dtype) for _ in range(2))
    found = _Rotate.apply(q, k, of_kind(kind, matrices))
    for ours, theirs, x in zip(found, comfy.ldm.flux.math._apply_rope(q, k, matrices), (q, k), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, atol=near, rtol=near)
        torch.testing.assert_close(ours.double(), by_hand(x, positions(11)), atol=near, rtol=near)


def test_its_gradient_is_a_finite_difference():
    q, k = (torch.randn(1, 2, 5, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rotation = rotation_of(embedded(5).double())
    assert torch.autograd.gradcheck(lambda q, k: _Rotate.apply(q, k, rotation), (q, k))


def test_its_gradient_is_the_same_with_comfyuis_kernel():
    """The kernel takes no fp64, which a finite difference needs. Gradients lie in memory another way round, too."""
    q, k = (torch.randn(2, 3, 5, 16, requires_grad=True) for _ in range(2))
    grads, found = [torch.randn(2, 5, 3, 16).transpose(1, 2) for _ in range(2)], []
    for kind in ("numbers", "matrices"):
        found.append(torch.autograd.grad(_Rotate.apply(q, k, of_kind(kind, embedded(5))), (q, k), grads))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_queries_and_keys_are_not_kept():
    kept = []
    q, k = (torch.randn(1, 2, 5, 16, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        turned = _Rotate.apply(q, k, rotation_of(embedded(5)))
    sum(t.sum() for t in turned).backward()
    assert kept == [] and q.grad.abs().sum() > 0


def test_the_positions_are_computed_once_a_forward():
    calls = []
    attention = RotaryAttention(lambda ids: calls.append(ids) or embedded(ids.shape[1]))
    options = attention.options()
    ids = positions(7)
    taken = options["patches"]["post_input"][0]({"txt_ids": ids[:, :2], "img_ids": ids[:, 2:], "img": None})
    assert taken["img_ids"] is None and len(calls) == 1 and calls[0].equal(ids)
    q, k, v = (torch.randn(1, 2, 7, 16) for _ in range(3))
    outputs = [options["optimized_attention_override"](None, q, k, v, 2, skip_reshape=True) for _ in range(2)]
    assert len(calls) == 1 and outputs[0].equal(outputs[1])
    expected = torch.nn.functional.scaled_dot_product_attention(
        by_hand(q, ids).float(), by_hand(k, ids).float(), v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(outputs[0], expected, atol=1e-5, rtol=1e-5)
