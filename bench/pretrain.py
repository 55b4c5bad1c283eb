"""Makes what the demo needs, from scratch: VAE, transformer, judge, the demo's dataset and the held-out pictures.

    python dev.py bench pretrain [vae] [transformer] [judge] [pictures]

Without names: all four, in this order. Needs npm (the emoji are npm packages)."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [os.environ["COMFYUI_PATH"], str(ROOT)]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

from comfy.taesd.taesd import TAESD  # noqa: E402
from demo_model import emoji, judge, transformer, vae  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from trainer.comfy.demo_model import make_clip  # noqa: E402

WEIGHTS = ROOT / "nodes" / "demo_weights"
DATASET = ROOT / "example_workflows" / "demo_dataset"
HELD_OUT = ROOT / "bench" / "demo_model" / "held_out"
TRIGGER = "flatmoji"


def load_vae() -> TAESD:
    """The trained autoencoder, in fp32."""
    module = TAESD(latent_channels=vae.CHANNELS)
    module.load_state_dict(load_file(WEIGHTS / "vae.safetensors"))
    return module.float().requires_grad_(False)


def draw(style: str, names: list[str], folder: Path) -> None:
    """Pictures as PNG with a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    collection = emoji.icons(style)
    for name in names:
        emoji.draw(collection, name).quantize(128).save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.txt").write_text(f"{TRIGGER}, {emoji.caption(name)}\n", encoding="utf-8")


def main() -> None:
    wanted = sys.argv[1:] or ["vae", "transformer", "judge", "pictures"]
    train_names, held_out, _ = emoji.split()
    WEIGHTS.mkdir(exist_ok=True)
    began = time.time()
    if "vae" in wanted:
        vae.train(WEIGHTS / "vae.safetensors")
        for style in ("noto", "fluent"):
            found = vae.psnr(load_vae(), emoji.pictures(style, held_out)[1])
            print(f"VAE on {len(held_out)} held-out {style} pictures: {found:.2f} dB")
    if "transformer" in wanted:
        loss = transformer.train(load_vae(), make_clip(), WEIGHTS / "transformer.safetensors")
        steps = sum(steps for steps, *_ in transformer.CYCLES)
        print(f"transformer: seed {emoji.SEED}, {steps} steps, final loss {loss:.4f}")
    if "judge" in wanted:
        flux = transformer.load(WEIGHTS / "transformer.safetensors")
        found = judge.train(load_vae(), flux, transformer.encode(make_clip(), [""]))
        print(f"judge: accuracy on 128 real held-out pictures {found:.1%}")
    if "pictures" in wanted:
        draw("fluent", train_names, DATASET)
        draw("fluent", held_out, HELD_OUT / "fluent")
        draw("noto", held_out, HELD_OUT / "noto")
    print(f"{time.time() - began:.0f} s in all")


if __name__ == "__main__":
    main()
