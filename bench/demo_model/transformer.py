"""Trains the demo model's transformer: a FLUX.1 of 9 million parameters that draws Noto emoji by their names.

Shapes: B pictures, L text tokens, latents (B, 16, 16, 16)."""

from __future__ import annotations

import random
import time
from pathlib import Path

import comfy.ldm.flux.model
import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.comfy.demo_model import TOKENS

from .emoji import SEED, caption, pictures

SHAPE = dict(in_channels=16, out_channels=16, vec_in_dim=128, context_in_dim=128, hidden_size=256, mlp_ratio=4.0,
             num_heads=2, depth=2, depth_single_blocks=4, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
             qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
CYCLES = ((4500, 0.0, 1.0), (1500, 1.0, 1.0), (1500, 0.7, 1.0), (2500, 0.5, 1.0), (3500, 0.4, 0.5),
          (2000, 0.5, 0.5))
"""Steps of each run, the mean of its noise levels' logits, and the factor of its learning rates. After the first, high
noise, where a name decides what is drawn, is seen more often. Each run starts anew from the averaged weights of the one
before."""
BATCH = 64
LEARNING_RATE = 1.5e-3
MUON_LEARNING_RATE = 3e-3
NO_CAPTION = 0.1
"""Share of pictures shown without a caption, for classifier-free guidance."""
EMA_DECAY = 0.999
VARIANTS = 13
"""Captions of each picture: its name, and its name among words that mean nothing, as a trigger word will. With few of
them the model learns these few, and any other spoils what it draws."""
BARE = 0.4
"""Share of captions that are the name alone."""


def build() -> comfy.ldm.flux.model.Flux:
    """An untrained transformer: adaLN-zero as in DiT (Peebles and Xie 2022, arXiv:2212.09748)."""
    torch.manual_seed(SEED)
    flux = comfy.ldm.flux.model.Flux(dtype=torch.float32, operations=comfy.ops.disable_weight_init, **SHAPE)
    for name, module in flux.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if "mod" in name or name.startswith("final_layer"):
                nn.init.zeros_(module.weight)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.LayerNorm):  # blocks add in place to what they normalised
            module.forward = lambda x, m=module: F.layer_norm(x.clone(), m.normalized_shape, None, None, m.eps)
    return flux.requires_grad_(True)


def load(path: Path) -> comfy.ldm.flux.model.Flux:
    """The trained transformer, in fp32 and frozen."""
    flux = build()
    flux.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return flux.requires_grad_(False)


def captions(names: list[str], clip) -> list[list[str]]:
    """`VARIANTS` captions of each name, all within the text encoder's shortest length, so that they can be stacked.

    A word that means nothing is one or two pieces of CLIP's vocabulary that are in no name."""
    draw, known = random.Random(SEED), {word for name in names for word in caption(name).split()}
    vocabulary = {piece.removesuffix("</w>") for piece in clip.tokenizer.clip_l.inv_vocab.values()}
    pieces = sorted(p for p in vocabulary - known if p.isascii() and p.isalpha() and 3 <= len(p) <= 5)

    def word() -> str:
        return "".join(draw.choices(pieces, k=draw.randint(1, 2)))

    forms = [lambda n: f"{word()}, {n}", lambda n: f"{n}, {word()}", lambda n: f"{word()} {word()}, {n}",
             lambda n: f"a {word()} picture of {n}", lambda n: f"{word()} {n}"]

    def variant(name: str) -> str:
        text = draw.choice(forms)(name)
        return text if len(clip.tokenize(text)["t5xxl"][0]) == TOKENS else name

    return [[caption(n), *(variant(caption(n)) for _ in range(VARIANTS - 1))] for n in names]


@torch.no_grad()
def encode(clip, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Context (N, L, 128) and pooled (N, 128) through ComfyUI's CLIP; all texts are short enough for one length."""
    found = [clip.encode_from_tokens_scheduled(clip.tokenize(t))[0] for t in texts]
    return torch.cat([c for c, _ in found]).clone(), torch.cat([e["pooled_output"] for _, e in found]).clone()


@torch.no_grad()
def encode_pictures(vae: TAESD, data: Tensor) -> Tensor:
    """Pictures (N, 3, 128, 128) uint8 → latents as the transformer sees them."""
    return torch.cat([vae.taesd_encoder(part.float() / 255) for part in data.split(32)])


def optimizers(flux: nn.Module, steps: int, factor: float) -> list[tuple]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for the rest, both with a schedule."""
    matrices = [p for n, p in flux.named_parameters() if p.ndim == 2 and "blocks" in n]
    rest = [p for n, p in flux.named_parameters() if not (p.ndim == 2 and "blocks" in n)]
    made = [torch.optim.Muon(matrices, lr=factor * MUON_LEARNING_RATE, weight_decay=0.01,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=factor * LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)]

    def rate(step: int) -> float:
        return min(1.0, step / 200) * (1 - max(0.0, step / steps - 0.4) / 0.6) + 0.003

    return [(o, torch.optim.lr_scheduler.LambdaLR(o, rate)) for o in made]


def train(vae: TAESD, clip, out: Path) -> float:
    """Trains, writes the averaged weights to `out` in fp16, and gives the last loss."""
    names, data = pictures("noto")
    latents = encode_pictures(vae, data)
    began = time.time()
    context, pooled = encode(clip, [c for variants in captions(names, clip) for c in variants] + [""])
    print(f"{len(names)} pictures, {len(context)} texts encoded in {time.time() - began:.0f} s")
    flux, draw, running = build(), torch.Generator().manual_seed(SEED), 0.0
    comfy.model_management.in_training = True
    for steps, logit_mean, factor in CYCLES:
        running = _run(flux, latents, context, pooled, draw, steps, logit_mean, factor)
        save_file({k: v.half().contiguous() for k, v in flux.state_dict().items()}, out)
    comfy.model_management.in_training = False
    return running


def _run(flux: nn.Module, latents: Tensor, context: Tensor, pooled: Tensor, draw: torch.Generator, steps: int,
         logit_mean: float, factor: float) -> float:
    """One run; leaves the averaged weights in `flux`."""
    average = AveragedModel(flux, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    made, began, running = optimizers(flux, steps, factor), time.time(), 0.0
    for step in range(steps):
        chosen = torch.randint(0, len(latents), (BATCH,), generator=draw)
        variant = torch.randint(1, VARIANTS, (BATCH,), generator=draw)
        variant[torch.rand(BATCH, generator=draw) < BARE] = 0
        text = chosen * VARIANTS + variant
        text[torch.rand(BATCH, generator=draw) < NO_CAPTION] = len(context) - 1
        sigmas = torch.sigmoid(torch.randn(BATCH, generator=draw) + logit_mean)
        noise = torch.randn(latents[chosen].shape, generator=draw)
        guidance = torch.rand(BATCH, generator=draw) * 4 + 1  # it learns that guidance means nothing
        s = sigmas.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            pred = flux((1 - s) * latents[chosen] + s * noise, sigmas, context[text], pooled[text], guidance)
        loss = (pred.float() - (noise - latents[chosen])).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(flux.parameters(), 1.0)
        for optimizer, schedule in made:
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.update_parameters(flux)
        running += (loss.item() - running) / min(step + 1, 200)
        if (step + 1) % 250 == 0:
            print(f"transformer step {step + 1}/{steps}  loss {running:.4f}  {time.time() - began:.0f} s", flush=True)
    flux.load_state_dict(average.module.state_dict())
    return running
