"""Seconds and memory of a training step: LiveLoRA beside core's TrainLoraNode and beside diffusers + PEFT.

    python dev.py bench speed [--rounds 3] [--steps 5]

The same work for all: a random FLUX.1 of 170 million parameters in fp32 on the CPU, 512 × 512 pixels (1,024 image and
256 text tokens), batch 1, LoRA of rank 16 on every Linear of every block, AdamW. Each run is a fresh process; the
engines take turns; figures are medians. Memory is the peak of the resident set while training, above what the same
process had when it had only loaded the model and the libraries."""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPE = dict(in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=1024, hidden_size=1024, mlp_ratio=4.0,
             num_heads=8, depth=2, depth_single_blocks=6, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
             qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
RANK, LATENT, TEXT_TOKENS = 16, 64, 256
EVERYTHING = 1e6
"""Megabytes that are always enough."""
TARGETS = (r"(transformer_blocks|single_transformer_blocks)\.\d+\.(attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|"
           r"add_v_proj|to_out\.0|to_add_out)|(ff|ff_context)\.net\.(0\.proj|2)|norm1\.linear|"
           r"norm1_context\.linear|norm\.linear|proj_mlp|proj_out)")
"""diffusers' names of the layers that get a LoRA: all of every block."""
CORE, PEFT = "core, defaults", "diffusers + peft"
ENGINES = ["livelora", CORE, "core, depth 2", "core, depth 3", PEFT, "livelora, planned", "livelora, all kept",
           "diffusers + peft, all kept"]
"""LiveLoRA computes every block twice, as many as the plan for the memory that core's defaults took has to, or none;
core has three depths of checkpointing; diffusers has gradient checkpointing or not."""


class Clock:
    """Times of the optimizer's steps, and the peak of the resident set between two moments."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def watch(self, optimizer):
        """The same optimizer; each of its steps is a tick."""
        optimizer.register_step_post_hook(lambda *_: self.ticks.append(time.perf_counter()))
        return optimizer

    def begin(self) -> None:
        """From here on counts."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
        self.before = _memory("VmRSS")
        self.ticks.append(time.perf_counter())

    def report(self) -> dict:
        """Seconds of each step after the first, which warms up, and MB above the start."""
        seconds = [b - a for a, b in zip(self.ticks[1:], self.ticks[2:], strict=False)]
        return {"seconds": seconds, "megabytes": (_memory("VmHWM") - self.before) / 1024}


def _memory(field: str) -> int:
    """A field of /proc/self/status in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def start_comfyui() -> None:
    """ComfyUI's modules, on the CPU."""
    sys.path[:0] = [os.environ["COMFYUI_PATH"]]
    from comfy.cli_args import args

    args.cpu = True


def start_package() -> None:
    """ComfyUI's modules and ours."""
    start_comfyui()
    import types

    package = types.ModuleType("livelora")
    package.__path__ = [str(ROOT)]
    sys.modules["livelora"] = package


def checkpoint(path: Path, shape: dict, dtype: str = "float32") -> None:
    """A FLUX.1 checkpoint with random weights."""
    start_comfyui()
    import comfy.ldm.flux.model
    import comfy.ops
    import torch
    from safetensors.torch import save_file

    flux = comfy.ldm.flux.model.Flux(dtype=torch.float32, operations=comfy.ops.manual_cast, **shape)
    draw, state = torch.Generator().manual_seed(0), {}
    for name, value in flux.state_dict().items():
        scale = 0.02 if value.ndim == 1 else value.shape[1] ** -0.5
        state[name] = torch.randn(value.shape, generator=draw) * scale + (1.0 if "norm" in name else 0.0)
    save_file({name: value.to(getattr(torch, dtype)) for name, value in state.items()}, path)


def conditioning(shape: dict = SHAPE, tokens: int = TEXT_TOKENS):
    """One text, as CLIPTextEncode would give it."""
    import torch

    draw = torch.Generator().manual_seed(1)
    return (torch.randn(1, tokens, shape["context_in_dim"], generator=draw),
            torch.randn(1, shape["vec_in_dim"], generator=draw))


def host_of(path: Path, **options):
    """Our host of a checkpoint, without text encoders: the conditioning is given."""
    import comfy.sd
    import torch
    from livelora.trainer.comfy.families.flux1 import FLUX1
    from livelora.trainer.comfy.host import ComfyHost

    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(path), model_options=options)
    host = ComfyHost.__new__(ComfyHost)
    host._patcher, host._base, host._live = patcher, patcher.model, patcher.model.diffusion_model
    host.device, host.dtype = patcher.load_device, patcher.model.get_dtype_inference()
    host.family = FLUX1
    host.load(0)
    return host


def example_of(shape: dict = SHAPE, latent: int = LATENT, tokens: int = TEXT_TOKENS):
    """A random picture and the text."""
    import torch
    from livelora.trainer.training.example import Example

    context, pooled = conditioning(shape, tokens)
    return Example(torch.randn(16, latent, latent), [{"cond": context, "pooled_output": pooled}])


def livelora(path: Path, steps: int, clock: Clock, checkpointing: str, megabytes: float) -> None:
    """Ours, with so much memory beside the weights, in a thread, as the job does it."""
    start_package()
    import bitsandbytes  # noqa: F401
    import diffusers.optimization  # noqa: F401
    import peft  # noqa: F401
    from livelora.trainer.model.memory import Memory
    from livelora.trainer.recipe.config import TrainConfig
    from livelora.trainer.training import trainer as loop

    host, example = host_of(path), example_of()
    host.memory = lambda: Memory(available=int(megabytes * 2**20), weights=0)
    config = TrainConfig(steps=steps, rank=RANK, optimizer="AdamW", learning_rate=1e-4,
                         gradient_checkpointing=checkpointing)
    make, loop.make_optimizer = loop.make_optimizer, lambda *a: clock.watch(make(*a))

    def train() -> None:
        clock.begin()
        trainer = loop.Trainer(host, config, [example])
        print(trainer.plan.sentence())
        for _ in range(steps):
            trainer.step()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(train).result()


def core_options() -> dict:
    """What TrainLoraNode is given beside model, data, steps and rank."""
    return {"batch_size": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-4, "optimizer": "AdamW",
            "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32",
            "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1,
            "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False}


def core(path: Path, steps: int, clock: Clock, depth: int) -> None:
    """ComfyUI's own node."""
    start_comfyui()
    import comfy.sd
    import comfy_extras.nodes_train as nodes_train
    import torch

    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(path))
        comfy.model_management.load_models_gpu([patcher])
    make, nodes_train._create_optimizer = nodes_train._create_optimizer, lambda *a: clock.watch(make(*a))
    context, pooled = conditioning()
    one = {**core_options(), "model": patcher, "latents": {"samples": torch.randn(1, 16, LATENT, LATENT)},
           "positive": [[context, {"pooled_output": pooled, "guidance": 1.0}]], "steps": steps, "rank": RANK,
           "checkpoint_depth": depth}
    clock.begin()
    nodes_train.TrainLoraNode.execute(**{name: [value] for name, value in one.items()})


def diffusers_peft(path: Path, steps: int, clock: Clock, checkpointing: bool) -> None:
    """As its training example does it: gradient checkpointing or not, LoRA on the same layers, AdamW."""
    import torch
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=SHAPE["depth"], num_single_layers=SHAPE["depth_single_blocks"],
        attention_head_dim=128, num_attention_heads=SHAPE["num_heads"], joint_attention_dim=SHAPE["context_in_dim"],
        pooled_projection_dim=SHAPE["vec_in_dim"], guidance_embeds=True, axes_dims_rope=tuple(SHAPE["axes_dim"]))
    model.requires_grad_(False)
    context, pooled = conditioning()
    tokens, edge = LATENT**2 // 4, LATENT // 2
    clock.begin()
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = clock.watch(torch.optim.AdamW(params, lr=1e-4))
    latents = torch.randn(1, tokens, 64)
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(edge).float(), torch.arange(edge).float())
    for _ in range(steps):
        noise, sigma = torch.randn_like(latents), torch.sigmoid(torch.randn(1))
        pred = model(hidden_states=(1 - sigma) * latents + sigma * noise, encoder_hidden_states=context,
                     pooled_projections=pooled, timestep=sigma, guidance=torch.ones(1), img_ids=grid,
                     txt_ids=torch.zeros(TEXT_TOKENS, 3)).sample
        (pred - (noise - latents)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def work(engine: str, path: Path, steps: int, megabytes: float) -> None:
    """One run in this process; prints its figures as JSON."""
    clock = Clock()
    if engine.startswith("livelora"):
        checkpointing = {"livelora": "all", "livelora, planned": "auto", "livelora, all kept": "none"}[engine]
        livelora(path, steps, clock, checkpointing, megabytes)
    elif engine.startswith("core"):
        core(path, steps, clock, depth=1 if engine == CORE else int(engine[-1]))
    else:
        diffusers_peft(path, steps, clock, checkpointing=engine == PEFT)
    print("FIGURES", json.dumps(clock.report()))


def measure(engine: str, path: Path, steps: int, megabytes: float) -> dict:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--engine", engine, "--checkpoint", str(path), "--steps", str(steps),
               "--megabytes", str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("FIGURES"):
            return json.loads(line.removeprefix("FIGURES"))
    raise RuntimeError(f"{engine} failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


def compare(rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Medians of every engine, the engines taking turns. Of a planned run the memory is what core's defaults took in
    the same round; of the others it is no matter."""
    runs: dict[str, list[dict]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flux.safetensors"
        subprocess.run([sys.executable, __file__, "--checkpoint", str(path)], check=True)
        for number in range(rounds):
            for engine in ENGINES:
                there = runs[CORE][number]["megabytes"] if engine == "livelora, planned" else EVERYTHING
                found = measure(engine, path, steps, there)
                runs[engine].append(found)
                print(f"round {number + 1}  {engine:26} {statistics.median(found['seconds']):6.2f} s/step "
                      f"{found['megabytes']:6.0f} MB", flush=True)
    return {engine: {"seconds": statistics.median(s for run in found for s in run["seconds"]),
                     "megabytes": statistics.median(run["megabytes"] for run in found)}
            for engine, found in runs.items()}


def report(medians: dict[str, dict[str, float]]) -> None:
    """A table for each way of ours, with the ratios that matter."""
    others = [engine for engine in ENGINES if not engine.startswith("livelora")]
    best = min((e for e in others if e.startswith("core")), key=lambda e: medians[e]["seconds"])
    for engine in (engine for engine in ENGINES if engine not in others):
        ours = medians[engine]
        print(f"\n{engine:26} {ours['seconds']:7.2f} {ours['megabytes']:7.0f}   speed   memory   "
              "(it ÷ the other, speed in steps/s)")
        for other in others:
            found = medians[other]
            speed, memory = found["seconds"] / ours["seconds"], ours["megabytes"] / found["megabytes"]
            print(f"{other:26} {found['seconds']:7.2f} {found['megabytes']:7.0f}  {speed:6.2f} {memory:8.2f}")
    print(f"core's best depth for speed: {best}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        work(options.engine, options.checkpoint, options.steps, options.megabytes)
    elif options.checkpoint:
        checkpoint(options.checkpoint, SHAPE)
    else:
        report(compare(options.rounds, options.steps))


if __name__ == "__main__":
    main()
