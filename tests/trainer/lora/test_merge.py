"""Merged LoRAs against dense matrices, cut ones against NumPy's SVD, all in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.lora import file as export
from livelora.trainer.lora import merge
from livelora.trainer.lora.file import Lora
from livelora.trainer.lora.formats import ranks
from livelora.trainer.lora.merge import Part

QKV, PROJ, WIDE = "double_blocks.3.img_attn.qkv", "double_blocks.3.img_attn.proj", "single_blocks.0.linear2"
SIZES = {QKV: (36, 12), PROJ: (12, 12), WIDE: (12, 60)}


def drawn(*modules: str, rank: int, alpha: float, seed: int, dtype=torch.float32) -> Lora:
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for module in modules:
        outputs, inputs = SIZES[module]
        tensors |= {f"diffusion_model.{module}.lora_A.weight": torch.randn(rank, inputs, generator=draw).to(dtype),
                    f"diffusion_model.{module}.lora_B.weight": torch.randn(outputs, rank, generator=draw).to(dtype),
                    f"diffusion_model.{module}.alpha": torch.tensor(alpha)}
    return Lora(tensors, {})


def delta(lora: dict, module: str) -> np.ndarray:
    """alpha / R · BA (O, I), zero for a layer that is not there."""
    if f"diffusion_model.{module}.alpha" not in lora:
        return np.zeros(SIZES[module])
    a, b, alpha = (lora[f"diffusion_model.{module}.{end}"].double().numpy()
                   for end in ("lora_A.weight", "lora_B.weight", "alpha"))
    return alpha / len(a) * b @ a


def merged(parts: list[Part], rank: int):
    told = []
    lora, changes = merge.merge(parts, rank, lambda done, total: told.append((done, total)))
    assert told == [(number + 1, len(changes)) for number in range(len(changes))]
    return lora, changes


def nearest(dense: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """Of that rank, and the share of the Frobenius norm that it has."""
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return best, float(np.linalg.norm(best) / np.linalg.norm(dense))


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (0.7, -1.3), (0.0, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_changes_add_up_and_so_do_ranks(first, second, dtype):
    one = drawn(QKV, PROJ, rank=2, alpha=1.0, seed=1, dtype=dtype)
    two = drawn(QKV, WIDE, rank=3, alpha=5.2, seed=2, dtype=dtype)
    lora, changes = merged([Part(one, first, "one"), Part(two, second, "two")], rank=0)
    for module in SIZES:
        assert_near(delta(lora, module), first * delta(one, module) + second * delta(two, module))
    assert ranks(lora) == {QKV: 5, PROJ: 2, WIDE: 3}
    assert {name: lora[f"diffusion_model.{name}.alpha"].item() for name in SIZES} == {QKV: 5.0, PROJ: 2.0, WIDE: 3.0}
    assert {value.dtype for value in lora.values()} == {torch.float32}
    assert merge.report(changes) == "rank 2–5, 3 layers, nothing is cut"


# ranks above a layer's own width (12) included: no more than 12 of them say anything
@pytest.mark.parametrize(("ranks_in", "rank"), [((4, 3), 1), ((4, 3), 5), ((9, 8), 6), ((9, 8), 12), ((9, 8), 14)])
def test_a_cut_lora_is_the_nearest_of_its_rank(ranks_in, rank):
    one = drawn(QKV, PROJ, WIDE, rank=ranks_in[0], alpha=2.0, seed=3)
    two = drawn(QKV, PROJ, WIDE, rank=ranks_in[1], alpha=2.0, seed=4)
    lora, changes = merged([Part(one, 0.8, "one"), Part(two, -0.5, "two")], rank)
    best, dense = {}, {}
    for module in SIZES:
        dense[module] = 0.8 * delta(one, module) - 0.5 * delta(two, module)
        best[module], kept = nearest(dense[module], rank)
        assert_near(delta(lora, module), best[module])
        assert changes[module].kept == pytest.approx(kept, abs=1e-5)
        assert changes[module].norm == pytest.approx(np.linalg.norm(dense[module]), rel=1e-5)
        assert changes[module].rank_before == sum(ranks_in) and changes[module].rank_after <= rank
    whole, left = (np.sqrt(sum((m**2).sum() for m in found.values())) for found in (dense, best))
    assert merge.share(changes) == pytest.approx(left / whole, abs=1e-5)


def test_a_and_b_share_the_singular_values_by_their_roots():
    """ΔW = U S Vᵀ is B = U√S, A = √S Vᵀ: neither is far smaller than the other, which fp16 would not take."""
    part = Part(drawn(QKV, rank=6, alpha=0.01, seed=5), 1.0, "one")
    lora, _ = merged([part], rank=4)
    roots = np.sqrt(np.linalg.svd(delta(part.lora, QKV), compute_uv=False)[:4])
    np.testing.assert_allclose(lora[f"diffusion_model.{QKV}.lora_A.weight"].norm(dim=1), roots, rtol=1e-4)
    np.testing.assert_allclose(lora[f"diffusion_model.{QKV}.lora_B.weight"].norm(dim=0), roots, rtol=1e-4)


@pytest.mark.parametrize("rank", [5, 6, 512])
def test_a_rank_that_suffices_cuts_nothing(rank):
    parts = [Part(drawn(QKV, rank=r, alpha=1.0, seed=r), 1.0, "x") for r in (2, 3)]
    exact, (found, changes) = merged(parts, 0)[0], merged(parts, rank)
    assert exact.keys() == found.keys() and all(found[key].equal(value) for key, value in exact.items())
    assert changes[QKV].kept == 1.0


def test_only_layers_above_the_rank_are_cut_and_the_report_names_the_worst():
    """ΔW has the singular values 4 and 3 in one layer, 12 alone in another: √(4² + 12²) of √(4² + 3² + 12²) = 13 stays,
    and 4 of 5."""
    orthogonal = torch.eye(12)[:2]
    lora = Lora({f"diffusion_model.{PROJ}.lora_A.weight": orthogonal,
                 f"diffusion_model.{PROJ}.lora_B.weight": orthogonal.T * torch.tensor([3.0, 4.0]),
                 f"diffusion_model.{PROJ}.alpha": torch.tensor(2.0),
                 f"diffusion_model.{QKV}.lora_A.weight": torch.eye(12)[:1],
                 f"diffusion_model.{QKV}.lora_B.weight": torch.eye(36)[:, :1] * 12,
                 f"diffusion_model.{QKV}.alpha": torch.tensor(1.0)}, {})
    found, changes = merged([Part(lora, 1.0, "one")], rank=1)
    assert ranks(found) == {PROJ: 1, QKV: 1}
    assert found[f"diffusion_model.{QKV}.lora_B.weight"].equal(lora[f"diffusion_model.{QKV}.lora_B.weight"])
    assert merge.report(changes) == (f"rank 1–2 → 1 keeps {100 * 160**0.5 / 13:.1f} % of the change (Frobenius norm), "
                                     f"worst layer {PROJ} 80.0 %")


def test_a_lora_and_itself_need_no_more_rank_than_it_has():
    one = drawn(QKV, WIDE, rank=3, alpha=3.0, seed=6)
    lora, changes = merged([Part(one, 1.0, "one"), Part(one, -0.25, "one")], rank=3)
    assert_near(delta(lora, QKV), 0.75 * delta(one, QKV))
    assert merge.share(changes) == pytest.approx(1.0, abs=1e-5)


def test_a_lora_that_changes_nothing_can_be_cut():
    new = drawn(QKV, rank=4, alpha=4.0, seed=7)
    new[f"diffusion_model.{QKV}.lora_B.weight"].zero_()
    lora, changes = merged([Part(new, 1.0, "new")], rank=2)
    assert not delta(lora, QKV).any() and "rank 4 → 2 keeps 100.0 %" in merge.report(changes)


def test_what_both_files_say_stays_in_the_metadata():
    facts = {"modelspec.architecture": "flux-1-dev/lora", "modelspec.resolution": "512x512",
             "modelspec.license": "MIT", "ss_base_model_version": "FLUX.1", "modelspec.title": "cat", "ss_steps": "9"}
    one, two = drawn(QKV, rank=2, alpha=1.0, seed=1), drawn(QKV, rank=3, alpha=1.0, seed=2)
    one.metadata = facts | {"modelspec.trigger_phrase": "ohwx", "modelspec.thumbnail": "data:"}
    two.metadata = {"modelspec.resolution": "1024x1024", "modelspec.trigger_phrase": "flatmoji"}
    parts = [Part(one, 1.0, "cat.safetensors"), Part(two, -0.5, "style.safetensors")]
    about = merge.metadata(parts, 4, merged(parts, 4)[1], FAMILIES)
    made = json.loads(about.pop("livelora.merge"))
    assert made["rank"] == 4 and 0 < made["kept"] < 1 and made["loras"] == [
        {"name": "cat.safetensors", "strength": 1.0}, {"name": "style.safetensors", "strength": -0.5}]
    assert about == {
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux", "modelspec.license": "MIT",
        "modelspec.merged_from": "cat.safetensors, style.safetensors", "modelspec.trigger_phrase": "ohwx, flatmoji",
        "modelspec.usage_hint": "Trigger word: ohwx, flatmoji", "ss_network_module": "networks.lora",
        "ss_network_dim": "4", "ss_network_alpha": "4.0", "ss_base_model_version": "FLUX.1"}


def test_which_model_it_is_for_is_said_only_where_the_parts_agree():
    """A LoRA that says nothing may have been trained on any model of the family."""
    one, two = drawn(QKV, rank=2, alpha=1.0, seed=1), drawn(QKV, rank=3, alpha=1.0, seed=2)
    parts = [Part(one, 1.0, "one"), Part(two, 1.0, "two")]
    for names, expected in (((None, None), None), (("dev", None), "dev"), (("dev", "schnell"), None)):
        for part, name in zip(parts, names, strict=True):
            part.lora.metadata = {"modelspec.architecture": name} if name else {}
        assert merge.metadata(parts, 0, merged(parts, 0)[1], FAMILIES).get("modelspec.architecture") == expected


def test_changes_of_norms_and_biases_are_added_up_and_not_cut():
    one, two = drawn(QKV, PROJ, rank=2, alpha=1.0, seed=1), drawn(QKV, rank=3, alpha=1.0, seed=2)
    norm, bias = "diffusion_model.single_blocks.0.norm.key_norm.diff", f"diffusion_model.{QKV}.diff_b"
    one |= {norm: torch.tensor([1.0, 2.0]), bias: torch.full((36,), 4.0, dtype=torch.float16)}
    two |= {bias: torch.ones(36)}
    for rank in (0, 1):
        lora, changes = merged([Part(one, 0.5, "one"), Part(two, -2.0, "two")], rank)
        assert lora[norm].tolist() == [0.5, 1.0] and lora[bias].tolist() == [0.0] * 36
        assert {*changes} == {QKV, PROJ} and lora[bias].dtype == torch.float32
    two[bias] = torch.ones(12)
    with pytest.raises(ValueError, match=r"qkv.diff_b is \(36,\) and \(12,\) large: these LoRAs are for different"):
        merged([Part(one, 1.0, "one"), Part(two, 1.0, "two")], 0)


def test_what_cannot_be_merged_is_refused_by_its_kind(tmp_path):
    pair = drawn(QKV, rank=2, alpha=1.0, seed=1)
    kinds = {"DoRA": pair | {f"diffusion_model.{QKV}.dora_scale": torch.ones(36, 1)},
             "LoHa": {f"diffusion_model.{QKV}.{name}": torch.ones(size) for name, size in (
                 ("hada_w1_a", (36, 2)), ("hada_w1_b", (2, 12)), ("hada_w2_a", (36, 2)), ("hada_w2_b", (2, 12)))},
             "LoKr": {f"diffusion_model.{QKV}.{name}": torch.ones(6, 6) for name in ("lokr_w1", "lokr_w2")},
             "OFT": {f"diffusion_model.{QKV}.oft_blocks": torch.ones(9, 4, 4)}}
    why = {"DoRA": "depends on the model's own weights", "LoHa": "no product of two thin matrices",
           "LoKr": "no product of two thin matrices", "OFT": "turns the model's weights"}
    for kind, tensors in kinds.items():
        path = export.save(tensors, tmp_path, kind, "fp32", FAMILIES)
        with pytest.raises(ValueError, match=f"'{kind}' cannot be merged or resized. Its kind is {kind}: .*"
                                             f"{why[kind]}.*put Load LoRA nodes in a row"):
            merge.read(path, 1.0, kind, FAMILIES)


def test_what_is_no_lora_of_flux_is_refused_with_its_name(tmp_path):
    other = export.save({"blocks.0.q.lora_A.weight": torch.ones(2, 2)}, tmp_path, "wan", "fp32", FAMILIES)
    with pytest.raises(ValueError, match="'wan' cannot be merged or resized. .* unknown kind or layer, such as blocks"):
        merge.read(other, 1.0, "wan", FAMILIES)
    (tmp_path / "old.pt").write_bytes(b"not a safetensors file at all")
    with pytest.raises(ValueError, match="'old.pt' cannot be read as safetensors .*ends in .safetensors"):
        merge.read(tmp_path / "old.pt", 1.0, "old.pt", FAMILIES)


def test_loras_for_models_of_different_sizes_are_refused():
    one, two = drawn(PROJ, rank=2, alpha=1.0, seed=1), drawn(QKV, rank=2, alpha=1.0, seed=1)
    other = Lora({key.replace(QKV, PROJ): value for key, value in two.items()}, {})
    with pytest.raises(ValueError, match=f"{PROJ} is 12 → 12 and 12 → 36 wide in 'one' and 'two': .*different models"):
        merged([Part(one, 1.0, "one"), Part(other, 1.0, "two")], rank=0)


@pytest.mark.parametrize(("rank", "value"), [(0, float("nan")), (2, float("inf"))])
def test_a_broken_lora_is_refused(rank, value):
    lora = drawn(QKV, rank=4, alpha=4.0, seed=1)
    lora[f"diffusion_model.{QKV}.lora_B.weight"][3, 1] = value
    with pytest.raises(ValueError, match=f"{QKV} has values that are not finite in 'broken'.*a file from before"):
        merged([Part(lora, 1.0, "broken")], rank)


def test_nothing_is_left_if_every_strength_is_zero():
    with pytest.raises(ValueError, match="every strength is 0. Give at least one LoRA another strength"):
        merged([], rank=0)
