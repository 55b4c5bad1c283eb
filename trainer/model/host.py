"""Defines what training asks of the program that has the model loaded.

Shapes: B images, C latent channels, H W latent rows and columns, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .family import Family
from .memory import Memory, Size

Text = dict[str, Any]
"""An encoded caption. Only the host looks inside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """Says how a preview picture is drawn."""

    width: int
    height: int
    steps: int
    cfg: float
    guidance: float
    sampler_name: str
    scheduler: str
    seed: int
    strength: float = 1.0
    """How strongly the LoRA goes in; 0 draws the base model."""


Sampler = Callable[[Text, Text, SampleSettings, Callable[[], bool]], Tensor]
"""Draws a picture (h, w, 3) in 0…1 from a prompt, a negative prompt and settings. Between two sampler steps it calls
the last argument, which returns whether somebody waits. If somebody does, the sampler raises GiveWay."""


class Interrupted(Exception):
    """Is raised when a person has pressed the program's stop button while it worked for us."""


class GiveWay(Exception):
    """Is raised when somebody waits. The work that was begun is given up, to be done again later."""


class Host(Protocol):
    """A loaded model and its encoders. Every method but `fingerprint` is called while the lease is held."""

    family: Family
    """The family of the model."""
    architecture: str
    """The name that ModelSpec has for a LoRA of the model."""
    device: torch.device
    """The device on which the model computes."""
    dtype: torch.dtype
    """The type of number in which it computes."""

    def fingerprint(self) -> str:
        """Tells base models apart. It is equal for the same weights, also after a restart."""
        ...

    def memory(self) -> Memory:
        """Returns what memory the device has for a training."""
        ...

    def load(self, room: int) -> None:
        """Brings the model to its device with exactly its own patches applied and `room` bytes left free. This is cheap
        if the model is there already."""
        ...

    def view(self, adapter_dtype: torch.dtype) -> nn.Module:
        """Returns a new training view of the model. Its placeholders tell adapters to live on `device` in
        `adapter_dtype`."""
        ...

    def blank(self, adapter_dtype: torch.dtype, *, streamed: bool) -> nn.Module:
        """Returns a new view without memory, on PyTorch's device for tensors without values, to rehearse a step with.
        With `streamed` all of its weights are made anew for each use."""
        ...

    def latent_size(self, width: int, height: int) -> Size:
        """Returns the shape (C, H, W) of the latents of a picture of so many pixels."""
        ...

    def blank_text(self, tokens: int) -> Text:
        """Returns an encoded caption of so many tokens, without values, for a rehearsal."""
        ...

    def peak(self) -> int | None:
        """Returns the most bytes of the device that were in use since the last call; None if the device does not tell.
        """
        ...

    @property
    def fetches_ahead(self) -> bool:
        """Returns whether weights can be fetched while the device works on something else."""
        ...

    def matmul_rate(self) -> float | None:
        """Returns how many floating-point operations a second the device does when it multiplies large matrices of the
        model's type; None if that cannot be measured."""
        ...

    def unused(self) -> int:
        """Returns how many bytes of the device the program keeps for later, which nothing uses now."""
        ...

    def free(self) -> None:
        """Gives memory that nothing uses back to the device."""
        ...

    def clear(self) -> None:
        """Takes every model off the device, and gives back what nothing uses."""
        ...

    def image_fingerprint(self) -> str:
        """Tells apart everything that `encode_images` depends on beside the pictures. It is equal after a restart."""
        ...

    def text_fingerprint(self, text: str) -> str:
        """Tells apart everything that `encode_text` depends on beside the text; empty if that cannot be told."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Encodes pictures (B, h, w, 3) in 0…1 and returns latents (B, C, H, W), fp32, on the CPU, as the transformer
        expects them.

        Raises Interrupted."""
        ...

    def given_latents(self, latents: Tensor) -> Tensor:
        """Turns latents (C, H, W) that a person gave into what `encode_images` returns for one picture. Raises
        ValueError if they do not fit the model."""
        ...

    def given_text(self, text: Text) -> Text:
        """Turns an encoded caption that a person gave into what `encode_text` returns. Raises ValueError if it does not
        fit the model."""
        ...

    def count_tokens(self, text: str) -> int:
        """Returns how many tokens a text has for `encode_text`. Raises ValueError if it cannot be read as tokens."""
        ...

    def encode_text(self, text: str) -> Text:
        """Encodes a caption for `predict` and `sampler`. Raises Interrupted, and ValueError for a text that is far too
        long (`Family.most_tokens`) or cannot be read as tokens."""
        ...

    def predict(self, view: nn.Module, noisy: Tensor, sigmas: Tensor, texts: list[Text], guidance: float) -> Tensor:
        """Returns the velocity (B, C, H, W) for noisy latents (B, C, H, W) at sigmas (B,), each with its own text."""
        ...

    def undisturbed(self) -> bool:
        """Returns whether the model is as `load` left it. A program may take it away while a step runs."""
        ...

    def sampler(self, lora: dict[str, Tensor], strength: float) -> Sampler:
        """Returns the program's own sampler on the model with `lora` applied. Calling the sampler may raise Interrupted
        and GiveWay."""
        ...

    def hand_back_interrupt(self) -> None:
        """Interrupts the prompt that runs. Is called after Interrupted, if the person meant that prompt and not the
        training."""
        ...
