"""LoRA files of others: what ComfyUI's loader makes of a file, it also makes of what we read from it."""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import comfy.lora
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_train import _setup_lora_adapters
from diffusers import FluxPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.lora.file import load
from livelora.trainer.lora.formats import Format, write
from livelora.trainer.lora.inject import inject
from livelora.trainer.lora.layers import diffs, layers
from livelora.trainer.lora.reading import read
from livelora.trainer.lora.tensors import from_lora, layout_of, to_lora
from livelora.trainer.training.targets import check_start
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tiny_flux import CONFIG, load_flux, random_flux
from torch import nn

PAIRS = [(f"{start}{down}{end}", f"{start}{up}{end}") for start, down, up, end in (
    (".", "lora_A", "lora_B", ".weight"), (".", "lora_down", "lora_up", ".weight"), (".", "lora_A", "lora_B", ""),
    (".", "lora.down", "lora.up", ".weight"), ("_", "lora.down", "lora.up", ".weight"),
    (".", "lora_linear_layer.down", "lora_linear_layer.up", ".weight"), (".", "lora_A", "lora_B", ".default.weight"))]
"""How the two matrices of a LoRA are called, as comfy/weight_adapter/lora.py has them."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
KINDS = ["LoRA", "DoRA", "DoRA by inputs", "LoHa", "LoKr", "OFT"]


@pytest.fixture(scope="module")
def model():
    return load_flux(random_flux())


@pytest.fixture(scope="module")
def keys(model):
    """ComfyUI's own: the name of a layer in a file → the weight it is for, its rows if not all, and a reordering."""
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    return {name: target for name, target in known.items() if weight_of(target) in model.model.state_dict()}


def weight_of(target) -> str:
    return target if isinstance(target, str) else target[0]


def changes(model, lora, keys, strength: float = 1.0) -> dict[str, torch.Tensor]:
    """ΔW of all weights and biases that Load LoRA patches."""
    patched = model.clone()
    patched.add_patches(comfy.lora.load_lora(dict(lora), keys, log_missing=False), strength)
    found = {}
    for key, patches in patched.patches.items():
        weight = comfy.utils.get_attr(model.model, key).detach().float()
        found[key] = comfy.lora.calculate_weight(patches, weight.clone(), key) - weight
    return found


def file_of(kind: str, name: str, pair: tuple[str, str], outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    """One layer with random values that fp8 and integers can hold."""
    draw = torch.Generator().manual_seed(1)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randint(-4, 5, shape, generator=draw).float()

    tensors = {
        "LoHa": {".hada_w1_a": (outputs, 2), ".hada_w1_b": (2, inputs), ".hada_w2_a": (outputs, 2),
                 ".hada_w2_b": (2, inputs)},
        "LoKr": {".lokr_w1": (4, 2), ".lokr_w2_a": (outputs // 4, 2), ".lokr_w2_b": (2, inputs // 2)},
        "OFT": {".oft_blocks": (outputs // 4, 4, 4)},
        "DoRA": {pair[0]: (2, inputs), pair[1]: (outputs, 2), ".dora_scale": (outputs, 1)},
        "DoRA by inputs": {pair[0]: (2, inputs), pair[1]: (outputs, 2), ".dora_scale": (1, inputs)},
    }.get(kind, {pair[0]: (2, inputs), pair[1]: (outputs, 2)})
    return {f"{name}{end}": matrix(*shape) for end, shape in tensors.items()}


def shape_of(model, target) -> tuple[int, int]:
    outputs, inputs = comfy.utils.get_attr(model.model, weight_of(target)).shape
    return (target[1][2] if not isinstance(target, str) and target[1] else outputs), inputs


def assert_same_effect(model, keys, name, file, *formats: Format) -> None:
    weight = weight_of(keys[name])
    names = {other: target for other, target in keys.items() if weight_of(target) == weight}  # a tenth of the time
    expected, lora = changes(model, file, names), read(file, FAMILIES)
    assert any(change.any() for change in expected.values())
    for format in formats or ("ComfyUI",):
        found = changes(model, write(lora, format, FAMILIES), names)
        assert found.keys() == expected.keys()
        for key, change in expected.items():
            torch.testing.assert_close(found[key], change, rtol=1e-4, atol=1e-4 * change.abs().max().item())


def is_linear(model, target) -> bool:
    return comfy.utils.get_attr(model.model, weight_of(target)).ndim == 2


def test_every_name_of_comfyuis_table_is_read(model, keys):
    """… but for the query, key and value of a layer that has more, and for biases as layers: Load LoRA takes `.diff_b`
    for these as well. Core's trainer and LyCORIS have changes of norms beside those of Linears."""
    linear = file_of("LoRA", "proj_out", PAIRS[0], *shape_of(model, keys["proj_out"]))
    for name, target in keys.items():
        if re.search("blocks[._]1", name):
            continue  # the first block of each kind stands for all
        if name.endswith(("linear1_qkv", ".bias")):
            with pytest.raises(ValueError, match=f"{name}.diff is .*Load LoRA knows this kind, but it is not"):
                read({f"{name}.diff": torch.ones(4)}, FAMILIES)
        elif is_linear(model, target):
            assert_same_effect(model, keys, name, file_of("LoRA", name, PAIRS[0], *shape_of(model, target)))
        else:
            for end in ("diff", "w_norm"):
                assert_same_effect(model, keys, name, linear | {f"{name}.{end}": torch.randn(128)})


@settings(max_examples=40)
@given(number=st.integers(0, 10**6), kind=st.sampled_from(KINDS), pair=st.sampled_from(PAIRS),
       dtype=st.sampled_from(DTYPES), alpha=st.sampled_from([None, 1.0, 6.0]), bias=st.booleans())
def test_any_file_is_read_to_the_same_effect_or_refused_by_name(model, keys, number, kind, pair, dtype, alpha, bias):
    """The parts of diffusers' layers can be joined for LoRA alone, without biases. (Whole DoRAs in parts: see
    test_formats.py.)"""
    linears = sorted(name for name, target in keys.items() if is_linear(model, target))
    name = linears[number % len(linears)]
    outputs, inputs = shape_of(model, keys[name])
    file = {key: value.to(dtype) for key, value in file_of(kind, name, pair, outputs, inputs).items()}
    file |= {f"{name}.alpha": torch.tensor(alpha).to(dtype)} if alpha and kind != "OFT" else {}
    file |= {f"{name}.diff_b": torch.ones(outputs).to(dtype)} if bias else {}
    try:
        assert_same_effect(model, keys, name, file, "ComfyUI", "kohya")
    except ValueError as err:
        assert not isinstance(keys[name], str) and (kind != "LoRA" or bias or name.endswith("linear1_qkv"))
        bare = re.sub("^(transformer.|lora_transformer_|lycoris_)", "", name)
        assert bare.replace(".", "_") in str(err).replace(".", "_")


def core_lora(model, algorithm: str = "LoRA") -> dict[str, torch.Tensor]:
    """A LoRA of core's TrainLoraNode, which also trains the norms and biases, with random values."""
    tensors, _ = _setup_lora_adapters(model.clone(), {}, algorithm, torch.float32, 4)
    draw = torch.Generator().manual_seed(2)
    return {key: value.detach() if value.ndim == 0 else torch.randn(value.shape, generator=draw) / 8
            for key, value in tensors.items()}


@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr"])
def test_what_core_trained_keeps_its_norms_and_biases(model, keys, algorithm):
    file = core_lora(model, algorithm)
    lora, expected = read(file, FAMILIES), changes(model, file, keys)
    assert len(diffs(lora)) == len([key for key in file if key.endswith((".diff", ".diff_b"))]) > 40
    for format in ("ComfyUI", "kohya"):
        found = changes(model, write(lora, format, FAMILIES), keys)
        assert found.keys() == expected.keys() and all(
            torch.allclose(found[key], change, rtol=1e-4, atol=1e-5) for key, change in expected.items())
    with pytest.raises(ValueError, match="diffusers"):
        write(lora, "diffusers", FAMILIES)


def test_training_starts_from_what_core_trained_without_its_norms_and_biases(host, model, caplog):
    trained = core_lora(model)
    lora = read({key: value for key, value in trained.items() if "double_blocks.0.img_attn" in key}, FAMILIES)
    view = host.view(torch.float32)
    inject(view, CONFIG, layout_of(lora))
    with caplog.at_level(logging.WARNING):
        from_lora(view, lora)
    assert re.search(r"4 changes of norms and biases, such as diffusion_model\.\S+, are left out", caplog.text)
    again = to_lora(view, "LoRA")
    assert again.keys() == {key for key in lora if key not in diffs(lora)}
    assert all(again[key].equal(lora[key]) for key in again)


def test_a_dora_with_a_scale_for_each_input_is_refused_before_it_is_trained(keys, model):
    for name, outputs in (("lora_unet_double_blocks_0_img_attn_proj", 256),
                          ("lora_unet_double_blocks_0_img_attn_qkv", 768)):
        lora = read(file_of("DoRA by inputs", name, PAIRS[1], outputs, 256), FAMILIES)
        with pytest.raises(ValueError, match=r"img_attn\.(proj|qkv)\.dora_scale has a value for each input, as"):
            check_start(lora, replace(CONFIG, adapter="DoRA"), {*layers(lora)})


@pytest.mark.parametrize("strength", [0.5, -1.0])
def test_comfyui_squares_the_strength_of_oft(model, keys, strength):
    """… so the tooltips and pages say it where a strength is chosen."""
    file = file_of("OFT", "diffusion_model.img_in", PAIRS[0], *shape_of(model, keys["diffusion_model.img_in"]))
    whole, part = (changes(model, file, keys, at)["diffusion_model.img_in.weight"] for at in (1.0, strength))
    torch.testing.assert_close(part, strength**2 * whole, rtol=1e-4, atol=1e-4)


class Attention(nn.Module):
    """A layer of FLUX.1 by diffusers' names, for PEFT."""

    def __init__(self) -> None:
        super().__init__()
        linears = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_add_out": nn.Linear(8, 8)})
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"attn": linears})])


@settings(max_examples=15)
@given(alpha=st.integers(1, 64), rank=st.sampled_from([1, 3, 8]), rslora=st.booleans(), by_diffusers=st.booleans(),
       pattern=st.one_of(
           st.dictionaries(st.sampled_from([name, "transformer_blocks.0.attn.to_add_out"]), st.integers(1, 9))
           for name in ("to_q", "^to_q", r"^transformer_blocks\.0\.attn\.to_q")),
       name=st.sampled_from(["adapter_model", "cat"]))
def test_an_alpha_in_the_metadata_alone_gives_the_scale_of_peft(alpha, rank, rslora, by_diffusers, pattern, name):
    """Files as PEFT's and diffusers' own functions write them."""
    config = LoraConfig(r=rank, lora_alpha=alpha, alpha_pattern=pattern, use_rslora=rslora,
                        target_modules=["to_q", "to_add_out"], init_lora_weights=False)
    with tempfile.TemporaryDirectory() as folder:
        model = get_peft_model(Attention(), config)
        if by_diffusers:
            tensors = {key.removeprefix("base_model.model."): value for key, value in
                       get_peft_model_state_dict(model).items()}
            FluxPipeline.save_lora_weights(folder, tensors, weight_name=f"{name}.safetensors",
                                           transformer_lora_adapter_metadata=config.to_dict())
        else:
            model.save_pretrained(folder)
            (Path(folder) / "adapter_model.safetensors").rename(Path(folder) / f"{name}.safetensors")
        found = layout_of(read(load(Path(folder) / f"{name}.safetensors"), FAMILIES)).scales
    block = model.base_model.model.transformer_blocks[0]["attn"]
    assert found == pytest.approx({"double_blocks.0.img_attn.qkv": block["to_q"].scaling["default"],
                                   "double_blocks.0.txt_attn.proj": block["to_add_out"].scaling["default"]})
