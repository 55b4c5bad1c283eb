"""Plans the memory of a recipe on a host, for the pictures and captions that it trains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..data.item import Item
from ..lora.inject import inject, weights
from ..lora.kinds import KINDS
from ..model.checkpointing import Blocks
from ..model.fitting import DoesNotFit, plan
from ..model.host import Host, Text
from ..model.memory import GB, Fixed, Memory, Plan, Rung, Size
from ..model.rehearsal import Rehearsal, Rehearsed
from ..model.transfer import Aside
from ..recipe.config import TrainConfig
from ..recipe.optimizers import OPTIMIZERS
from ..recipe.settings import field_of
from .example import Example
from .objective import elementwise_loss, image_losses
from .targets import layout

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The types for the choices of `adapter_dtype`."""
_KNOWN: dict[Any, Rehearsed] = {}
"""Steps that were rehearsed in this process, by all that their cost depends on."""
MOST_KNOWN = 64
MOST_AREAS = 4
"""How many areas of pictures are rehearsed. Pictures of another area are planned as the next larger one."""
NEARER: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("gradient_checkpointing auto", {"gradient_checkpointing": "auto"}, 1),
    ("pictures of three quarters of the width and height (resolution in LoRA Dataset Loader)", {}, 0.75),
    ("pictures of half the width and height (resolution in LoRA Dataset Loader)", {}, 0.5))
"""Recipes that need less than one that does not fit, the nearest first: in words, what changes in the recipe, and the
factor on the pictures' width and height."""
KEPT_IN_32_BITS, BLOCK = 4096, 256
"""bitsandbytes: the state of a tensor with fewer values than this has 32 bits; 8-bit state has a number of 32 bits for
each block of so many values."""


def plan_for(host: Host, config: TrainConfig, sizes: Collection[Size], text: Text,
             start: dict[str, Tensor] | None = None, memory: Memory | None = None) -> Plan:
    """Returns the plan for a recipe and pictures of these sizes, (C, H, W) in latent pixels, with captions as long as
    `text`. Takes seconds, and no memory of the device but a little to measure how fast it is. `memory` is planned
    for instead of the host's.

    Raises DoesNotFit, which names the nearest recipe that does fit, if nothing fits, and RuntimeError if the model has
    a block that cannot be trained."""
    there = memory or host.memory()
    there = replace(there, available=int(max(0, there.available - config.leave_free * GB)))
    with torch.inference_mode(False), torch.enable_grad():  # a prompt computes without gradients
        try:
            made = _plan(host, config, sizes, text, start, there)
        except DoesNotFit as err:
            raise DoesNotFit(f"{err} {_nearest(host, config, sizes, text, start, there)}") from None
    return replace(made.with_advice(), rate=None if memory else host.matmul_rate(),
                   batches=config.gradient_accumulation_steps)


def _plan(host: Host, config: TrainConfig, sizes: Collection[Size], text: Text, start: dict[str, Tensor] | None,
          memory: Memory) -> Plan:
    stand_ins = _areas(sizes)

    @cache
    def stage(streamed: bool) -> Stage:
        return Stage(host, config, start, streamed)

    @cache
    def rehearsed(size: Size, images: int, streamed: bool) -> Rehearsed:
        return stage(streamed).step(size, images, text)

    def costs(size: Size, rung: Rung) -> Rehearsed:
        return rehearsed(stand_ins[size], rung.images, rung.streamed)

    made = plan(memory, fixed(stage(False).view, config), costs, {*stand_ins.values()}, config.batch_size,
                checkpointing=config.gradient_checkpointing,
                further=config.gradient_accumulation_steps > 1 or config.preservation_weight > 0)
    return replace(made, **{name: {size: getattr(made, name)[like] for size, like in stand_ins.items()}
                            for name in ("kept", "peaks", "flop")})


def _nearest(host: Host, config: TrainConfig, sizes: Collection[Size], text: Text, start: dict[str, Tensor] | None,
             memory: Memory) -> str:
    """Returns what to do about a training that does not fit, in a sentence."""
    for words, changes, share in NEARER:
        smaller = {(size[0], *(max(2, 2 * int(share * edge / 2)) for edge in size[1:])) for size in sizes}
        try:
            _plan(host, replace(config, **changes), smaller, text, start, memory)
        except DoesNotFit:
            continue
        return f"It fits with {words}; or use a smaller model file, such as one in fp8."
    return ("Pictures of half the width and height do not fit either. Use a smaller model file, such as one in fp8, "
            "and close other programs that use the graphics card.")


def plan_of(host: Host, config: TrainConfig, examples: Sequence[Example],
            start: dict[str, Tensor] | None = None) -> Plan:
    """Returns the plan for examples: for the sizes of their latents, and the longest of their texts. Raises what
    `plan_for` raises."""
    sizes = {tuple(latents.shape) for e in examples for latents in (e.latents, *(other for other, _ in e.others))}
    texts = [text for e in examples for text in (*e.texts, e.blank, e.preserved) if text is not None]
    longest = max(texts, default=host.blank_text(0),
                  key=lambda text: sum(v.numel() for v in text.values() if torch.is_tensor(v)))
    return plan_for(host, config, sizes, longest, start)


def plan_before(host: Host, config: TrainConfig, items: Sequence[Item], start: dict[str, Tensor] | None = None,
                memory: Memory | None = None) -> Plan | None:
    """Returns the plan for images whose latents and captions are not encoded yet. What a person has encoded is not
    looked at; if that is all there is, it returns None. Raises what `plan_for` raises."""
    sizes = {host.latent_size(*item.bucket) for item in items if not item.latents}
    if not sizes:
        return None
    longest = max((item.caption for item in items if not item.text), key=len, default="")
    return plan_for(host, config, sizes, host.blank_text(host.count_tokens(longest)), start, memory)


def fixed(view: nn.Module, config: TrainConfig) -> Fixed:
    """Returns what the adapter in a view needs whatever is trained."""
    params = [p for p in view.parameters() if p.requires_grad]
    row, values = OPTIMIZERS[config.optimizer], sum(p.numel() for p in params)
    small = sum(p.numel() for p in params if p.numel() < KEPT_IN_32_BITS) if row.eight_bit else values
    state = int(row.moments * (4 * small + (values - small) * (1 + 4 / BLOCK)))
    own, average = sum(p.nbytes for p in params), 4 * values if config.ema_decay else 0
    copies = own + state + average  # see `whole_or_not_at_all`
    widened, apart = 8 * values if config.adapter_dtype == "bf16" else 0, 0 if row.eight_bit else 4 * values
    return Fixed(adapter=sum(t.nbytes for t in weights(view).values()), gradients=own,
                 optimizer=(0 if row.paged else state) + average, update=copies + widened + apart)


class Stage:
    """Rehearses steps of a recipe."""

    def __init__(self, host: Host, config: TrainConfig, start: dict[str, Tensor] | None, streamed: bool) -> None:
        # Which layers module dropout leaves out depends on values, and a rehearsal has none. How an adapter begins
        # matters only where that start is kept beside it.
        kept = config.init in KINDS[config.adapter].inits_from_weights
        config = replace(config, module_dropout=0.0,
                         init=config.init if kept else field_of(TrainConfig, "init").default)
        self.host, self.config = host, config
        self.about = host.memory().weights, host.dtype, streamed, host.fetches_ahead
        self.view = host.blank(DTYPES[config.adapter_dtype], streamed=streamed)
        inject(self.view, config, layout(self.view, config, host.family, start))
        self.layers = (host.family.name, str(host.device), *(
            (name, p.shape, p.dtype, p.requires_grad) for name, p in self.view.named_parameters()))
        # Nothing is really fetched here, so that nobody needs a line of work of its own for it.
        aside = Aside(torch.device("cpu")) if host.fetches_ahead else None
        blocks = Blocks(host.family.blocks(self.view), aside=aside)
        blocks.holds = streamed
        self.rehearsal = Rehearsal(self.view, blocks, host.device)

    def step(self, size: Size, images: int, text: Text) -> Rehearsed:
        """Returns what a forward and backward pass costs for so many images of one size, (C, H, W)."""
        config = self.config
        shapes = tuple((name, value.shape) for name, value in text.items() if torch.is_tensor(value))
        key = (self.layers, self.about, size, images, shapes, config.adapter, config.init, config.loss,
               bool(config.dropout), bool(config.rank_dropout))
        if key not in _KNOWN:
            if len(_KNOWN) >= MOST_KNOWN:
                _KNOWN.pop(next(iter(_KNOWN)))
            _KNOWN[key] = self._rehearsed(size, images, text)
        return _KNOWN[key]

    def _rehearsed(self, size: Size, images: int, text: Text) -> Rehearsed:
        host = self.host

        def loss() -> Tensor:
            latents, noise = (torch.empty(images, *size, device=host.device) for _ in range(2))
            sigmas, process = torch.empty(images, device=host.device), host.family.process
            alike = {n: torch.empty(v.shape, dtype=v.dtype) if torch.is_tensor(v) else v for n, v in text.items()}
            noisy = process.add_noise(latents, noise, sigmas)
            pred = host.predict(self.view, noisy, sigmas, [alike] * images, self.config.guidance)
            target = process.target(latents, noise)
            return image_losses(elementwise_loss(pred, target, sigmas, self.config)).mean()

        return self.rehearsal.take(loss)


def _areas(sizes: Collection[Size]) -> dict[Size, Size]:
    """Returns for each size the one that is rehearsed for it: one as large, or the next larger one of a few."""
    by_area = {size[-1] * size[-2]: size for size in sorted(sizes)}
    areas = sorted(by_area, reverse=True)
    chosen = areas if len(areas) <= MOST_AREAS else [areas[i * len(areas) // MOST_AREAS] for i in range(MOST_AREAS)]
    return {size: by_area[min(area for area in chosen if area >= size[-1] * size[-2])] for size in sizes}
