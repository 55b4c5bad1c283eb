"""Draws what micro-batch k trains on, by the seed alone, so that a resumed run sees what it would have seen.

Shapes: B images, C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.family import Family
from ..model.host import Text
from ..recipe.config import TrainConfig
from ..recipe.seeds import generator
from .batches import Batches
from .example import Example
from .objective import mask_weights, normals, sigmas_of, stratified_normals


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Holds the images of a micro-batch and all that was drawn for them, on the CPU."""

    examples: list[Example]
    """Each image in the view that was drawn."""
    latents: Tensor
    """(B, C, H, W)"""
    noise: Tensor
    """(B, C, H, W)"""
    sigmas: Tensor
    """The noise levels (B,)."""
    texts: list[Text]
    """A caption for each image."""
    weights: Tensor
    """The factors on the images' losses (B,)."""
    masks: Tensor | None
    """How much each place counts (B, H, W)."""


class Draws:
    """Draws the micro-batches of a training."""

    def __init__(self, examples: Sequence[Example], config: TrainConfig, family: Family) -> None:
        self._examples, self._config, self._family = examples, config, family
        shapes = [(tuple(e.latents.shape), e.num_repeats) for e in examples]
        self._batches = Batches(shapes, config.batch_size, config.seed)

    def __getitem__(self, k: int) -> MicroBatch:
        """Returns micro-batch k, for any k ≥ 0."""
        chosen = self._shown([self._examples[i] for i in self._batches[k]], k)
        latents = torch.stack([e.latents for e in chosen])
        draw = generator(self._config.seed, "micro-batch", k)
        tokens = self._family.tokens(latents[0, 0].numel())
        sigmas = sigmas_of(self._normals(k, len(chosen), draw), tokens, self._config, self._family.process)
        noise = torch.randn(latents.shape, generator=draw)
        weights = torch.tensor([e.weight for e in chosen])
        return MicroBatch(chosen, latents, noise, sigmas, self._texts(chosen, k), weights, self._masks(chosen))

    def _normals(self, k: int, count: int, draw: torch.Generator) -> Tensor:
        """Returns the normal samples that the noise levels of micro-batch k are made of, one for each image."""
        config = self._config
        if not config.stratified_timesteps:
            return normals(count, draw)
        window, place = divmod(k, config.gradient_accumulation_steps)
        whole = stratified_normals(config.batch_size * config.gradient_accumulation_steps,
                                   generator(config.seed, "window", window))
        return whole[place * config.batch_size:][:count]

    def _shown(self, chosen: list[Example], k: int) -> list[Example]:
        """Returns each image in one of its views, chosen at random."""
        draw = generator(self._config.seed, "views", k)
        drawn = [int(torch.randint(len(e.others) + 1, (), generator=draw)) for e in chosen]
        return [replace(e, latents=e.others[i - 1][0], mask=e.others[i - 1][1]) if i else e
                for e, i in zip(chosen, drawn, strict=True)]

    def _texts(self, chosen: list[Example], k: int) -> list[Text]:
        """Returns a caption for each image: one of its variants, or the empty one."""
        draw, texts = generator(self._config.seed, "captions", k), []
        for example in chosen:
            dropped = torch.rand((), generator=draw).item() < example.caption_dropout
            variant = int(torch.randint(len(example.texts), (), generator=draw))
            texts.append(example.blank if dropped and example.blank is not None else example.texts[variant])
        return texts

    def _masks(self, chosen: list[Example]) -> Tensor | None:
        if all(e.mask is None for e in chosen):
            return None
        whole = torch.ones(chosen[0].latents.shape[1:])
        masks = torch.stack([whole if e.mask is None else e.mask for e in chosen])
        return mask_weights(masks, self._config.unmasked_weight)
