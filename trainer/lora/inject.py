"""The trainable part: PEFT adapters injected into a training view, and how a Linear with one runs.

Shapes: B images, L tokens, I input width, O output width, R rank.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..disk.packages import require
from ..model.view import FrozenLinear, real_weights
from ..recipe.choices import LORA_LIKE, TargetModules
from ..recipe.config import TrainConfig

BLOCK = r"(double_blocks|single_blocks)\.\d+\."
TARGETS: dict[TargetModules, str] = {
    "all": BLOCK + ".*",
    "attention and mlp": BLOCK + r"(img_attn|txt_attn|img_mlp|txt_mlp|linear[12]).*",
    "attention": BLOCK + r"((img_attn|txt_attn)\..*|linear[12])",
    "style": r"single_blocks\.[123]\d\..*",
    "character": r"single_blocks\.(7|12|16|20)\.linear2",
}
"""Names of FLUX.1's Linears. A single block's linear1 and linear2 hold its attention and its MLP in one.

`character`: the four layers that practice found to be enough for a likeness (TheLastBen's 7 and 20, cited by
ai-toolkit's README; all four in Replicate's flux-dev-lora-trainer). `style`: SplitFlux (arXiv:2511.15258) finds content
in the first ten single blocks and style in the later ones."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAME = "default"
"""What PEFT calls the one adapter of a view."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What an adapter looks like: rank and scale of every Linear that gets one."""

    ranks: dict[str, int]
    scales: dict[str, float]


def layout(view: nn.Module, config: TrainConfig) -> Layout:
    """The Linears that a recipe names, with the ranks it gives them.

    Raises ValueError if there are none, or if OFT's blocks do not divide one."""
    pattern, by_block, rates = target_pattern(config), config.ranks_by_block, config.learning_rates_by_block
    linears = {name: m for name, m in view.named_modules() if isinstance(m, nn.Linear)}
    ranks = {name: int(by_block.of(name, config.rank)) for name in linears
             if re.fullmatch(pattern, name) and rates.of(name, 1.0)}
    ranks = {name: rank for name, rank in ranks.items() if rank}
    if not ranks:
        raise ValueError(f"No layer of this model is trained: '{pattern}' with block_ranks '{config.block_ranks}' "
                         f"matches none of its {len(linears)} Linears, such as {', '.join([*linears][:3])}. Choose "
                         "other target_modules, or correct target_regex or block_ranks.")
    if config.adapter == "OFT":
        odd = [name for name, rank in ranks.items() if linears[name].out_features % rank]
        if odd:
            raise ValueError(f"OFT turns blocks of {ranks[odd[0]]} outputs, which do not divide the "
                             f"{linears[odd[0]].out_features} of {odd[0]}. Choose a rank that does: 16, 32 or 64.")
    return Layout(ranks, {name: _scale(config, rank) for name, rank in ranks.items()})


def target_pattern(config: TrainConfig) -> str:
    """The regular expression that names of trained Linears match."""
    return config.target_regex or TARGETS[config.target_modules]


def _scale(config: TrainConfig, rank: int) -> float:
    """α/R (Hu et al. 2021); rsLoRA: α/√R (Kalajdzievski 2023, arXiv:2312.03732)."""
    alpha = config.alpha or rank
    return alpha / (math.sqrt(rank) if config.adapter == "rsLoRA" else rank)


def inject(view: nn.Module, config: TrainConfig, shape: Layout) -> list[nn.Parameter]:
    """Adds the recipe's adapter to the view and returns its trainable parameters.

    LoRA (Hu et al. 2021, arXiv:2106.09685): h = Wx + s BAx, with B = 0 at the start. DoRA (Liu et al. 2024,
    arXiv:2402.09353), LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098), LoKr (Yeh et al. 2023, arXiv:2309.14859), OFT
    (Qiu et al. 2023, arXiv:2306.07280) on the output side, as LyCORIS and ComfyUI have it: h = R Wx.
    Raises RuntimeError if peft is not installed."""
    peft = require("peft")
    # PEFT initialises from the global generator, which is not ours to move, and reads the weights for DoRA and PiSSA.
    needs_weights = real_weights(view) if _reads_weights(config) else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[]), needs_weights:
        torch.default_generator.manual_seed(config.seed)
        peft.inject_adapter_in_model(_peft_config(config, shape), view)
        for name, rank in shape.ranks.items():
            _finish_layer(view.get_submodule(name), config, rank, shape.scales[name])
    return [p for p in view.parameters() if p.requires_grad]


def _reads_weights(config: TrainConfig) -> bool:
    return config.adapter == "DoRA" or config.init == "PiSSA"


def _peft_config(config: TrainConfig, shape: Layout) -> Any:
    peft, ranks = require("peft"), shape.ranks
    common = {"target_modules": list(ranks)}
    patterns = {"rank_pattern": {re.escape(name): rank for name, rank in ranks.items() if rank != config.rank},
                "alpha_pattern": {re.escape(name): shape.scales[name] * rank for name, rank in ranks.items()}}
    if config.adapter in LORA_LIKE:
        return peft.LoraConfig(r=config.rank, lora_alpha=config.rank, lora_dropout=config.dropout,
                               init_lora_weights="pissa_niter_4" if config.init == "PiSSA" else True,
                               use_dora=config.adapter == "DoRA", **common, **patterns)
    if config.adapter == "LoHa":
        return peft.LoHaConfig(r=config.rank, alpha=config.rank, rank_dropout=config.rank_dropout, **common, **patterns)
    if config.adapter == "LoKr":
        return peft.LoKrConfig(r=config.rank, alpha=config.rank, rank_dropout=config.rank_dropout,
                               decompose_factor=config.lokr_factor, **common, **patterns)
    return peft.OFTConfig(r=0, oft_block_size=config.rank, use_cayley_neumann=False, **common)


def _finish_layer(layer: Any, config: TrainConfig, rank: int, scale: float) -> None:
    """What PEFT leaves to us: the scale to the last bit, other starts, and how the layer runs in a view."""
    if config.adapter == "OFT":
        layer.oft_R[NAME] = _output_rotation(layer.oft_R[NAME], layer.base_layer, rank)
    else:
        layer.scaling[NAME] = scale
    if config.init == "orthogonal":
        # rows of the length that kaiming_uniform(a = √5) gives them: each value has variance 1/(3 I)
        param = layer.lora_A[NAME].weight
        param.data.copy_(nn.init.orthogonal_(torch.empty(param.shape), gain=1 / math.sqrt(3)))
    if config.init == "PiSSA":
        for kind, matrix in (("start_A", layer.lora_A), ("start_B", layer.lora_B)):
            param = matrix[NAME].weight
            param.data = param.data.to(layer.base_layer.placeholder.dtype)
            layer.register_buffer(kind, param.detach().clone())
    if config.rank_dropout and config.adapter in LORA_LIKE:
        layer.lora_A[NAME].register_forward_hook(_RankDropout(config.rank_dropout))
    layer.forward = Adapted(layer, config)


def _output_rotation(inputs: Any, base: FrozenLinear, block: int) -> nn.Module:
    """PEFT's rotation, made for the outputs instead of the inputs; no rotation at the start."""
    made = type(inputs)(base.out_features // block, block * (block - 1) // 2, block, base.out_features,
                        use_cayley_neumann=False)
    nn.init.zeros_(made.weight)
    return made.to(base.placeholder)


class _RankDropout:
    """A forward hook on A: drops ranks, for each image its own, and scales up the rest."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, module: nn.Module, _: Any, down: Tensor) -> Tensor:
        if not module.training:
            return down
        shape = (down.shape[0], *[1] * (down.ndim - 2), down.shape[-1])
        kept = torch.rand(shape, device=down.device) >= self._share
        return down * kept / (1 - self._share)


class Adapted:
    """The forward of a Linear with an adapter: (B, L, I) → (B, L, O)."""

    def __init__(self, layer: Any, config: TrainConfig) -> None:
        self.layer, self.enabled = layer, True
        self._module_dropout, self._peft = config.module_dropout, type(layer).forward.__get__(layer)
        self._reads_weights = config.adapter == "DoRA"
        plain = config.adapter in ("LoRA", "rsLoRA") and not (config.dropout or config.rank_dropout)
        self._run = self._fused if plain else self._rotated if config.adapter == "OFT" else self._pefts

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x) if self.enabled and not self._left_out() else self.layer.base_layer(x)

    def _left_out(self) -> bool:
        return self._module_dropout > 0 and self.layer.training and torch.rand(()).item() < self._module_dropout

    def _fused(self, x: Tensor) -> Tensor:
        """What PEFT's LoRA layer computes, in fewer passes over memory. PiSSA (Meng et al. 2024, arXiv:2404.02948)
        takes its start out of W; a frozen W keeps it, so it is taken off here: h = Wx + s (BA − B₀A₀) x."""
        layer = self.layer
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        if hasattr(layer, "start_A"):
            a, b = torch.cat((a, layer.start_A)), torch.cat((b, -layer.start_B), dim=1)
        return layer.base_layer.with_lora(x, a, b, layer.scaling[NAME])

    def _rotated(self, x: Tensor) -> Tensor:
        """RWx + b = R(Wx + b) + (b − Rb): this way R = 1 changes no bit. Solved in fp32 at least."""
        rotation, (y, bias) = self.layer.oft_R[NAME], self.layer.base_layer.with_bias(x)
        weight = rotation.weight.to(torch.promote_types(rotation.weight.dtype, torch.float32))
        turned = functional_call(rotation, {"weight": weight}, (y.to(weight.dtype),))
        if bias is not None:
            bias = bias.to(weight.dtype)[None]
            turned = turned + (bias - functional_call(rotation, {"weight": weight}, (bias,)))
        return turned.to(y.dtype)

    def _pefts(self, x: Tensor) -> Tensor:
        """PEFT's own forward. It multiplies in the adapter's dtype, so a half-precision model asks for autocast."""
        half = x.dtype in (torch.bfloat16, torch.float16)
        lend = real_weights(self.layer.base_layer) if self._reads_weights else contextlib.nullcontext()
        with torch.autocast(x.device.type, dtype=x.dtype if half else None, enabled=half, cache_enabled=False), lend:
            return self._peft(x)


def adapted(view: nn.Module) -> dict[str, Any]:
    """PEFT's layers in a view, by their names."""
    return {name: m for name, m in view.named_modules() if isinstance(m.__dict__.get("forward"), Adapted)}


@contextlib.contextmanager
def disabled(view: nn.Module) -> Iterator[None]:
    """While inside, the view answers as the base model does."""
    runs = [layer.forward for layer in adapted(view).values()]
    for run in runs:
        run.enabled = False
    try:
        yield
    finally:
        for run in runs:
            run.enabled = True


@contextlib.contextmanager
def without_dropout(view: nn.Module) -> Iterator[None]:
    """While inside, nothing of the adapter is dropped."""
    layers = list(adapted(view).values())
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def param_groups(view: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters by their learning rate: the recipe's, times the block's factor, times for B the LoRA+ ratio
    (Hayou et al. 2024, arXiv:2402.12354). Always positive: to erase, the loss is turned round."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, param in view.named_parameters():
        if param.requires_grad:
            rate = abs(config.learning_rate) * config.learning_rates_by_block.of(name, 1.0)
            rate *= config.lora_plus_ratio if ".lora_B." in name else 1.0
            groups.setdefault(rate, []).append(param)
    return [{"params": params, "lr": rate} for rate, params in groups.items()]


def weights(view: nn.Module) -> dict[str, Tensor]:
    """The adapter's own tensors by name, not copied, such as `<module>.lora_A.weight` (R, I) and
    `<module>.lora_B.weight` (O, R)."""
    found = {name.replace(f".{NAME}", ""): p for name, p in view.named_parameters() if p.requires_grad}
    return {**found, **{name: b for name, b in view.named_buffers() if name.endswith((".start_A", ".start_B"))}}


def load_weights(view: nn.Module, values: dict[str, Tensor]) -> None:
    """Puts saved values into the adapter. Raises ValueError if names or shapes differ."""
    own = weights(view)
    wrong = sorted({*own} ^ {*values}) or [n for n, v in values.items() if v.shape != own[n].shape]
    if wrong:
        raise ValueError(f"The saved adapter does not fit this model: {', '.join(wrong[:3])} and {len(wrong)} in all.")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
