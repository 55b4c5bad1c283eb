"""Names of LoRA files: other programs' are read, and none is taken for what it is not."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.lora import formats
from livelora.trainer.lora.formats import adapter_kind, ranks

R, WIDTH = 2, 8
BFL = "diffusion_model.double_blocks.3.img_attn.qkv"


def read(tensors):
    return formats.read(tensors, FAMILIES)


def write(lora, format):
    return formats.write(lora, format, FAMILIES)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(outputs: int, rank: int = R, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return drawn(rank, WIDTH, seed=seed), drawn(outputs, rank, seed=seed + 100)


def delta(lora: dict, module: str) -> torch.Tensor:
    """alpha / R · BA, with R read off A."""
    a, b = lora[f"{module}.lora_A.weight"], lora[f"{module}.lora_B.weight"]
    return lora[f"{module}.alpha"].item() / a.shape[0] * b @ a


# The names below are those of published files: kohya's and ai-toolkit's FLUX.1 LoRAs, PEFT's save_pretrained, core's
# Train LoRA.
@pytest.mark.parametrize(("down", "up", "alpha"), [
    (f"{BFL}.lora_A.weight", f"{BFL}.lora_B.weight", f"{BFL}.alpha"),
    (f"{BFL}.lora_down.weight", f"{BFL}.lora_up.weight", f"{BFL}.alpha"),
    *[(f"{name}.{down}", f"{name}.{up}", f"{name}.alpha")
      for name in ("lora_unet_double_blocks_3_img_attn_qkv", "base_model.model.double_blocks.3.img_attn.qkv")
      for down, up in (("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight"),
                       ("lora_A.default.weight", "lora_B.default.weight"))],
])
def test_whole_layers_are_read_by_any_of_their_names(down, up, alpha):
    a, b = pair(3 * WIDTH)
    lora = read({down: a, up: b, alpha: torch.tensor(1.0)})
    assert lora.keys() == {f"{BFL}.lora_A.weight", f"{BFL}.lora_B.weight", f"{BFL}.alpha"}
    assert lora[f"{BFL}.lora_A.weight"].equal(a) and lora[f"{BFL}.lora_B.weight"].equal(b)
    assert lora[f"{BFL}.alpha"].item() == 1.0 and ranks(lora) == {"double_blocks.3.img_attn.qkv": R}
    assert read({down: a, up: b})[f"{BFL}.alpha"].item() == R  # a scale of 1


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "base_model.model.transformer.", ""])
def test_parts_are_joined_into_the_layer_they_are_cut_from(prefix):
    """Each part's own ΔW, one below the other, in FLUX.1's order: query, key, value, MLP."""
    block, parts, tensors = f"{prefix}single_transformer_blocks.12", [], {}
    for index, (name, outputs, rank, alpha) in enumerate([("proj_mlp", 4 * WIDTH, 3, 6), ("attn.to_v", WIDTH, 1, None),
                                                          ("attn.to_q", WIDTH, 2, 1), ("attn.to_k", WIDTH, 2, 2)]):
        a, b = pair(outputs, rank, seed=index)
        tensors |= {f"{block}.{name}.lora_A.weight": a, f"{block}.{name}.lora_B.weight": b}
        tensors |= {f"{block}.{name}.alpha": torch.tensor(float(alpha))} if alpha else {}
        parts.append((alpha or rank) / rank * b @ a)
    lora, module = read(tensors), "diffusion_model.single_blocks.12.linear1"
    mlp, value, query, key = parts
    torch.testing.assert_close(delta(lora, module), torch.cat((query, key, value, mlp)))
    assert ranks(lora) == {"single_blocks.12.linear1": 8}


def test_parts_with_the_same_a_are_joined_at_its_rank():
    a, b = pair(3 * WIDTH)
    tensors = {}
    for name, rows in zip("kqv", (b[WIDTH:2 * WIDTH], b[:WIDTH], b[2 * WIDTH:]), strict=True):
        tensors[f"transformer.transformer_blocks.3.attn.to_{name}.lora_A.weight"] = a.clone()
        tensors[f"transformer.transformer_blocks.3.attn.to_{name}.lora_B.weight"] = rows
    lora = read(tensors)
    assert lora[f"{BFL}.lora_A.weight"].equal(a) and lora[f"{BFL}.lora_B.weight"].equal(b)
    assert lora[f"{BFL}.alpha"].item() == R


def test_a_part_that_is_not_trained_is_zero():
    a, b = pair(WIDTH)
    lora = read({"transformer.transformer_blocks.3.attn.to_v.lora_A.weight": a,
                 "transformer.transformer_blocks.3.attn.to_v.lora_B.weight": b,
                 "transformer.transformer_blocks.3.attn.to_v.alpha": torch.tensor(3.0)})
    torch.testing.assert_close(delta(lora, BFL), torch.cat((torch.zeros(2 * WIDTH, WIDTH), 1.5 * b @ a)))
    assert ranks(lora) == {"double_blocks.3.img_attn.qkv": R}


def test_text_encoders_are_left_out_and_logged(caplog):
    a, b = pair(3 * WIDTH)
    tensors = {f"{BFL}.lora_A.weight": a, f"{BFL}.lora_B.weight": b}
    encoders = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": a,
                "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": a}
    with caplog.at_level(logging.WARNING):
        assert read(tensors | encoders).keys() == read(tensors).keys()
    assert "2 tensors for text encoders left out" in caplog.text
    with pytest.raises(ValueError, match="is for text encoders alone: none of its 2 tensors, such as lora_te1_"):
        read(encoders)


@pytest.mark.parametrize("key", [
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",  # SD 1.5, kohya
    "lora_unet_double_blocks_0_img_attn.lora_down.weight",
    "diffusion_model.double_blocks.x.img_mlp.0.lora_A.weight",
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight",  # Wan
    "transformer.transformer_blocks.0.attn.qkv.lora_A.weight",
    "double_blocks.0.processor.qkv_lora1.down.weight",  # XLabs
    "lora_unet_double_blocks_0_img_mlp_0.oft_diag",  # no adapter's
])
def test_what_is_not_flux_is_refused_by_name(key):
    a, b = pair(3 * WIDTH)
    with pytest.raises(ValueError, match=f"1 tensor of an unknown kind or layer, such as {re.escape(key)}. Known are"):
        read({f"{BFL}.lora_A.weight": a, f"{BFL}.lora_B.weight": b, key: a})


@pytest.mark.parametrize(("suffixes", "message"), [
    (["lora_A.weight"], "layer diffusion_model.double_blocks.3.img_attn.qkv the tensors lora_A.weight, which do not"),
    (["lora_A.weight", "lora_B.weight", "hada_w1_a"], "do not make up a LoHa"),
    (["hada_w1_a", "hada_w1_b", "hada_w2_a"], "do not make up a LoHa.*get the file again"),
    (["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "dora_scale"], "do not make up a LoHa.*without extras"),
    (["lokr_w1", "lokr_w2_a"], "do not make up a LoKr"),
])
def test_incomplete_and_mixed_layers_are_refused(suffixes, message):
    with pytest.raises(ValueError, match=message):
        read({f"{BFL}.{suffix}": drawn(2, 2) for suffix in suffixes})


def test_matrices_whose_ranks_differ_are_refused():
    lora = {f"{BFL}.lora_A.weight": torch.zeros(4, WIDTH), f"{BFL}.lora_B.weight": torch.zeros(3 * WIDTH, 8)}
    with pytest.raises(ValueError, match=r"a lora_A.weight of \(4, 8\) and a lora_B.weight of \(24, 8\), whose"):
        read(lora)


def test_a_file_of_two_kinds_is_refused():
    a, b = pair(3 * WIDTH)
    other = BFL.replace("3", "4")
    lora = read({f"{BFL}.lora_A.weight": a, f"{BFL}.lora_B.weight": b, f"{other}.oft_blocks": drawn(2, 3, 3)})
    with pytest.raises(ValueError, match=r"mixes LoRA \(such as \S+3.img_attn.qkv\) and OFT \(such as \S+4.img_attn"):
        adapter_kind(lora)


def test_a_layer_by_two_names_is_refused():
    a, b = pair(WIDTH)
    tensors = {f"{BFL}.lora_A.weight": a, f"{BFL}.lora_B.weight": drawn(3 * WIDTH, R)}
    name = "transformer.transformer_blocks.3.attn.to_q"
    with pytest.raises(ValueError, match="has the layer double_blocks.3.img_attn.qkv twice"):
        read(tensors | {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})


LINEAR1 = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4}
KINDS = {
    "LoRA": ({"lora_A.weight": (2, 8), "lora_B.weight": (24, 2)}, 2),
    "DoRA": ({"lora_A.weight": (2, 8), "lora_B.weight": (24, 2), "dora_scale": (24, 1)}, 2),
    "LoHa": ({"hada_w1_a": (24, 3), "hada_w1_b": (3, 8), "hada_w2_a": (24, 3), "hada_w2_b": (3, 8)}, 3),
    "LoKr": ({"lokr_w1": (3, 2), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 4)}, 2),
    "OFT": ({"oft_blocks": (6, 4, 4)}, 4),
}


@pytest.mark.parametrize(("kind", "shapes", "rank"), [(k, *v) for k, v in KINDS.items()])
def test_kind_and_rank_survive_kohyas_names(kind, shapes, rank):
    """Suffixes are LyCORIS'; only OFT has no alpha, which ComfyUI would take for a constraint."""
    lora = read({f"{BFL}.{suffix}": drawn(*shape) for suffix, shape in shapes.items()})
    assert adapter_kind(lora) == kind and ranks(lora) == {"double_blocks.3.img_attn.qkv": rank}
    kohya = write(lora, "kohya")
    renamed = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    expected = {renamed.get(suffix, suffix) for suffix in shapes} | ({"alpha"} if kind != "OFT" else set())
    assert kohya.keys() == {f"lora_unet_double_blocks_3_img_attn_qkv.{suffix}" for suffix in expected}
    again = read(kohya)
    assert again.keys() == lora.keys() and all(again[key].equal(value) for key, value in lora.items())


def test_a_lokr_of_whole_matrices_has_no_alpha_because_comfyui_looks_at_none():
    tensors = {f"{BFL}.lokr_w1": drawn(3, 2), f"{BFL}.lokr_w2": drawn(8, 4)}
    lora = read(tensors | {f"{BFL}.alpha": torch.tensor(1e10)})  # LyCORIS' sign for whole matrices
    assert lora.keys() == tensors.keys() and ranks(lora) == {"double_blocks.3.img_attn.qkv": 8}


@settings(max_examples=40)
@given(rows=st.dictionaries(st.sampled_from([*LINEAR1]), st.sampled_from([1, 4, 5, 8, 16, 32, 33]), min_size=1),
       columns=st.sampled_from([{}, {"proj_mlp": 4}]))
def test_parts_are_joined_or_refused_by_name(rows, columns):
    """Query, key, value and MLP have rows as 1 : 1 : 1 : 4, and the same inputs."""
    block = "transformer.single_transformer_blocks.0"
    tensors = {}
    for name, count in rows.items():
        tensors |= {f"{block}.{name}.lora_A.weight": drawn(2, columns.get(name, WIDTH)),
                    f"{block}.{name}.lora_B.weight": drawn(count, 2)}
    fits = len({count / LINEAR1[name] for name, count in rows.items()}) == 1 and rows.get("proj_mlp", 4) % 4 == 0
    if fits and (len(rows) == 1 or not {*columns} & {*rows}):
        joined = read(tensors)["diffusion_model.single_blocks.0.linear1.lora_B.weight"]
        assert len(joined) == 7 * next(count / LINEAR1[name] for name, count in rows.items())
        return
    with pytest.raises(ValueError) as told:
        read(tensors)
    assert any(f"{name}.lora_" in str(told.value) or f"{name} has" in str(told.value) for name in rows)


@pytest.mark.parametrize(("layer", "rows", "pieces"), [
    ("lora_unet_double_blocks_0_img_attn_qkv", 32, 3), ("lora_unet_single_blocks_0_linear1", 32, 7),
    ("transformer.norm_out.linear", 33, 2), ("final_layer.adaLN_modulation.1", 33, 2),
])
def test_rows_that_diffusers_could_not_share_out_are_refused(layer, rows, pieces):
    a, b = pair(rows)
    with pytest.raises(ValueError, match=f"{layer} has {rows} outputs, which do not divide into the {pieces} equal"):
        read({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b})


@pytest.mark.parametrize(("shapes", "told"), [
    ({"oft_blocks": (6, 4, 3)}, r"oft_blocks is \(6, 4, 3\), and blocks that turn are square"),
    ({"hada_w1_a": (24, 2), "hada_w1_b": (2, 8), "hada_w2_a": (12, 2), "hada_w2_b": (2, 8)},
     r"hada_w1_a and hada_w1_b make up a matrix of \(24, 8\), and \S+hada_w2_a and hada_w2_b one of \(12, 8\)"),
    ({"hada_w1_a": (24, 2), "hada_w1_b": (2, 8), "hada_w2_a": (24, 2), "hada_w2_b": (2, 4)},
     r"hada_w1_a and hada_w1_b make up a matrix of \(24, 8\), and \S+hada_w2_a and hada_w2_b one of \(24, 4\)"),
    *(({"lora_A.weight": (2, 8), "lora_B.weight": (24, 2), "lora_magnitude_vector": shape},
       rf"lora_magnitude_vector is {re.escape(str(shape))}, and its layer has 24 outputs .* \(24,\) would fit")
      for shape in ((), (5,), (24, 1), (1, 24), (24, 24))),
])
def test_shapes_that_mean_nothing_are_refused(shapes, told):
    with pytest.raises(ValueError, match=f"{re.escape(BFL)}.{told}"):
        read({f"{BFL}.{suffix}": drawn(*shape) for suffix, shape in shapes.items()})


def test_an_oft_with_a_constraint_is_refused():
    tensors = {f"{BFL}.oft_blocks": drawn(6, 4, 4)}
    assert read(tensors | {f"{BFL}.alpha": torch.tensor(0.0)}).keys() == tensors.keys()
    with pytest.raises(ValueError, match=r"This OFT limits how far it turns \(alpha 0.001 at"):
        read(tensors | {f"{BFL}.alpha": torch.tensor(1e-3)})


def dora(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    a, b = pair(3 * WIDTH)
    return {f"{BFL}.{name.replace('_weight', '.weight')}": value
            for name, value in {"lora_A_weight": a, "lora_B_weight": b, "alpha": torch.tensor(2.0), **more}.items()}


def test_a_dora_without_its_magnitudes_is_refused_for_diffusers_and_without_its_scale_for_comfyui():
    scale, magnitude = {"dora_scale": drawn(3 * WIDTH, 1)}, {"lora_magnitude_vector": drawn(3 * WIDTH)}
    for scales, format, missing, others in (
            (scale, "diffusers", "lora_magnitude_vector", "ComfyUI or kohya"),
            (magnitude, "ComfyUI", "dora_scale", "diffusers"), (magnitude, "kohya", "dora_scale", "diffusers")):
        with pytest.raises(ValueError, match=f"'{format}': it comes from a file without '{missing}'.*{others}"):
            write(dora(**scales), format)
    both = dora(**scale, **magnitude)
    assert f"{BFL}.lora_magnitude_vector" not in write(both, "ComfyUI")
    assert adapter_kind(read(write(both, "diffusers"))) == "DoRA"


def test_a_dora_of_a_part_of_a_layer_is_refused():
    written = write(dora(dora_scale=drawn(3 * WIDTH, 1), lora_magnitude_vector=drawn(3 * WIDTH)), "diffusers")
    with pytest.raises(ValueError, match="to_q.dora_scale, but trained only a part of double_blocks.3.img_attn.qkv"):
        read({key: value for key, value in written.items() if ".to_k." not in key})


def test_what_core_trained_on_another_model_is_saved_as_it_is_and_refused_for_other_formats():
    tensors = {"diffusion_model.blocks.0.self_attn.q.lora_up.weight": drawn(4, 2)}
    assert write(tensors, "ComfyUI").keys() == tensors.keys()
    with pytest.raises(ValueError, match="unknown kind or layer, such as diffusion_model.blocks.0.self_attn.q"):
        write(tensors, "kohya")
