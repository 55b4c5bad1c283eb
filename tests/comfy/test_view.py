"""The training view over a live FLUX.1: same output, right gradients, nothing live touched."""

from __future__ import annotations

import threading

import comfy.model_management as mm
import pytest
import torch
from livelora.trainer.comfy.host import with_lora
from livelora.trainer.comfy.weights import fetch
from livelora.trainer.lora.inject import inject
from livelora.trainer.lora.tensors import to_lora
from livelora.trainer.model.view import FrozenLinear, build_view
from livelora.trainer.training.targets import layout
from tiny_flux import CONFIG, batch, gradients, loss, make_view
from torch import nn


def live_output(patcher, latents, sigmas, text):
    """What ComfyUI's own model gives, as a prompt runs it."""
    with torch.inference_mode():
        mm.load_models_gpu([patcher])
        rest = (text["cond"], text["pooled_output"], torch.tensor([1.0]))
        return patcher.model.diffusion_model(latents.clone(), sigmas, *(t.to(latents.device) for t in rest))


def snapshot(patcher):
    return {name: value.clone() for name, value in patcher.model.state_dict().items()}


def test_a_new_lora_changes_nothing(host, patcher):
    host.load(0)
    latents, _, sigmas, texts = batch(host, 1)
    view = host.view(torch.float32)
    with torch.no_grad():
        plain = host.predict(view, latents, sigmas, texts, 1.0)
        inject(view, CONFIG, layout(view, CONFIG, host.family))
        assert host.predict(view, latents, sigmas, texts, 1.0).equal(plain)
    # ComfyUI may choose another attention and RoPE for inference: the same numbers, rounded elsewhere
    torch.testing.assert_close(plain, live_output(patcher, latents, sigmas, texts[0]), atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_no_gradient(host):
    host.load(0)
    plain = gradients(host, *make_view(host, checkpointing=False), size=2)
    recomputed = gradients(host, *make_view(host, checkpointing=True), size=2)
    assert all(a.equal(b) for a, b in zip(plain, recomputed, strict=True))
    assert all(g.abs().max() > 0 for g in plain)


def test_gradient_agrees_with_a_finite_difference(host):
    host.load(0)
    view, params = make_view(host)
    grads = gradients(host, view, params)
    direction, eps, values = [g / g.norm() for g in grads], 1e-2, []
    with torch.no_grad():
        for scale in (eps, -2 * eps):
            for p, d in zip(params, direction, strict=True):
                p.add_(d, alpha=scale)
            values.append(loss(host, view).double().item())
    expected = sum((g * d).sum().item() for g, d in zip(grads, direction, strict=True))
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(expected, rel=0.01)


def test_each_image_has_its_own_caption(host):
    """The loss of a batch is the mean of the losses of its images alone: captions are not mixed."""
    host.load(0)
    view, _ = make_view(host)
    latents, noise, sigmas, texts = batch(host, 3)
    with torch.no_grad():
        together = host.predict(view, latents, sigmas, texts, 1.0)
        alone = [host.predict(view, latents[i:i + 1], sigmas[i:i + 1], texts[i:i + 1], 1.0) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_captions_of_different_length_share_a_batch(host):
    host.load(0)
    view, _ = make_view(host)
    latents, _, sigmas, texts = batch(host, 2)
    texts[1] = host.encode_text("word " * 40)
    assert texts[1]["cond"].shape[1] != texts[0]["cond"].shape[1]
    with torch.no_grad():
        together = host.predict(view, latents, sigmas, texts, 1.0)
        alone = [host.predict(view, latents[i:i + 1], sigmas[i:i + 1], texts[i:i + 1], 1.0) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("asks_for_gradients", [True, False], ids=["as in 0.27", "as in 0.30"])
def test_training_leaves_the_live_model_as_it_was(host, patcher, asks_for_gradients):
    host.load(0)
    with torch.inference_mode():  # as they were loaded
        patcher.model.requires_grad_(asks_for_gradients)
    before, modules = snapshot(patcher), [type(m) for m in patcher.model.modules()]
    view, params = make_view(host)
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    gradients(host, view, params)
    optimizer.step()
    after = snapshot(patcher)
    assert list(before) == list(after) and all(before[k].equal(after[k]) for k in before)
    assert modules == [type(m) for m in patcher.model.modules()]
    assert all(p.requires_grad is asks_for_gradients for p in patcher.model.parameters())
    assert all(p.grad is None for p in patcher.model.parameters())
    assert mm.in_training is False


def test_only_the_adapter_is_trainable(host):
    view, params = make_view(host)
    trainable = {n for n, p in view.named_parameters() if p.requires_grad}
    assert len(trainable) == len(params) and all(".lora_" in n for n in trainable)


def test_the_view_has_no_weights(host):
    """No second copy: beside the adapter, a view owns one number for each Linear."""
    view = host.view(torch.float32)
    owned = sum(t.untyped_storage().nbytes() for t in view.state_dict().values())
    linears = sum(isinstance(m, FrozenLinear) for m in view.modules())
    assert owned == 4 * linears


def test_a_thread_trains_on_weights_that_were_loaded_in_inference_mode(host, patcher):
    assert patcher.model.diffusion_model.img_in.weight.is_inference()
    host.load(0)
    view, params = make_view(host, std=0.0)
    losses = []

    def train() -> None:
        optimizer = torch.optim.AdamW(params, lr=5e-3)
        with torch.no_grad():
            for p in params[::2]:
                p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        for _ in range(15):
            gradients(host, view, params)
            optimizer.step()
            with torch.no_grad():
                losses.append(loss(host, view).item())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(120)
    assert losses[-1] < 0.8 * losses[0]


def test_comfyuis_loader_gives_what_the_view_gives(host, patcher):
    host.load(0)
    view, _ = make_view(host, std=0.1)
    latents, _, sigmas, texts = batch(host, 1)
    with torch.no_grad():
        expected = host.predict(view, latents, sigmas, texts, 1.0)
    base = live_output(patcher, latents, sigmas, texts[0])
    lora = to_lora(view, "LoRA")
    actual = live_output(with_lora(patcher, lora), latents, sigmas, texts[0])
    assert (actual - expected).abs().max() < 1e-4
    assert (actual - base).abs().max() > 0.1
    assert live_output(patcher, latents, sigmas, texts[0]).equal(base)


def test_alpha_is_in_effect_in_both(host, patcher):
    from dataclasses import replace

    config = replace(CONFIG, alpha=1.0)
    host.load(0)
    view = host.view(torch.float32)
    params = inject(view, config, layout(view, config, host.family))
    with torch.no_grad():
        for p in params:
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    latents, _, sigmas, texts = batch(host, 1)
    with torch.no_grad():
        expected = host.predict(view, latents, sigmas, texts, 1.0)
    actual = live_output(with_lora(patcher, to_lora(view, "LoRA")), latents, sigmas, texts[0])
    assert (actual - expected).abs().max() < 1e-4


def test_bf16_gradients_are_those_of_fp32_within_its_precision(host, patcher):
    """A bf16 number has 8 bits: single values are off by up to 2⁻⁸, a whole gradient points the same way."""
    host.load(0)
    exact = gradients(host, *make_view(host))
    host.dtype = torch.bfloat16
    rough = gradients(host, *make_view(host, dtype=torch.bfloat16))
    for a, b in zip(exact, rough, strict=True):
        assert torch.cosine_similarity(a.flatten(), b.float().flatten(), dim=0) > 0.99
        assert (b.float().norm() / a.norm()).item() == pytest.approx(1, abs=0.05)


def test_a_model_that_cannot_be_viewed_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"cannot train through '1' \(Conv2d\)"):
        build_view(model, fetch, torch.zeros(1))
