"""A small classifier that tells Noto's style from Fluent's, to measure what a LoRA has learned.

Shapes: B pictures (B, 3, 128, 128) in 0…1."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .emoji import SEED, pictures, split

WEIGHTS = Path(__file__).parent / "judge.safetensors"
STEPS = 3000
BATCH = 32


class Judge(nn.Sequential):
    """Five strided convolutions; the output is the log-odds that a picture is Fluent."""

    def __init__(self) -> None:
        widths = [3, 24, 48, 72, 96, 128]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1))


def load() -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return judge.eval()


@torch.no_grad()
def share_fluent(judge: Judge, data: Tensor) -> float:
    """Share of pictures (N, 3, 128, 128), uint8, that the judge calls Fluent."""
    return (judge(data.float() / 255).flatten() > 0).float().mean().item()


def accuracy(judge: Judge, noto: Tensor, fluent: Tensor) -> float:
    """Share of right answers on as many pictures of each style."""
    return (1 - share_fluent(judge, noto) + share_fluent(judge, fluent)) / 2


def train(vae: TAESD) -> float:
    """Trains on names that are neither in the LoRA's training set nor held out, writes the weights, and gives the
    accuracy on the real held-out pictures. Half of the pictures it sees went through the VAE: what the VAE does to a
    picture is no style."""
    _, held_out, names = split()
    data = torch.stack([pictures(style, names)[1] for style in ("noto", "fluent")])
    with torch.no_grad():
        vae = vae.to(memory_format=torch.channels_last)
        blurred = torch.stack([torch.cat([_rebuild(vae, part) for part in style.split(32)]) for style in data])
    draw, judge = torch.Generator().manual_seed(SEED), _seeded()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    print(f"{blurred.shape[1] * 2} pictures rebuilt", flush=True)
    began = time.time()
    for step in range(STEPS):
        chosen = torch.randint(0, len(names), (BATCH,), generator=draw)
        style = torch.randint(0, 2, (BATCH,), generator=draw)
        source = torch.where(torch.rand(BATCH, generator=draw)[:, None, None, None] < 0.5,
                             data[style, chosen], blurred[style, chosen])
        loss = F.binary_cross_entropy_with_logits(judge(_augment(source.float() / 255, draw)).flatten(), style.float())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 250 == 0:
            print(f"judge step {step + 1}/{STEPS}  loss {loss.item():.4f}  {time.time() - began:.0f} s", flush=True)
    save_file({name: value.half().contiguous() for name, value in judge.state_dict().items()}, WEIGHTS)
    return accuracy(load(), pictures("noto", held_out)[1], pictures("fluent", held_out)[1])


def _seeded() -> Judge:
    torch.manual_seed(SEED)
    return Judge()


def _rebuild(vae: TAESD, part: Tensor) -> Tensor:
    pixels = (part.float() / 255).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        rebuilt = vae.taesd_decoder(vae.taesd_encoder(pixels))
    return (rebuilt.float().clamp(0, 1) * 255).round().byte()


def _augment(batch: Tensor, draw: torch.Generator) -> Tensor:
    """Moved by a few pixels, mirrored, and with a little noise."""
    dx, dy, mirrored = torch.randint(-6, 7, (3,), generator=draw).tolist()
    batch = torch.roll(batch, (dy, dx), (2, 3))
    if mirrored > 0:
        batch = batch.flip(-1)
    return batch + 0.01 * torch.randn(batch.shape, generator=draw)
