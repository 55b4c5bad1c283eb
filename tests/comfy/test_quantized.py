"""Quantized bases train as they are: gradients are those of the dequantized weights, nothing is unpacked for good."""

from __future__ import annotations

import pytest
import torch
from livelora.trainer.comfy.host import ComfyHost
from tiny_flux import gradients, load_flux, make_view

FP8 = torch.float8_e4m3fn


def fp8(state):
    """A checkpoint cast to fp8, and what its weights then are."""
    stored = {name: value.to(FP8) for name, value in state.items()}
    return stored, {name: value.float() for name, value in stored.items()}


def scaled_fp8(state):
    """A checkpoint with a scale for each matrix of a block, as the `fp8_scaled` files have it."""
    stored, exact = {"scaled_fp8": torch.zeros(2, dtype=FP8)}, {}
    for name, value in state.items():
        if "_blocks." in name and value.ndim == 2:
            scale = value.abs().max() / 448
            stored[name] = (value / scale).to(FP8)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
            exact[name] = stored[name].float() * scale
        else:
            stored[name] = exact[name] = value
    return stored, exact


@pytest.mark.parametrize(("quantize", "options"), [(fp8, {"dtype": FP8}), (scaled_fp8, {})], ids=["fp8", "scaled fp8"])
def test_gradients_are_those_of_the_dequantized_model(flux_state, clip, random_vae, quantize, options):
    stored, exact = quantize(flux_state)
    quantized = ComfyHost(load_flux(stored, **options), clip, random_vae)
    plain = ComfyHost(load_flux(exact), clip, random_vae)
    quantized.dtype = plain.dtype = torch.float32
    quantized.load(0)
    plain.load(0)
    found, expected = gradients(quantized, *make_view(quantized)), gradients(plain, *make_view(plain))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    weight = quantized._live.single_blocks[0].linear1.weight
    assert weight.dtype == FP8 or type(weight).__name__ == "QuantizedTensor"
