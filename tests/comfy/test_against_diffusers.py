"""Loss and gradients against an independent implementation: diffusers' FluxTransformer2DModel with PEFT's LoRA.

diffusers keeps query, key and value (and, in single blocks, the MLP) in Linears of their own where FLUX.1 has one. So
each LoRA of ours stands for several of theirs with the same A and a slice of B: our gradient of A is the sum of theirs,
our gradient of B their concatenation."""

from __future__ import annotations

import comfy.utils
import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from tiny_flux import SHAPE, batch, make_view

TARGETS = (r"(transformer_blocks|single_transformer_blocks)\.\d+\."
           r"(attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)|(ff|ff_context)\.net\.(0\.proj|2)"
           r"|norm1\.linear|norm1_context\.linear|norm\.linear|proj_mlp|proj_out)")


def sources() -> dict[str, tuple]:
    """diffusers' names → ours, with the rows each takes and how it changes them, from ComfyUI's own table."""
    table = comfy.utils.flux_to_diffusers(SHAPE)
    return {theirs: (ours, None, None) if isinstance(ours, str) else (*ours, None)[:3]
            for theirs, ours in table.items()}


def reference(state: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.nn.Module:
    """diffusers' transformer with the weights of `state`, and with LoRA on the same layers."""
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=SHAPE["depth"], num_single_layers=SHAPE["depth_single_blocks"],
        attention_head_dim=128, num_attention_heads=SHAPE["num_heads"], joint_attention_dim=SHAPE["context_in_dim"],
        pooled_projection_dim=SHAPE["vec_in_dim"], guidance_embeds=True, axes_dims_rope=tuple(SHAPE["axes_dim"]))
    table, converted = sources(), {}
    for name in model.state_dict():
        ours, rows, change = table[name]
        value = state[ours] if rows is None else state[ours].narrow(*rows)
        converted[name] = change(value) if change else value
    model.load_state_dict(converted)
    model = model.to(dtype)
    model.enable_gradient_checkpointing()
    return inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS), model)


def own_params(view) -> dict[str, torch.nn.Parameter]:
    return {name.replace(".default", ""): p for name, p in view.named_parameters() if p.requires_grad}


def copy_lora(view, model) -> list[tuple[str, torch.Tensor, tuple | None]]:
    """Puts our LoRA into theirs, and pairs the tensors: (our name, their tensor, the rows of ours that it is)."""
    ours, table, pairs = own_params(view), sources(), []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        module, kind, *_ = name.rsplit(".", 3)
        source, rows, _ = table[f"{module}.weight"]
        own = f"{source.removesuffix('.weight')}.{kind}.weight"
        cut = rows if kind == "lora_B" else None
        with torch.no_grad():
            param.copy_(ours[own] if cut is None else ours[own].narrow(*cut))
        pairs.append((own, param, cut))
    return pairs


def their_prediction(host, model, texts, noisy, sigmas, guidance):
    packed = noisy.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    height, width = noisy.shape[2] // 2, noisy.shape[3] // 2
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(height).float(), torch.arange(width).float())
    context, pooled = torch.cat([t["cond"] for t in texts]), torch.cat([t["pooled_output"] for t in texts])
    grid, context, pooled = (t.to(noisy.device) for t in (grid, context, pooled))
    dtype = model.x_embedder.weight.dtype
    out = model(hidden_states=packed.to(dtype), encoder_hidden_states=context.to(dtype),
                pooled_projections=pooled.to(dtype), timestep=sigmas.to(dtype),
                guidance=torch.full_like(sigmas, guidance), img_ids=grid,
                txt_ids=torch.zeros(context.shape[1], 3, device=noisy.device)).sample
    unpacked = out.unflatten(1, (height, width)).unflatten(3, (16, 2, 2)).permute(0, 3, 1, 4, 2, 5)
    return unpacked.flatten(4).flatten(2, 3).float()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_equal_diffusers_with_peft(host, flux_state, size, checkpointing):
    host.load(0)
    view, params = make_view(host, checkpointing)
    model = reference(flux_state, torch.float32).to(host.device)
    pairs = copy_lora(view, model)
    assert len({name for name, *_ in pairs}) == len(params)
    latents, noise, sigmas, texts = batch(host, size)
    noisy = (1 - sigmas.view(-1, 1, 1, 1)) * latents + sigmas.view(-1, 1, 1, 1) * noise

    ours = host.predict(view, noisy, sigmas, texts, guidance=1.0)
    (ours - (noise - latents)).square().mean().backward()
    theirs = their_prediction(host, model, texts, noisy, sigmas, guidance=1.0)
    (theirs - (noise - latents)).square().mean().backward()

    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for name, own in own_params(view).items():
        expected = torch.zeros_like(own)
        for paired, param, rows in pairs:
            if paired == name:
                target = expected if rows is None else expected.narrow(*rows)
                target += param.grad
        scale = expected.abs().max()
        assert scale > 0
        assert (own.grad - expected).abs().max() < 2e-5 * scale, name
