"""What training asks of the program that has the model loaded.

Shapes: B images, C latent channels, H W latent rows and columns, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .family import Family
from .memory import Geometry

Text = dict[str, Any]
"""An encoded caption. Only the host looks inside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How a preview picture is drawn."""

    width: int
    height: int
    steps: int
    cfg: float
    guidance: float
    sampler_name: str
    scheduler: str
    seed: int
    strength: float = 1.0
    """Of the LoRA; 0 draws the base model."""


Sampler = Callable[[Text, Text, SampleSettings, Callable[[], bool]], Tensor]
"""Draws a picture (h, w, 3) in 0…1 from a prompt, a negative prompt and settings. The last argument tells, between two
sampler steps, whether somebody waits: then it raises GiveWay."""


class Interrupted(Exception):
    """A person pressed the program's stop button while it worked for us."""


class GiveWay(Exception):
    """Somebody waits: what was begun is left, to be done again later."""


class Host(Protocol):
    """A loaded model and its encoders. Every method but `fingerprint` is called while the lease is held."""

    family: Family
    """What kind of model it is."""
    device: torch.device
    """Where the model computes."""

    def fingerprint(self) -> str:
        """Tells base models apart: equal for the same weights, also after a restart."""
        ...

    def geometry(self) -> Geometry:
        """What the size of a step in memory depends on."""
        ...

    def load(self, room: int) -> None:
        """Brings the model to its device with exactly its own patches applied and `room` bytes left free. Cheap if it
        is there already."""
        ...

    def view(self, adapter_dtype: torch.dtype) -> nn.Module:
        """A new training view of the model; its placeholders tell adapters to live on `device` in `adapter_dtype`."""
        ...

    def image_fingerprint(self) -> str:
        """Tells apart everything that `encode_images` depends on beside the pictures; equal after a restart."""
        ...

    def text_fingerprint(self, text: str) -> str:
        """Tells apart everything that `encode_text` depends on beside the text; empty if that cannot be told."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, h, w, 3) in 0…1 → latents (B, C, H, W), fp32, on the CPU, as the transformer expects them.

        Raises Interrupted."""
        ...

    def given_latents(self, latents: Tensor) -> Tensor:
        """Latents (C, H, W) that a person gave → as `encode_images` gives them. Raises ValueError if they do not fit
        the model."""
        ...

    def given_text(self, text: Text) -> Text:
        """An encoded caption that a person gave → as `encode_text` gives it. Raises ValueError if it does not fit the
        model."""
        ...

    def encode_text(self, text: str) -> Text:
        """A caption → what `predict` and `sampler` take. Raises Interrupted."""
        ...

    def predict(self, view: nn.Module, noisy: Tensor, sigmas: Tensor, texts: list[Text], guidance: float) -> Tensor:
        """Velocity (B, C, H, W) for noisy latents (B, C, H, W) at sigmas (B,), each with its own text."""
        ...

    def undisturbed(self) -> bool:
        """Whether the model is as `load` left it. A program may take it away from a step under way."""
        ...

    def sampler(self, lora: dict[str, Tensor], strength: float) -> Sampler:
        """The program's own sampler on the model with `lora` applied. Calling it may raise Interrupted and GiveWay."""
        ...

    def hand_back_interrupt(self) -> None:
        """After Interrupted: the person meant a prompt, not the training. Interrupts that prompt."""
        ...
