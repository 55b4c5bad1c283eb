"""A small classifier that tells Noto's style from Fluent's, to measure what a LoRA has learned.

Neither softness nor what the demo model does to a picture is style: half of the batches it learns from are softened,
and a part of the pictures was redrawn by the model.

Shapes: B pictures (B, 3, 128, 128) in 0…1."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .emoji import SEED, pictures, split

WEIGHTS = Path(__file__).parent / "judge.safetensors"
STEPS = 5000
NAMES = 16
"""Names in a batch, each in both styles."""
REDRAWN = 0.35
"""Share of names whose pictures were redrawn by the demo model."""


class Judge(nn.Sequential):
    """Five strided convolutions on blocks of 2 × 2 pixels. Gives the log-odds that a picture is Fluent, (B, 1)."""

    def __init__(self) -> None:
        widths = [3 * 4, 32, 64, 128, 192, 256]
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1], 1))


def load() -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return judge.eval()


@torch.no_grad()
def share_fluent(judge: Judge, data: Tensor) -> float:
    """Share of pictures (N, 3, 128, 128), uint8, that the judge calls Fluent, looked at as they are and mirrored."""
    seen = data / 255
    return ((judge(seen) + judge(seen.flip(-1))).flatten() > 0).float().mean().item()


def accuracy(judge: Judge, noto: Tensor, fluent: Tensor) -> float:
    """Share of right answers on as many pictures of each style."""
    return (1 - share_fluent(judge, noto) + share_fluent(judge, fluent)) / 2


def train(vae: TAESD, flux: nn.Module, nothing: tuple[Tensor, Tensor]) -> float:
    """Trains on names that are neither in the LoRA's training set nor held out, writes the averaged weights, and gives
    the accuracy on the real held-out pictures. A part of the pictures it sees was redrawn by the demo model: what that
    does to a picture is no style. `nothing` is the encoded empty prompt, context (1, L, 128) and pooled (1, 128)."""
    _, held_out, names = split()
    data = torch.stack([pictures(style, names)[1] for style in ("noto", "fluent")])
    draw = torch.Generator().manual_seed(0)
    redrawn = torch.stack([torch.cat([_redraw(vae, flux, nothing, part, draw) for part in style.split(64)])
                           for style in data])
    print(f"{redrawn.shape[1] * 2} pictures redrawn", flush=True)
    torch.manual_seed(SEED)
    judge, draw = Judge(), torch.Generator().manual_seed(SEED)
    average = AveragedModel(judge, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    is_fluent = torch.arange(2.0).repeat_interleave(NAMES)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    began = time.time()
    for step in range(STEPS):
        chosen = torch.randint(0, len(names), (NAMES,), generator=draw)
        changed = torch.rand(NAMES, generator=draw)[:, None, None, None] < REDRAWN
        both = torch.where(changed, redrawn[:, chosen], data[:, chosen]).flatten(0, 1) / 255
        loss = F.binary_cross_entropy_with_logits(judge(_augment(both, draw)).flatten(), is_fluent)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.update_parameters(judge)
        if (step + 1) % 250 == 0:
            print(f"judge step {step + 1}/{STEPS}  loss {loss.item():.4f}  {time.time() - began:.0f} s", flush=True)
    state = average.module.state_dict()
    save_file({name: value.half().contiguous() for name, value in state.items()}, WEIGHTS)
    return accuracy(load(), pictures("noto", held_out)[1], pictures("fluent", held_out)[1])


@torch.no_grad()
def _redraw(vae: TAESD, flux: nn.Module, nothing: tuple[Tensor, Tensor], part: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures (B, 3, 128, 128), uint8, noised a little or much, as the model takes them to have been."""
    count = len(part)
    sigmas = 0.05 + 0.5 * torch.rand(count, generator=draw)
    s = sigmas.view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.taesd_encoder(part.float() / 255).float()
        noisy = (1 - s) * latents + s * torch.randn(latents.shape, generator=draw)
        pred = flux(noisy.clone(), sigmas, *(t.repeat(count, *[1] * (t.ndim - 1)) for t in nothing), torch.ones(count))
        redrawn = vae.taesd_decoder(noisy - s * pred.float())
    return (redrawn.float().clamp(0, 1) * 255).round().byte()


def _augment(batch: Tensor, draw: torch.Generator) -> Tensor:
    """Softened or not, moved by a few pixels, half of them mirrored, and with a little noise."""
    if torch.rand((), generator=draw) < 0.5:
        batch = F.interpolate(F.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear")
    batch = torch.roll(batch, torch.randint(-10, 11, (2,), generator=draw).tolist(), (2, 3))
    mirrored = torch.rand(len(batch), generator=draw)[:, None, None, None] < 0.5
    batch = torch.where(mirrored, batch.flip(-1), batch)
    return batch + 0.01 * torch.randn(batch.shape, generator=draw)
