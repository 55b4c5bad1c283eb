"""The reference for a layer's shape is the weight that its tensors make up."""

from __future__ import annotations

import pytest
import torch
from livelora.trainer.lora.tensors import check_fits
from torch import Tensor, nn

R = torch.rand


def product(one: tuple[Tensor, Tensor]) -> Tensor:
    return one[0] @ one[1]


def lora() -> tuple[dict[str, Tensor], Tensor]:
    b, a = R(12, 2), R(2, 20)
    return {"lora_A.weight": a, "lora_B.weight": b, "alpha": torch.tensor(2.0)}, b @ a


def loha() -> tuple[dict[str, Tensor], Tensor]:
    one, two = (R(12, 2), R(2, 20)), (R(12, 2), R(2, 20))
    return dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (*one, *two), strict=True)), (
        product(one) * product(two))


def lokr() -> tuple[dict[str, Tensor], Tensor]:
    one, two = R(3, 5), (R(4, 2), R(2, 4))
    return {"lokr_w1": one, "lokr_w2_a": two[0], "lokr_w2_b": two[1]}, torch.kron(one, product(two))


def oft() -> tuple[dict[str, Tensor], Tensor]:
    return {"oft_blocks": R(3, 4, 4)}, torch.block_diag(*R(3, 4, 4)) @ R(12, 20)


def network(outputs: int, inputs: int, name: str = "layer") -> nn.Module:
    return nn.ModuleDict({"blocks": nn.ModuleDict({name: nn.Linear(inputs, outputs)})})


def named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"diffusion_model.blocks.layer.{suffix}": value for suffix, value in tensors.items()}


@pytest.mark.parametrize("make", [lora, loha, lokr, oft])
def test_a_lora_fits_the_layer_that_its_change_has_the_shape_of(make):
    tensors, change = make()
    check_fits(named(tensors), network(*change.shape))
    others = [network(change.shape[0] + 4, change.shape[1]), network(*change.shape, name="other")]
    if make is not oft:  # it turns outputs, whatever they come from
        others.append(network(change.shape[0], change.shape[1] + 4))
    for other in others:
        with pytest.raises(ValueError, match=r"base model: none of its layers \(1\), such as blocks\.layer, is in"):
            check_fits(named(tensors), other)


def test_one_layer_that_fits_is_enough():
    """A pruned model has fewer blocks, and people use LoRAs of the whole one on it."""
    tensors, change = lora()
    both = {**named(tensors), **{f"diffusion_model.gone.{suffix}": value for suffix, value in tensors.items()}}
    check_fits(both, network(*change.shape))
