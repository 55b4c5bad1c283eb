"""LoRA files of others: names, alphas and values that are read, left out or refused. What ComfyUI's loader makes of
them is in tests/comfy/test_reading.py."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.lora.file import Lora, load
from livelora.trainer.lora.layers import SUFFIXES
from livelora.trainer.lora.reading import ALIASES, OTHERS, read
from safetensors.torch import save_file

QKV, PROJ = "lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.proj"
FILE = {f"{QKV}.lora_down.weight": torch.ones(2, 8), f"{QKV}.lora_up.weight": torch.ones(24, 2),
        f"{QKV}.alpha": torch.tensor(2.0), f"{QKV}.dora_scale": torch.ones(24, 1), f"{QKV}.diff_b": torch.ones(24),
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": torch.ones(4)}
PAIR = {f"{PROJ}.lora_A.weight": torch.ones(4, 8), f"{PROJ}.lora_B.weight": torch.ones(8, 4)}
DOCS = Path(__file__).parents[3] / "docs" / "lora_files.md"


@given(key=st.sampled_from([*FILE]), value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
       place=st.integers(0, 10**6))
def test_a_value_that_is_not_finite_is_refused_by_its_tensors_name(key, value, place):
    broken = FILE[key].clone()
    broken.view(-1)[place % broken.numel()] = value
    with pytest.raises(ValueError, match=f"{re.escape(key)} has values that are not finite"):
        read({**FILE, key: broken}, FAMILIES)


@given(key=st.sampled_from([*FILE]))
def test_an_empty_tensor_is_refused_by_its_name(key):
    with pytest.raises(ValueError, match=f"{re.escape(key)} is empty"):
        read({**FILE, key: FILE[key].reshape(-1)[:0]}, FAMILIES)


@pytest.mark.parametrize(("key", "value", "told"), [
    (f"{QKV}.alpha", torch.tensor(0.0), "is 0, so this LoRA changes nothing"),
    (f"{QKV}.alpha", torch.ones(2), "has 2 values instead of one"),
    (f"{QKV}.dora_scale", torch.ones(23, 1), r"is \(23, 1\), and its layer has 24 outputs and 8 inputs"),
    (f"{QKV}.lora_down.weight", torch.ones(2, 8, dtype=torch.complex64), "is stored as complex64"),
    (f"{QKV}.lora_down.weight", torch.ones(2, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
     "is stored as float4_e2m1fn_x2.*Get the file in fp16"),
    (f"{PROJ}.oft_blocks", torch.ones(2, 2, 4, 4), "has 4 dimensions, where OFT has 3"),  # BOFT
    (f"{PROJ}.diff", torch.ones(8, 8), "it is the whole change of a matrix"),
    (f"{QKV}.lora_up.weight", torch.full((24, 2), 1e39, dtype=torch.float64), "has values that are not finite"),
    (f"{QKV}.alpha", torch.tensor(1e39, dtype=torch.float64), "has values that are not finite"),
    (f"{QKV}.alpha", torch.tensor(1e-60, dtype=torch.float64), "is 1e-60, so this LoRA changes nothing"),
    ("transformer.transformer_blocks.0.attn.to_q.lokr_w1", torch.ones(2, 2), "it is for a part of double_blocks.0"),
    ("transformer.transformer_blocks.0.attn.norm_q.lora_A.weight", torch.ones(2, 2), "is a norm, of which only"),
])
def test_what_says_nothing_or_has_no_meaning_is_refused_by_name(key, value, told):
    with pytest.raises(ValueError, match=f"{re.escape(key)} .*{told}"):
        read({**FILE, key: value}, FAMILIES)


@pytest.mark.parametrize("key", [
    *(f"{PROJ}.{end}" for end in ("lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2", "rescale", "a1.weight",
                                  "a2.weight", "b1.weight", "b2.weight", "set_weight", "reshape_weight", "lora_B.bias",
                                  "bias.diff")),
    "lora_unet_double_blocks_0_img_attn_proj.lora_mid.weight", "img_in.lora_B.bias",
    "single_blocks.0.norm.key_norm.scale", "diffusion_model.single_blocks.0.linear1_qkv.lora_A.weight",
    "lora_unet_single_blocks_0_linear1_qkv.lora_down.weight", "transformer.transformer_blocks.0.attn.norm_q.b_norm",
])
def test_kinds_that_load_lora_knows_and_we_do_not_are_told_as_such(key):
    with pytest.raises(ValueError, match=f"^{re.escape(key)} is .*Load LoRA knows this kind, but it is not supported"):
        read(PAIR | {key: torch.ones(2, 2)}, FAMILIES)
    with pytest.raises(ValueError, match="of an unknown kind or layer"):
        read(PAIR | {re.sub("double|single|transformer_bl|img_in", "other", key): torch.ones(2, 2)}, FAMILIES)


@given(first=st.sampled_from([QKV, "lycoris_double_blocks_0_img_attn_qkv"]),
       second=st.sampled_from(["diffusion_model.double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.qkv"]))
def test_a_layer_that_is_there_twice_is_refused(first, second):
    """… where Load LoRA would take one of the two."""
    file = {key.replace(QKV, first): value for key, value in FILE.items()}
    with pytest.raises(ValueError, match=f"double_blocks.0.img_attn.qkv twice: {first}.* and {second}"):
        read({**file, f"{second}.lora_A.weight": torch.ones(2, 8)}, FAMILIES)


def test_a_lora_of_norms_alone_is_none():
    with pytest.raises(ValueError, match="no tensor for a layer of FLUX.1"):
        read({key: value for key, value in FILE.items() if key.endswith(".diff")}, FAMILIES)


def test_types_for_storage_become_fp32_and_others_stay():
    """A job that started from a file in half precision goes on: its fingerprint is made of these bytes."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        found = read({key: value.to(dtype) for key, value in FILE.items()}, FAMILIES)
        kept = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
        assert {value.dtype for value in found.values()} == {kept}


def test_embeddings_are_left_out_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        found = read(PAIR | {"bundle_emb.ohwx.clip_l": torch.ones(1, 768)}, FAMILIES)
    assert found.keys() == read(PAIR, FAMILIES).keys()
    assert "1 tensor for embeddings left out" in caplog.text


def alpha(tensors, **metadata: str) -> float:
    return read(Lora(tensors, metadata), FAMILIES)[f"{PROJ}.alpha"].item()


def test_an_alpha_of_the_tensors_goes_before_that_of_the_metadata(caplog):
    told = json.dumps({"transformer.lora_alpha": 16, "transformer.r": 4, "text_encoder.lora_alpha": 99})
    with caplog.at_level(logging.WARNING):
        assert alpha(PAIR | {f"{PROJ}.alpha": torch.tensor(2.0)}, lora_adapter_metadata=told) == 2
        assert not caplog.text
        assert alpha(PAIR, lora_adapter_metadata=told) == 16
    assert "stands in its metadata alone" in caplog.text
    assert alpha(PAIR) == 4


def test_a_configuration_beside_a_file_that_is_not_pefts_says_nothing_about_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    for name, prefix, expected in (("cat", "", 4), ("adapter_model", "", 16), ("dog", "base_model.model.", 16)):
        path = tmp_path / f"{name}.safetensors"
        save_file({key.replace("diffusion_model.", prefix): value for key, value in PAIR.items()}, path)
        assert read(load(path), FAMILIES)[f"{PROJ}.alpha"].item() == expected


@pytest.mark.parametrize("content", [
    b"", b"[16]", b"[" * 100_000, '{"lora_alpha": 16}'.encode("utf-16"), b'{"lora_alpha": 16, "base": "caf\xe9"}'])
def test_a_configuration_that_cannot_be_read_is_named_with_its_lora(tmp_path, content):
    (tmp_path / "adapter_config.json").write_bytes(content)
    save_file(PAIR, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="The adapter_config.json beside 'adapter_model.safetensors', which tells its"):
        load(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(("config", "expected"), [
    ({"r": 4}, 16), ({"r": 8}, 4), ({"r": 8, "rank_pattern": {"^double_blocks.0.img_attn.proj": 4}}, 16),
    ({"rank_pattern": {"proj": 8}, "r": 4}, 4)])
def test_a_configuration_for_another_rank_is_another_loras(caplog, config, expected):
    with caplog.at_level(logging.WARNING):
        assert alpha(PAIR, **{"adapter_config.json": json.dumps({"lora_alpha": 16} | config)}) == expected
    assert ("belongs to another LoRA: there double_blocks.0.img_attn.proj has rank 8, here 4" in caplog.text) == (
        expected == 4)
    assert ("stands in its metadata alone" in caplog.text) == (expected == 16)


def test_an_alpha_that_is_not_taken_is_not_logged(caplog):
    """PEFT multiplies a LoKr of whole factors by alpha / r, and ComfyUI does not."""
    lokr = {f"{PROJ}.lokr_w1": torch.ones(2, 2), f"{PROJ}.lokr_w2": torch.ones(4, 4)}
    with caplog.at_level(logging.WARNING):
        assert read(Lora(lokr, {"adapter_config.json": '{"alpha": 32, "r": 8}'}), FAMILIES).keys() == lokr.keys()
        assert alpha(PAIR, lora_adapter_metadata='{"transformer.r": 4}') == 4
    assert not caplog.text


@settings(max_examples=30)
@given(told=st.one_of(st.text(min_size=1), st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["lora_alpha", "alpha_pattern", "r", "rank_pattern", "transformer.lora_alpha", "proj"]), inner)
).map(json.dumps)))
def test_any_metadata_give_an_alpha_or_a_sentence(told):
    try:
        found = alpha(PAIR, lora_adapter_metadata=told)
    except ValueError as err:
        assert re.search(r"lora_adapter_metadata|no usable (alpha|rank) for .*proj|proj.alpha is \S+, so", str(err))
    else:
        assert abs(found) < float("inf")


# Documentation


def test_every_name_in_the_documentation_is_read_or_left_out():
    first, second = DOCS.read_text(encoding="utf-8").split("| what a layer has")
    names = re.findall("`([^`]+)`", "".join(line.split("|")[2] for line in first.splitlines() if line[:2] == "| "))
    assert len(names) == 16 and not [prefix for prefixes in OTHERS.values() for prefix in prefixes
                                     if not any(name.startswith(prefix) for name in names)]
    other = {"img_in.lora_A": torch.ones(2, 8), "img_in.lora_B": torch.ones(8, 2)}
    for name in names:
        tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
        norm = {f"{name}.diff": torch.ones(8)}
        assert read(other | (norm if "norm" in name else tensors), FAMILIES), name
    assert not [end for end in (*ALIASES, *SUFFIXES) if f"`{end}`" not in second]
