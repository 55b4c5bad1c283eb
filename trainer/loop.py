"""One training step, and the state it leaves.

Shapes: B images, C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapters import DTYPES, comfyui_lora, inject_lora
from .checkpointing import isolate
from .config import TrainConfig
from .data.batches import Batches
from .host import Host, Text
from .memory import activation_bytes
from .objective import PATCH, add_noise, flow_matching_loss, generator, sample_sigmas, velocity
from .optim import make_lr_scheduler, make_optimizer


@dataclass(frozen=True, slots=True)
class Example:
    """An image as the transformer sees it."""

    latents: Tensor
    """(C, H, W), fp32, on the CPU."""
    text: Text
    num_repeats: int = 1


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step reports."""

    loss: float
    grad_norm: float
    """Before clipping."""
    learning_rate: float


class NotFinite(RuntimeError):
    """The loss is no number any more: the adapter cannot be trusted, the last saved state can."""


class Trainer:
    """A view of the host's model with LoRA in it, its optimizer and its schedule.

    Micro-batch k depends on (seed, k) alone, so adapter, optimizer, schedule and the step count are the whole state."""

    def __init__(self, host: Host, config: TrainConfig, examples: Sequence[Example]) -> None:
        self.host, self.config, self.examples = host, config, examples
        tokens = max(e.latents[0].numel() for e in examples) // PATCH**2
        self.room = activation_bytes(host.geometry(), tokens, config.batch_size, config.gradient_checkpointing)
        """Bytes a step needs beside the weights."""
        host.load(self.room)
        self.view: nn.Module = host.view(DTYPES[config.adapter_dtype])
        self.params = inject_lora(self.view, config)
        isolate(host.blocks(self.view), recompute=config.gradient_checkpointing)
        self.optimizer = make_optimizer(self.params, config)
        self.lr_scheduler = make_lr_scheduler(self.optimizer, config)
        shapes = [(tuple(e.latents.shape), e.num_repeats) for e in examples]
        self.batches = Batches(shapes, config.batch_size, config.seed)
        self.steps_done = 0

    def step(self) -> StepResult:
        """One optimizer update. Raises NotFinite if the loss is no number."""
        config, losses = self.config, []
        first = self.steps_done * config.gradient_accumulation_steps
        for k in range(first, first + config.gradient_accumulation_steps):
            loss = self._micro_batch(k)
            (loss / config.gradient_accumulation_steps).backward()
            losses.append(loss.item())
        if not all(map(math.isfinite, losses)):
            raise NotFinite(f"The loss became {losses[-1]} at step {self.steps_done + 1}. Lower the learning rate "
                            f"(it was {self.lr_scheduler.get_last_lr()[0]:g}) and train again.")
        norm = nn.utils.clip_grad_norm_(self.params, config.max_grad_norm or math.inf)
        learning_rate = float(self.lr_scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.steps_done += 1
        return StepResult(sum(losses) / len(losses), norm.item(), learning_rate)

    def _micro_batch(self, k: int) -> Tensor:
        chosen = [self.examples[i] for i in self.batches[k]]
        latents = torch.stack([e.latents for e in chosen])
        draw = generator(self.config.seed, "micro-batch", k)
        tokens = latents[0, 0].numel() // PATCH**2
        sigmas = sample_sigmas(len(chosen), tokens, self.config.timestep_sampling, draw)
        noise = torch.randn(latents.shape, generator=draw)
        return self.losses(latents, noise, sigmas, [e.text for e in chosen]).mean()

    def losses(self, latents: Tensor, noise: Tensor, sigmas: Tensor, texts: list[Text]) -> Tensor:
        """Loss (B,) of noised latents; latents and noise (B, C, H, W), sigmas (B,), all on the CPU."""
        latents, noise, sigmas = (t.to(self.host.device) for t in (latents, noise, sigmas))
        noisy = add_noise(latents, noise, sigmas)
        pred = self.host.predict(self.view, noisy, sigmas, texts, self.config.guidance)
        return flow_matching_loss(pred, velocity(latents, noise))

    def discard_step(self) -> None:
        """Forgets the gradients of a step that was cut short; the step can then be taken again."""
        self.optimizer.zero_grad()

    def lora(self) -> dict[str, Tensor]:
        """The LoRA as it is now, for ComfyUI's loader; a copy on the CPU."""
        return comfyui_lora(self.view, self.config)
