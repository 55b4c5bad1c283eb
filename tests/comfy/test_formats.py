"""LoRA files in other formats, read by the programs they are for: ComfyUI's own loader, diffusers with PEFT."""

from __future__ import annotations

import json
import logging

import comfy.model_management as mm
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from diffusers import FluxPipeline, FluxTransformer2DModel
from livelora.nodes.save import SaveLora
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.comfy.host import with_lora
from livelora.trainer.lora import file as export
from livelora.trainer.lora.formats import adapter_kind, ranks, read
from tiny_flux import SHAPE
from torch.nn.functional import pad

FORMATS = {"LoRA": ("kohya", "diffusers"), "LoRA, ranks differ": ("kohya", "diffusers"), "DoRA": ("kohya", "diffusers"),
           "LoHa": ("kohya",), "LoKr": ("kohya",), "OFT": ("kohya",)}
CASES = [(kind, format) for kind, formats in FORMATS.items() for format in formats]


def random_lora(kind: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter on every Linear of the model, of an effect as large as its weights'."""
    lora, draw = {}, torch.Generator().manual_seed(11)

    def matrix(*shape: int, std: float = 1.0) -> torch.Tensor:
        return std * torch.randn(shape, generator=draw)

    for number, (name, weight) in enumerate((n, w) for n, w in state.items() if w.ndim == 2):
        outputs, inputs = weight.shape
        rank = 2 + number % 3 if kind == "LoRA, ranks differ" else 4
        layer = {"alpha": torch.tensor(0.7 * rank)}
        if kind == "LoHa":
            layer |= {f"hada_w{i}_{end}": matrix(*shape, std=0.3) for i in (1, 2)
                      for end, shape in (("a", (outputs, rank)), ("b", (rank, inputs)))}
        elif kind == "LoKr":
            layer |= {"lokr_w1": matrix(4, 2), "lokr_w2_a": matrix(outputs // 4, rank, std=0.1),
                      "lokr_w2_b": matrix(rank, inputs // 2, std=0.1)}
        elif kind == "OFT":
            layer = {"oft_blocks": matrix(outputs // 4, 4, 4, std=0.1)}
        else:
            layer |= {"lora_A.weight": matrix(rank, inputs, std=inputs**-0.5), "lora_B.weight": matrix(outputs, rank)}
        if kind == "DoRA":  # Liu et al. 2024, eq. 5, for PEFT; for ComfyUI the same without ‖W + ΔW‖ in it
            changed = (weight + 0.7 * layer["lora_B.weight"] @ layer["lora_A.weight"]).norm(dim=1)
            magnitude = weight.norm(dim=1) * (1 + matrix(outputs, std=0.2))
            layer["lora_magnitude_vector"] = magnitude
            layer["dora_scale"] = (magnitude * weight.norm(dim=1) / changed)[:, None]
        lora |= {f"diffusion_model.{name.removesuffix('.weight')}.{suffix}": t for suffix, t in layer.items()}
    return lora


def patched(patcher, lora) -> dict[str, torch.Tensor]:
    """The weights that ComfyUI samples with."""
    with torch.inference_mode():
        model = with_lora(patcher, {key: t for key, t in lora.items() if not key.endswith("magnitude_vector")})
        mm.load_models_gpu([model])
        return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


def file_of(lora, folder, format, dtype="fp32"):
    return export.save(lora, folder, "cat", dtype, FAMILIES, format)


def loaded(path) -> dict[str, torch.Tensor]:
    """As LoraLoader reads a file."""
    return comfy.utils.load_torch_file(str(path))


def assert_equal(found, expected, state, tolerance=1e-5) -> None:
    """All weights, and none as it was without a LoRA."""
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name
        assert value.ndim == 1 or (value - state[name]).norm() > 0.05 * state[name].norm(), name


@pytest.mark.parametrize(("kind", "format"), CASES)
def test_comfyui_patches_the_same_from_every_format(tmp_path, patcher, flux_state, caplog, kind, format):
    """ComfyUI's table of diffusers' names is its own: comfy.utils.flux_to_diffusers."""
    lora = random_lora(kind, flux_state)
    expected = patched(patcher, lora)
    with caplog.at_level(logging.WARNING):
        found = patched(patcher, loaded(file_of(lora, tmp_path, format)))
    assert_equal(found, expected, flux_state)
    assert "lora key not loaded: " not in caplog.text.replace("lora_magnitude_vector", "")


@pytest.mark.parametrize(("kind", "format"), [*CASES, *[(kind, "ComfyUI") for kind in FORMATS]])
def test_what_is_read_back_has_the_same_effect(tmp_path, patcher, flux_state, kind, format):
    """… with the kind and ranks of before, also where diffusers' three or four layers are one again."""
    lora = random_lora(kind, flux_state)
    again = read(dict(export.load(file_of(lora, tmp_path, format))), FAMILIES)
    assert adapter_kind(again) == kind.split(",")[0] and ranks(again) == ranks(lora)
    assert_equal(patched(patcher, again), patched(patcher, lora), flux_state)
    for name in (n for n in again if n.endswith("lora_magnitude_vector")):
        assert again[name].equal(lora[name])


def as_diffusers(state) -> FluxTransformer2DModel:
    """diffusers' transformer with these weights, by ComfyUI's table of names."""
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=SHAPE["depth"], num_single_layers=SHAPE["depth_single_blocks"],
        attention_head_dim=128, num_attention_heads=SHAPE["num_heads"], joint_attention_dim=SHAPE["context_in_dim"],
        pooled_projection_dim=SHAPE["vec_in_dim"], guidance_embeds=True, axes_dims_rope=tuple(SHAPE["axes_dim"]))
    table, converted = comfy.utils.flux_to_diffusers(SHAPE), {}
    for name in model.state_dict():
        ours, rows, change = (table[name], None, None) if isinstance(table[name], str) else (*table[name], None)[:3]
        value = state[ours] if rows is None else state[ours].narrow(*rows)
        converted[name] = change(value) if change else value
    model.load_state_dict(converted)
    return model


@torch.no_grad()
def prediction(model) -> torch.Tensor:
    draw = torch.Generator().manual_seed(7)
    ids = pad(torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)), (1, 0))
    return model(hidden_states=torch.randn(1, 16, 64, generator=draw), timestep=torch.tensor([0.6]),
                 encoder_hidden_states=torch.randn(1, 5, SHAPE["context_in_dim"], generator=draw),
                 pooled_projections=torch.randn(1, SHAPE["vec_in_dim"], generator=draw),
                 guidance=torch.tensor([1.0]), img_ids=ids, txt_ids=torch.zeros(5, 3)).sample


@pytest.mark.parametrize("kind", ["LoRA", "LoRA, ranks differ", "DoRA"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_diffusers_predicts_the_same_from_its_format(tmp_path, patcher, flux_state, kind, dtype):
    """What FluxPipeline.load_lora_weights makes of the file, against the weights that ComfyUI patched. Of a DoRA in
    bf16 it takes the norms anew, from rounded matrices."""
    lora = random_lora(kind, flux_state)
    path = file_of(lora, tmp_path, "diffusers", dtype)
    model = as_diffusers(flux_state)
    untouched = prediction(model)
    FluxPipeline(None, None, None, None, None, None, model).load_lora_weights(str(tmp_path), weight_name=path.name)
    found = prediction(model)
    expected = prediction(as_diffusers(patched(patcher, loaded(path))))
    tolerance = 5e-3 if (kind, dtype) == ("DoRA", "bf16") else 1e-4
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert (untouched - expected).abs().max() > 0.1 * expected.abs().max()
    if dtype == "fp32":
        exact = prediction(as_diffusers(patched(patcher, lora)))
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_diffusers_predicts_the_same_from_kohyas_format(tmp_path, patcher, flux_state):
    """diffusers converts kohya's names by a table of its own, without the layers that embed time and guidance, and with
    linear1 of FLUX.1's full width alone."""
    lora = random_lora("LoRA", flux_state)
    blocks = {name: value for name, value in lora.items() if "_blocks." in name and "linear1" not in name}
    path = file_of(blocks, tmp_path, "kohya")
    model = as_diffusers(flux_state)
    FluxPipeline(None, None, None, None, None, None, model).load_lora_weights(str(tmp_path), weight_name=path.name)
    expected = prediction(as_diffusers(patched(patcher, blocks)))
    assert (prediction(model) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_save_lora_embeds_the_graph_as_images_have_it_only_if_asked(tmp_path, flux_state, monkeypatch):
    """Hidden inputs as ComfyUI's executor hands them to a node; from the API there is no workflow."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    lora, graph = random_lora("OFT", flux_state), {"1": {"class_type": "LiveLoraSave", "inputs": {}}}

    def saved(pnginfo, **inputs):
        hidden = {io.Hidden.prompt: graph, io.Hidden.extra_pnginfo: pnginfo}
        node = SaveLora.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
        name, path = node.EXECUTE_NORMALIZED(lora=lora, name="cat", dtype="fp16", **inputs).result
        assert str(tmp_path / name) == path
        return export.load(tmp_path / name)

    plain, queued = saved({"workflow": {"nodes": []}}), saved({"workflow": {"nodes": []}}, embed_workflow=True)
    assert not {"prompt", "workflow"} & plain.metadata.keys()
    assert json.loads(queued.metadata["prompt"]) == graph and queued.metadata["workflow"] == '{"nodes": []}'
    by_api = saved(None, embed_workflow=True, format="kohya")
    assert json.loads(by_api.metadata["prompt"]) == graph and "workflow" not in by_api.metadata
    assert all(key.startswith("lora_unet_") for key in by_api)
