"""Quantized bases train as they are: gradients are those of the dequantized weights, nothing is unpacked for good.
Quantize Model for Training makes such bases, which ComfyUI's own nodes take like any other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import comfy.memory_management
import comfy.model_management as mm
import comfy.quant_ops
import comfy.sd
import pytest
import torch
from livelora.trainer.comfy.demo_model import load_demo_model
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.comfy.host import ComfyHost
from livelora.trainer.comfy.quantize import KINDS, quantize
from livelora.trainer.lora import formats
from livelora.trainer.lora.tensors import to_lora
from livelora.trainer.model.view import is_linear
from safetensors.torch import save_file
from tiny_flux import gradients, load_flux, make_view, random_flux

import nodes  # ComfyUI's

FP8 = torch.float8_e4m3fn
DEMO = Path(__file__).parents[2] / "nodes" / "demo_weights"
too_old = "int8_tensorwise" not in comfy.quant_ops.QUANT_ALGOS
needs_quantized = pytest.mark.skipif(too_old, reason="this ComfyUI cannot patch such weights; the node refuses")
each_kind = pytest.mark.parametrize("kind", KINDS)


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


def weights(patcher) -> dict[str, torch.Tensor]:
    """Every weight and bias of a model as plain numbers."""
    return {name: value.dequantize() if isinstance(value, comfy.quant_ops.QuantizedTensor) else value.detach()
            for name, value in patcher.model.diffusion_model.named_parameters()}


@needs_quantized
@each_kind
def test_gradients_on_a_model_of_the_node_are_those_of_its_weights_unpacked(patcher, clip, random_vae, kind):
    quantized = ComfyHost(quantize(patcher, kind), clip, random_vae)
    plain = ComfyHost(load_flux(weights(quantized._patcher)), clip, random_vae)
    quantized.load(0)
    plain.load(0)
    found, expected = gradients(quantized, *make_view(quantized)), gradients(plain, *make_view(plain))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@needs_quantized
@each_kind
def test_only_linears_of_blocks_are_packed_and_the_wired_model_stays_as_it_is(patcher, kind):
    before = {name: value.clone() for name, value in weights(patcher).items()}
    quantized = quantize(patcher, kind)
    for name, value in patcher.model.diffusion_model.named_parameters():
        assert value.equal(before[name])
    values = dict(quantized.model.diffusion_model.named_parameters())
    assert values.keys() == before.keys()
    for name, module in quantized.model.diffusion_model.named_modules():
        if is_linear(module):
            packed = isinstance(module.weight, comfy.quant_ops.QuantizedTensor)
            assert packed == ("_blocks." in name)
    for name, value in values.items():
        if not isinstance(value, comfy.quant_ops.QuantizedTensor):
            assert value.equal(before[name]), name


@needs_quantized
@each_kind
def test_weights_are_as_near_as_the_kind_promises(patcher, kind):
    """Root mean square of the error, in σ of normally distributed weights. NF4: 0.0921, by its table on a million
    values in blocks of 64. int8: rows of 256 to 1280 values have their largest one at 3 to 3.5 σ on average; a step is
    1/127 of that, and rounding errs by 1/√12 of a step: 0.0080 at most. (fp8 errs by 0.0265.)"""
    before, after = weights(patcher), weights(quantize(patcher, kind))
    for name in before:
        if "_blocks." in name and before[name].ndim == 2:
            error = (after[name] - before[name]).square().mean().sqrt() / before[name].square().mean().sqrt()
            assert error < {"int8": 0.0085, "nf4": 0.094}[kind], name


@needs_quantized
@each_kind
def test_a_file_in_fp8_and_a_quantized_model_can_be_quantized_too(flux_state, kind):
    stored, exact = scaled_fp8(flux_state)
    from_fp8, direct = weights(quantize(load_flux(stored), kind)), weights(quantize(load_flux(exact), kind))
    for name in direct:
        assert (from_fp8[name].float() - direct[name].float()).abs().max() <= 0.05 * direct[name].float().abs().max()
    again = quantize(quantize(load_flux(exact), "int8"), kind)
    assert all(value.isfinite().all() for value in weights(again).values())


@needs_quantized
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@each_kind
def test_quantizing_takes_no_more_than_the_result_and_one_block_beside_the_model(kind):
    """A second copy of the weights would be 107 MB, what is allowed is 65 MB for int8."""
    patcher = load_flux(random_flux(hidden_size=512, num_heads=4))
    [block, _] = patcher.model.diffusion_model.double_blocks
    quantize(load_flux(random_flux()), kind)  # imports everything
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
    before = memory("VmRSS")
    quantized = quantize(patcher, kind)
    peak = memory("VmHWM") - before
    assert peak <= quantized.model_size() + mm.module_size(block)


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def draw(patcher, clip, vae, seed: int = 3) -> torch.Tensor:
    """A picture of the demo model by core's own nodes."""
    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("red apple", ""))
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        [drawn] = nodes.KSampler().sample(patcher, seed, 4, 3.0, "euler", "simple", positive, negative, latent)
        return nodes.VAEDecode().decode(vae, drawn)[0][0]


@pytest.fixture(scope="module")
def demo():
    with torch.inference_mode():
        return load_demo_model(DEMO)


@pytest.fixture(scope="module")
def lora(demo):
    """A LoRA file that changes pictures."""
    host = ComfyHost(*demo)
    return formats.write(to_lora(make_view(host, std=0.15)[0], "LoRA"), "ComfyUI", FAMILIES)


def load_lora(patcher, lora, strength: float = 1.0):
    """As Load LoRA does."""
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0)[0]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


@needs_quantized
@each_kind
def test_ksampler_draws_nearly_the_same_and_a_lora_on_top_does_nearly_what_it_does_without(demo, lora, kind):
    model, clip, vae = demo
    base, wanted = draw(model, clip, vae), draw(load_lora(model, lora), clip, vae)
    quantized = quantize(model, kind)
    found, with_lora = draw(quantized, clip, vae), draw(load_lora(quantized, lora), clip, vae)
    assert distance(found, base) < {"int8": 0.03, "nf4": 0.15}[kind] * base.std()
    effect, expected = (with_lora - found).flatten(), (wanted - base).flatten()
    assert torch.nn.functional.cosine_similarity(effect, expected, dim=0) > {"int8": 0.98, "nf4": 0.6}[kind]
    assert 0.8 < effect.dot(expected) / expected.dot(expected) < 1.2, "it is there in its full strength"
    assert draw(quantized, clip, vae).equal(found), "the LoRA is gone without a trace"
    assert draw(model, clip, vae).equal(base)
    before_it = quantize(load_lora(model, lora), kind)
    assert draw(before_it, clip, vae).equal(with_lora), "a LoRA wired before it stays a LoRA"


def answer(patcher, clip, share: float) -> torch.Tensor:
    """What the transformer answers when so much of it is on the device and the rest is streamed."""
    text = clip.encode_from_tokens(clip.tokenize("red apple"), return_pooled=True, return_dict=True)
    here, noise = patcher.load_device, torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        mm.unload_all_models()
        patcher.patch_model(patcher.load_device, 0 if share == 1 else int(share * patcher.model_size()))
        try:
            assert patcher.model.model_lowvram == (share < 1)
            return patcher.model.apply_model(
                noise.to(here), torch.tensor([0.7], device=here), c_crossattn=text["cond"].to(here),
                y=text["pooled_output"].to(here), guidance=torch.ones(1, device=here))
        finally:
            patcher.unpatch_model(patcher.offload_device)


@needs_quantized
@each_kind
def test_it_answers_the_same_when_half_of_it_is_streamed(demo, lora, kind):
    """… up to the rounding of patched weights, which ComfyUI does for those that stay on the device."""
    model, clip, _ = demo
    quantized = quantize(model, kind)
    patched, exact = load_lora(quantized, lora), answer(load_lora(model, lora), clip, 1)
    assert distance(answer(quantized, clip, 0.5), answer(quantized, clip, 1)) < 1e-4
    effect = distance(exact, answer(model, clip, 1))
    for share in (0.1, 0.5, 1):
        assert distance(answer(patched, clip, share), exact) < {"int8": 0.08, "nf4": 0.7}[kind] * effect, share


@needs_quantized
@each_kind
def test_dynamicvram_gathers_a_weight_into_one_buffer_and_patches_it_there(patcher, kind):
    """The calls of comfy/ops.py's cast_modules_with_vbar and resolve_cast_module_with_vbar. Their buffer is on a
    GPU."""
    live = quantize(patcher, kind).model.diffusion_model.single_blocks[0].linear1
    parts = [live.weight, live.bias]
    buffer = torch.empty(comfy.memory_management.vram_aligned_size(parts), dtype=torch.uint8)
    mm.cast_to_gathered(parts, buffer)
    weight, bias = comfy.memory_management.interpret_gathered_like(parts, buffer)
    assert weight.dequantize().equal(live.weight.dequantize()) and bias.equal(live.bias)
    changed = 1.1 * weight.dequantize()
    weight.copy_(weight.requantize_from_float(changed, scale="recalculate", stochastic_rounding=5))
    there = comfy.memory_management.interpret_gathered_like(parts, buffer)[0].dequantize()
    assert distance(there, changed) < {"int8": 0.02, "nf4": 0.15}[kind] * changed.std()


@needs_quantized
@each_kind
def test_a_small_change_survives_rounding_on_average(patcher, kind):
    """Rounded to the nearest, a change of a hundredth of a weight's standard deviation would be gone from NF4."""
    weight = quantize(patcher, kind).model.diffusion_model.single_blocks[0].linear1.weight
    plain = weight.dequantize()
    change = 0.01 * plain.std()
    found = [weight.requantize_from_float(plain + change, scale="recalculate", stochastic_rounding=seed).dequantize()
             for seed in range(1, 9)]
    assert abs(torch.stack(found).mean() - plain.mean() - change) < 0.1 * change
    unchanged = weight.requantize_from_float(plain, scale="recalculate", stochastic_rounding=1).dequantize()
    assert distance(unchanged, plain) < 1e-3 * plain.std()


@needs_quantized
def test_int8_can_be_saved_and_loaded_by_comfyui(patcher):
    quantized = quantize(patcher, "int8")
    loaded = load_flux(quantized.model.diffusion_model.state_dict())
    found, expected = weights(loaded), weights(quantized)
    assert all(found[name].equal(expected[name]) for name in expected)


@needs_quantized
@each_kind
def test_it_has_the_same_fingerprint_each_time_and_a_copy_of_its_own_when_comfyui_asks(flux_state, clip, random_vae,
                                                                                       tmp_path, kind):
    save_file(flux_state, tmp_path / "flux.safetensors")
    with torch.inference_mode():
        quantized = quantize(comfy.sd.load_diffusion_model(str(tmp_path / "flux.safetensors")), kind)
        copy = quantized.clone(force_deepcopy=True)
    assert copy.model is not quantized.model
    one, other = (ComfyHost(each, clip, random_vae).fingerprint() for each in (quantized, copy))
    assert one == other


@needs_quantized
def test_a_model_whose_modules_are_hooked_into_is_refused(demo, lora):
    with torch.inference_mode():
        bypassed, _ = comfy.sd.load_bypass_lora_for_models(demo[0], None, lora, 1.0, 0)
    with pytest.raises(ValueError, match="Put Quantize Model for Training before that node"):
        quantize(bypassed, "int8")


@needs_quantized
def test_nf4_without_bitsandbytes_says_how_to_install_it(patcher, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RuntimeError, match="-m pip install bitsandbytes"):
        quantize(patcher, "nf4")


def test_a_comfyui_that_cannot_patch_such_weights_is_named(patcher, monkeypatch):
    monkeypatch.delitem(comfy.quant_ops.QUANT_ALGOS, "int8_tensorwise", raising=False)
    with pytest.raises(RuntimeError, match="needs ComfyUI 0.27 or newer, this is"):
        quantize(patcher, "int8")
