"""What can be trained, how a base is recognised, and what is left as it was."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.sd
import comfy.sd1_clip
import pytest
import torch
from livelora.trainer.comfy.host import ComfyHost, with_lora
from livelora.trainer.lora.tensors import to_lora
from livelora.trainer.model.host import Interrupted, SampleSettings
from tiny_flux import load_flux, make_view, random_flux

SETTINGS = SampleSettings(width=64, height=64, steps=2, cfg=2.0, guidance=1.0, sampler_name="euler",
                          scheduler="simple", seed=3)


def test_clip_l_alone_is_refused(patcher, random_vae):
    class Target:
        clip = comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer
        params: dict = {}

    tiny = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    clip = comfy.sd.CLIP(Target, model_options={"clip_l_model_config": tiny})
    with pytest.raises(ValueError, match="clip: FLUX.1 needs CLIP-L and T5-XXL together, this is SD1ClipModel"):
        ComfyHost(patcher, clip, random_vae)


def test_text_encoders_of_another_width_are_refused(clip, random_vae):
    wide = load_flux(random_flux(context_in_dim=256))
    with pytest.raises(ValueError, match=r"width 256 \(T5\) and 128 \(CLIP-L\), these have 128 and 128"):
        ComfyHost(wide, clip, random_vae)


def test_a_fill_model_is_refused(clip, random_vae):
    fill = load_flux(random_flux(in_channels=96))
    with pytest.raises(ValueError, match=r"takes extra image channels \(96 in, 16 out: a fill"):
        ComfyHost(fill, clip, random_vae)


def test_a_model_of_the_same_class_without_clip_l_is_refused(clip, random_vae):
    ovis = load_flux(random_flux(vec_in_dim=None, guidance_embed=False, yak_mlp=True, txt_norm=True))
    with pytest.raises(ValueError, match=r"takes no CLIP-L \(Ovis-Image is such a model\). Load a FLUX.1 model"):
        ComfyHost(ovis, clip, random_vae)


def test_the_fingerprint_tells_bases_apart(flux_state, clip, random_vae):
    def fingerprint(patcher):
        return ComfyHost(patcher, clip, random_vae).fingerprint()

    one, again, other = load_flux(flux_state), load_flux(flux_state), load_flux(random_flux(seed=9))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    host = ComfyHost(one, clip, random_vae)
    view, _ = make_view(host, std=0.1)
    patched = with_lora(one, to_lora(view, "LoRA"))
    unpatched = fingerprint(one)
    assert fingerprint(patched) != unpatched
    with torch.inference_mode():
        mm.load_models_gpu([patched])  # the LoRA now lies in the live weights
    assert fingerprint(one) == unpatched


def test_loading_takes_anothers_patches_off(host, patcher):
    """A LoRA that a prompt put on the same base is gone before the next step."""
    host.load(0)
    weight = patcher.model.diffusion_model.single_blocks[0].linear1.weight
    before = weight.clone()
    view, _ = make_view(host, std=0.1)
    patched = with_lora(patcher, to_lora(view, "LoRA"))
    with torch.inference_mode():
        mm.load_models_gpu([patched])
    assert not patcher.model.diffusion_model.single_blocks[0].linear1.weight.equal(before)
    host.load(0)
    assert patcher.model.diffusion_model.single_blocks[0].linear1.weight.equal(before)


def test_a_lora_wired_before_training_is_part_of_the_base(host, patcher, clip, random_vae):
    """A training adapter for a distilled model is a LoraLoader in front of LoRA Train: gradients are of base + LoRA."""
    from tiny_flux import gradients

    view, _ = make_view(host, std=0.1)
    wired = ComfyHost(with_lora(patcher, to_lora(view, "LoRA")), clip, random_vae)
    wired.load(0)
    with_adapter = gradients(wired, *make_view(wired))
    host.load(0)
    without = gradients(host, *make_view(host))
    assert any((a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(with_adapter, without, strict=True))


def test_drawing_leaves_the_global_generator_alone(host):
    text = host.encode_text("red apple")
    state = torch.random.get_rng_state()
    draw = host.sampler({}, 1.0)
    one, two = (draw(text, text, SETTINGS, lambda: False) for _ in range(2))
    assert one.equal(two) and one.shape == (64, 64, 3)
    assert torch.random.get_rng_state().equal(state)


def test_an_interruption_is_translated_and_can_be_handed_back(host):
    text = host.encode_text("red apple")
    mm.interrupt_current_processing(True)
    with pytest.raises(Interrupted):
        host.sampler({}, 1.0)(text, text, SETTINGS, lambda: False)
    assert not mm.processing_interrupted()
    host.hand_back_interrupt()
    with pytest.raises(mm.InterruptProcessingException):
        mm.throw_exception_if_processing_interrupted()
