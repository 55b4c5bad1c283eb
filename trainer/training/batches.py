"""Chooses the images of micro-batch k by the seed alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from ..recipe.seeds import generator


class Batches:
    """Makes micro-batches of images of one shape. Each epoch has every image `num_repeats` times, in a new order."""

    def __init__(self, images: Sequence[tuple[Hashable, int]], batch_size: int, seed: int) -> None:
        """`images` holds the shape and the number of repeats of each image."""
        self._batch_size, self._seed = batch_size, seed
        self._groups: dict[Hashable, list[int]] = {}
        for index, (shape, num_repeats) in enumerate(images):
            self._groups.setdefault(shape, []).extend([index] * num_repeats)
        self.per_epoch = sum(-(-len(group) // batch_size) for group in self._groups.values())
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, k: int) -> list[int]:
        """Returns the indices of the images of micro-batch k, for any k ≥ 0. The last micro-batch of a shape may be
        smaller."""
        epoch, place = divmod(k, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        draw, batches = generator(self._seed, "epoch", epoch), []
        for group in self._groups.values():
            order = [group[i] for i in torch.randperm(len(group), generator=draw)]
            batches += [order[i:i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=draw)]
