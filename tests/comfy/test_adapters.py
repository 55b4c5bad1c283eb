"""Every adapter, in fp32 and bf16, on plain and NF4 weights: no effect at the start, right gradients, and ComfyUI's own
loader computes what the view computed."""

from __future__ import annotations

from dataclasses import replace

import bitsandbytes as bnb
import comfy.model_management as mm
import comfy.ops
import comfy.sd
import pytest
import torch
from livelora.trainer.comfy.families.flux1 import FLUX1
from livelora.trainer.comfy.host import ComfyHost, with_lora
from livelora.trainer.comfy.weights import fetch
from livelora.trainer.lora import kinds
from livelora.trainer.lora.formats import adapter_kind
from livelora.trainer.lora.inject import (
    Layout,
    adapted,
    disabled,
    inject,
    load_weights,
    weights,
    without_dropout,
)
from livelora.trainer.lora.tensors import from_lora, layout_of, to_lora
from livelora.trainer.model.checkpointing import Blocks
from livelora.trainer.model.view import build_view
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.seeds import seeded
from livelora.trainer.training.targets import check_start, layout, param_groups
from tiny_flux import CONFIG, batch, load_flux
from torch import nn

KINDS = {
    **{kind: {"adapter": kind} for kind in kinds.KINDS},
    "LoRA": {}, "rsLoRA": {"adapter": "rsLoRA", "alpha": 3.0}, "DoRA": {"adapter": "DoRA"},
    "LoHa": {"adapter": "LoHa"}, "LoKr": {"adapter": "LoKr"}, "LoKr, whole": {"adapter": "LoKr", "rank": 512,
                                                                             "lokr_factor": 4, "alpha": 256.0},
    "OFT": {"adapter": "OFT", "rank": 8},
    "orthogonal": {"init": "orthogonal"}, "PiSSA": {"init": "PiSSA"},
    "ranks by block": {"block_ranks": "double: 2, single 1: 8", "alpha": 2.0},
}
ALL = pytest.mark.parametrize("kind", KINDS)
EXACT_AT_START = [kind for kind in KINDS if kind != "PiSSA"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
BASES = pytest.mark.parametrize("base", ["linear", "nf4"])


def recipe(kind, **change) -> TrainConfig:
    return replace(CONFIG, **{**KINDS[kind], **change})


def scatter(view, std=0.05) -> None:
    """Values that are not the start's."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, param in view.named_parameters():
            if param.requires_grad:
                noise = torch.randn(param.shape, generator=draw).to(param) * std
                param.mul_(1 + noise) if "magnitude" in name else param.add_(noise)


def as_trained(host, kind: str) -> nn.Module:
    """A view with an adapter that is no longer as it began."""
    view, config = host.view(torch.float32), recipe(kind)
    inject(view, config, layout(view, config, FLUX1))
    scatter(view)
    return view


def as_nf4(host) -> dict[str, torch.Tensor]:
    """Puts bitsandbytes' NF4 layers into the blocks of a host's live model, as node packs for quantized models do, and
    gives the weights that those layers stand for."""
    exact = {name: value.clone() for name, value in host._live.state_dict().items()}
    for name, module in list(host._live.named_modules()):
        if isinstance(module, nn.Linear) and "_blocks." in name:
            quantized = bnb.nn.Linear4bit(module.in_features, module.out_features, module.bias is not None,
                                          compute_dtype=torch.float32, quant_type="nf4")
            quantized.load_state_dict({n: v.clone() for n, v in module.state_dict().items()})
            quantized = quantized.to("cpu")
            parent, _, last = name.rpartition(".")
            setattr(host._live.get_submodule(parent), last, quantized)
            packed = quantized.weight
            exact[f"{name}.weight"] = bnb.functional.dequantize_4bit(packed.data, packed.quant_state).float()
    return exact


@pytest.fixture
def bases(flux_state, clip, random_vae):
    """Makes a host whose weights are plain or NF4, and the plain MODEL with the weights it stands for."""

    def bases(base):
        patcher = load_flux(flux_state)
        host = ComfyHost(patcher, clip, random_vae)
        host.load(0)
        if base == "linear":
            return host, patcher
        with torch.inference_mode():
            exact = as_nf4(host)
        return host, load_flux({name: value.clone() for name, value in exact.items()})

    return bases


def live_output(patcher, latents, sigmas, text):
    with torch.inference_mode():
        mm.load_models_gpu([patcher])
        rest = (text["cond"], text["pooled_output"], torch.tensor([1.0]))
        return patcher.model.diffusion_model(latents.clone(), sigmas, *(t.to(latents.device) for t in rest))


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_a_draw_of_nought_leaves_no_layer_out(bases, kind, monkeypatch):
    """PEFT draws for these in every forward, though nothing is to be dropped."""
    host, _ = bases("linear")
    latents, _, sigmas, texts = batch(host, 1)
    view = as_trained(host, kind)
    with torch.no_grad():
        expected = host.predict(view, latents, sigmas, texts, 1.0)
        monkeypatch.setattr(torch, "rand", torch.zeros)
        assert host.predict(view, latents, sigmas, texts, 1.0).equal(expected)


@BASES
@DTYPES
@ALL
def test_a_new_adapter_changes_nothing(bases, kind, dtype, base):
    host, _ = bases(base)
    host.dtype = dtype
    latents, _, sigmas, texts = batch(host, 1)
    view = host.view(dtype)
    config = recipe(kind)
    with torch.no_grad():
        plain = host.predict(view, latents, sigmas, texts, 1.0)
        inject(view, config, layout(view, config, FLUX1))
        changed = host.predict(view, latents, sigmas, texts, 1.0)
        with disabled(view):
            assert host.predict(view, latents, sigmas, texts, 1.0).equal(plain)
    if kind in EXACT_AT_START:
        assert changed.equal(plain)
    else:  # PiSSA adds and takes off the same: equal to rounding
        assert (changed - plain).abs().max() < (1e-4 if dtype == torch.float32 else 0.15) * plain.abs().max()


@BASES
@ALL
def test_comfyuis_loader_gives_what_the_view_gives(bases, kind, base):
    host, plain = bases(base)
    latents, _, sigmas, texts = batch(host, 1)
    view = as_trained(host, kind)
    with torch.no_grad():
        expected = host.predict(view, latents, sigmas, texts, 1.0)
    before = live_output(plain, latents, sigmas, texts[0])
    actual = live_output(with_lora(plain, to_lora(view, recipe(kind).adapter)), latents, sigmas, texts[0])
    assert (actual - expected).abs().max() < 1e-4
    assert (before - expected).abs().max() > 0.01


class One(nn.Module):
    """A single layer, plain or NF4, in fp64."""

    def __init__(self, base: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        if base == "nf4":
            self.only = bnb.nn.Linear4bit(64, 48, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
        else:
            self.only = comfy.ops.manual_cast.Linear(64, 48, dtype=torch.float64)
            nn.init.normal_(self.only.weight, std=0.1)
            nn.init.normal_(self.only.bias, std=0.1)

    def forward(self, x):
        return self.only(x)


def one_layer(base, kind, dtype):
    config = recipe(kind, target_regex="only", **({"block_ranks": ""} if kind == "ranks by block" else {}))
    view = build_view(One(base), fetch, torch.zeros(1))
    inject(view, config, layout(view, config, FLUX1))
    view.to(dtype)
    scatter(view)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    y = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(2)).to(dtype)
    return view, x, y


def hold_the_norm(view, monkeypatch) -> None:
    """DoRA takes ‖W + ΔW‖ as a constant in its gradient (arXiv:2402.09353, section 4.3), so a finite difference has to
    hold it as well."""
    for layer in adapted(view).values():
        for dora in getattr(layer, "lora_magnitude_vector", {}).values():
            found, real = [], dora.get_weight_norm
            monkeypatch.setattr(dora, "get_weight_norm",
                                lambda *a, _f=found, _r=real, **k: _f[0] if _f else _f.append(_r(*a, **k)) or _f[0])


@BASES
@ALL
def test_gradients_are_finite_differences(kind, base, monkeypatch):
    """fp64, a step of 1e-6 in a random direction for each tensor: 1e-6 relative."""
    view, x, y = one_layer(base, kind, torch.float64)
    hold_the_norm(view, monkeypatch)

    def loss():
        return (view(x) * y).sum() + view(x).square().mean()

    tensors = [x, *(p for p in view.parameters() if p.requires_grad)]
    loss().backward()
    for tensor in tensors:
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                tensor.add_(direction, alpha=step)
                values.append(loss().item())
            tensor.add_(direction, alpha=1e-6)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx((tensor.grad * direction).sum().item(), rel=1e-6,
                                                               abs=1e-7)


@BASES
@ALL
def test_bf16_gradients_are_those_of_fp64_within_its_precision(kind, base):
    found, values = [], {}
    for dtype in (torch.float64, torch.bfloat16):
        view, x, y = one_layer(base, kind, dtype)
        if values:  # the very numbers of the exact one, rounded
            load_weights(view, {n: v.to(dtype) for n, v in values.items()})
        (view(x) * y).sum().backward()
        values = {n: v.detach().clone() for n, v in weights(view).items()}
        found.append([x.grad.double(), *(p.grad.double() for p in view.parameters() if p.requires_grad)])
    for exact, rough in zip(*found, strict=True):
        assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.995
        assert rough.norm() / exact.norm() == pytest.approx(1, abs=0.05)


@ALL
def test_checkpointing_changes_no_gradient(host, kind):
    """With dropout of every kind the adapter has: the recomputation drops the same."""
    host.load(0)
    drops = {"module_dropout": 0.2}
    if kind in ("LoRA", "rsLoRA", "DoRA", "orthogonal", "ranks by block"):
        drops["dropout"] = 0.2
    if not kind.startswith(("DoRA", "OFT", "PiSSA")):
        drops["rank_dropout"] = 0.3
    latents, noise, sigmas, texts = batch(host, 2)
    found = []
    for recompute in (False, True):
        view, config = host.view(torch.float32), recipe(kind, **drops)
        with seeded(host.device, config.seed):
            params = inject(view, config, layout(view, config, FLUX1))
        scatter(view)
        blocks = Blocks(host.family.blocks(view), random=True)
        blocks.kept = () if recompute else range(len(blocks.all))
        torch.manual_seed(5)
        loss = (host.predict(view, latents, sigmas, texts, 1.0) - noise).square().mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad if p.grad is not None else torch.zeros(()) for p in params)])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
    with torch.no_grad(), without_dropout(view):
        one, two = (host.predict(view, latents, sigmas, texts, 1.0) for _ in range(2))
    assert one.equal(two) and not (one - noise).square().mean().equal(found[0][0])


def test_rank_dropout_keeps_the_mean_and_drops_for_each_image_anew():
    config = replace(CONFIG, rank=64, rank_dropout=0.25, target_regex="only")
    view = build_view(One("linear"), fetch, torch.zeros(1))
    inject(view, config, layout(view, config, FLUX1))
    down = adapted(view)["only"].lora_A["default"](torch.ones(100, 2, 64))
    with without_dropout(view):
        whole = adapted(view)["only"].lora_A["default"](torch.ones(100, 2, 64))
    kept = down != 0
    assert kept[:, 0].equal(kept[:, 1]) and not kept[0].equal(kept[1])
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)  # 6400 draws: σ = 0.0054
    torch.testing.assert_close(down[kept], whole[kept] / 0.75)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("orthogonal", "PiSSA")])
def test_an_adapter_goes_on_from_its_file(host, kind):
    host.load(0)
    latents, _, sigmas, texts = batch(host, 1)
    config, view = recipe(kind), as_trained(host, kind)
    lora = to_lora(view, config.adapter)
    assert adapter_kind(lora) == ("LoRA" if config.adapter == "rsLoRA" else config.adapter)
    again = host.view(torch.float32)
    linears = {name for name, m in again.named_modules() if isinstance(m, nn.Linear)}
    plain = replace(config, alpha=0.0, block_ranks="")  # which the file brings
    check_start(lora, plain, linears)
    inject(again, plain, layout_of(lora))
    from_lora(again, lora)
    with torch.no_grad():
        expected, actual = (host.predict(v, latents, sigmas, texts, 1.0) for v in (view, again))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_start_that_does_not_fit_is_refused_with_all_reasons(host):
    view = host.view(torch.float32)
    inject(view, CONFIG, layout(view, CONFIG, FLUX1))
    lora = {f"diffusion_model.double_blocks.9.img_mlp.0.{k}": v for k, v in
            {"lora_A.weight": torch.zeros(2, 3), "lora_B.weight": torch.zeros(4, 2)}.items()}
    with pytest.raises(ValueError) as caught:
        check_start(lora, replace(CONFIG, adapter="DoRA", init="orthogonal"), {"x"})
    told = str(caught.value)
    assert "Its kind is LoRA, and the recipe's adapter is DoRA. Set adapter to LoRA." in told
    assert "scales, so init (orthogonal) has no effect. Set it back to 'kaiming'." in told
    assert "1 of its modules are not in this model: double_blocks.9.img_mlp.0." in told


@pytest.mark.parametrize(("adapter", "shapes", "dead", "told"), [
    ("LoRA", {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)}, "lora_A.weight lora_B.weight", "more than one matrix"),
    ("LoHa", {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
     "hada_w1_a hada_w1_b", "more than one matrix is zero"),
    ("LoHa", {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
     "hada_w1_b hada_w2_a", "more than one matrix is zero"),
    ("LoKr", {"lokr_w1": (2, 2), "lokr_w2": (4, 4)}, "lokr_w1 lokr_w2", "more than one matrix is zero"),
    ("OFT", {"oft_blocks": (8, 1, 1)}, "oft_blocks", "blocks of one output cannot turn"),
])
def test_a_start_that_cannot_learn_is_refused(adapter, shapes, dead, told):
    """One layer or one matrix that is not zero is enough."""
    config, dead = replace(CONFIG, adapter=adapter), dead.split()
    one, two = ({f"diffusion_model.single_blocks.{number}.linear2.{name}": torch.zeros(shape) if name in names else
                 torch.ones(shape) for name, shape in shapes.items()} for number, names in ((0, dead), (1, dead[:1])))
    with pytest.raises(ValueError, match=f"single_blocks.0.linear2.*{told}"):
        check_start(one, config, {"single_blocks.0.linear2"})
    if adapter != "OFT":
        check_start(one | two, config, {"single_blocks.0.linear2", "single_blocks.1.linear2"})


def test_rslora_has_a_scale_by_the_root_of_its_rank(host):
    view, config = host.view(torch.float32), replace(CONFIG, adapter="rsLoRA", rank=16, alpha=8.0)
    inject(view, config, layout(view, config, FLUX1))
    assert {layer.scaling["default"] for layer in adapted(view).values()} == {2.0}  # 8 / √16
    assert to_lora(view, "rsLoRA")["diffusion_model.single_blocks.0.linear1.alpha"] == 32  # 32 / 16 = 2


def test_ranks_and_learning_rates_by_block(host):
    config = replace(CONFIG, rank=4, block_ranks="double: 2, single 1: 8, double 1: 0", alpha=0.0, learning_rate=1e-3,
                     block_learning_rates="single 0: 0.5, double: 2", lora_plus_ratio=16.0)
    view = host.view(torch.float32)
    shape = layout(view, config, FLUX1)
    assert {name.split(".")[0] + name.split(".")[1]: rank for name, rank in shape.ranks.items()} == {
        "double_blocks0": 2, "single_blocks0": 4, "single_blocks1": 8}
    assert set(shape.scales.values()) == {1.0}
    inject(view, config, shape)
    assert view.get_submodule("single_blocks.1.linear1").lora_A["default"].weight.shape[0] == 8
    rates = {id(p): group["lr"] for group in param_groups(view, config, FLUX1) for p in group["params"]}
    for name, factor in (("double_blocks.0.img_mlp.0", 2.0), ("single_blocks.0.linear1", 0.5),
                         ("single_blocks.1.linear2", 1.0)):
        layer = view.get_submodule(name)
        assert rates[id(layer.lora_A["default"].weight)] == pytest.approx(1e-3 * factor)
        assert rates[id(layer.lora_B["default"].weight)] == pytest.approx(16e-3 * factor)


def test_lora_plus_groups_are_pefts(host):
    """peft.optimizers.create_loraplus_optimizer puts the same parameters under the same learning rates."""
    from peft.optimizers import create_loraplus_optimizer

    view, config = host.view(torch.float32), replace(CONFIG, lora_plus_ratio=16.0, learning_rate=1e-4)
    inject(view, config, layout(view, config, FLUX1))
    theirs = create_loraplus_optimizer(view, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16.0)
    expected = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    assert {id(p): group["lr"] for group in param_groups(view, config, FLUX1) for p in group["params"]} == expected


def test_targets_by_name_and_by_expression(host):
    view = host.view(torch.float32)
    blocks = {"all": 2 * 10 + 2 * 3, "attention and mlp": 2 * 8 + 2 * 2, "attention": 2 * 4 + 2 * 2}
    for target, count in blocks.items():
        assert len(layout(view, replace(CONFIG, target_modules=target), FLUX1).ranks) == count, target
    assert set(layout(view, replace(CONFIG, target_regex=r"single_blocks\.1\..*"), FLUX1).ranks) == {
        "single_blocks.1.linear1", "single_blocks.1.linear2", "single_blocks.1.modulation.lin"}
    with pytest.raises(ValueError, match=r"No layer of this model is trained: 'single_blocks.*of its \d+ Linears"):
        layout(view, replace(CONFIG, target_modules="style"), FLUX1)  # this model has two single blocks
    with pytest.raises(ValueError, match="cannot have rank 7: OFT turns blocks of 7 .* not divide its 1536"):
        layout(view, replace(CONFIG, adapter="OFT", rank=7), FLUX1)


def test_layout_of_a_file_gives_a_scale_of_one_where_there_is_no_alpha():
    lora = {f"diffusion_model.a.lora_{kind}.weight": torch.zeros(2, 2) for kind in "AB"}
    assert layout_of(lora) == Layout({"a": 2}, {"a": 1.0})
