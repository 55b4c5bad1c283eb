"""One recipe, three engines: LiveLoRA, ComfyUI's TrainLoraNode, and a plain loop over diffusers and PEFT.

    python dev.py bench engines [--steps 50] [--seeds 3]

Each trains the demo's 24 pictures; each LoRA is then loaded by ComfyUI's loader and measured on pictures of names that
are not among them, as bench/quality.py does. The question is after how many of its steps, and of its seconds, LiveLoRA
has the others' final loss. Seconds are CPU seconds of one thread, from the first line of setting up to the last
step."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from quality import EVERY, RECIPE, Run, World, begin, train  # first: it makes `livelora` importable

# isort: split
import torch
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.comfy.host import ComfyHost, with_lora
from livelora.trainer.lora.reading import read
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.trainer import Trainer


def measure(world: World, lora: dict) -> float:
    """The held-out loss of a LoRA, loaded by ComfyUI."""
    host = world.task.host
    with torch.inference_mode():
        loaded = ComfyHost(with_lora(host._patcher, lora), host._clip, host._vae)
    return world.measure(Trainer(loaded, TrainConfig(**RECIPE), world.prepared.train), base=True)


def compare(world: World, seeds: int) -> None:
    """Ours first, with its curve; then a line for each run of the others, and one for their mean beside our mean."""
    recipe = {**RECIPE, "optimizer": "AdamW", "lr_scheduler": "constant"}
    ours = [own(world, {**recipe, "seed": seed}) for seed in range(seeds)]
    mean = Run({step: statistics.fmean(run.losses[step] for run in ours) for step in ours[0].losses}, 0, 0,
               {step: statistics.fmean(run.walls[step] for run in ours) for step in ours[0].walls})
    print("\n| engine | seed | held-out loss | seconds | LiveLoRA has it after | in seconds |\n"
          "| --- | --- | --- | --- | --- | --- |", flush=True)
    for seed, run in [*enumerate(ours), ("mean", mean)]:
        print(f"| LiveLoRA | {seed} | {run.final:.4f} | {run.walls[max(run.walls)]:.1f} | | |", flush=True)
    for name, engine in ENGINES.items():
        runs = []
        for seed in range(seeds):
            lora, wall = engine(world, recipe, seed)
            runs.append((measure(world, lora), wall))
            line(name, str(seed), *runs[-1], ours[seed])
        line(name, "mean", *(statistics.fmean(values) for values in zip(*runs, strict=True)), mean)


def own(world: World, recipe: dict[str, Any]) -> Run:
    """Ours; setting up counts."""
    began = time.process_time()
    Trainer(world.task.host, TrainConfig(**recipe), world.prepared.train)
    setup = time.process_time() - began
    run = train(world, TrainConfig(**recipe), every=EVERY)
    run.walls = {step: setup + wall for step, wall in run.walls.items()}
    return run


def line(name: str, seed: str, loss: float, wall: float, ours: Run) -> None:
    """A row of the table."""
    step = ours.reached(loss)
    after = "never | -" if step is None else f"step {step} of {max(ours.losses)} | {ours.walls[step]:.1f}"
    print(f"| {name} | {seed} | {loss:.4f} | {wall:.1f} | {after} |", flush=True)


def core(world: World, recipe: dict[str, Any], seed: int, **change: Any) -> tuple[dict, float]:
    """ComfyUI's TrainLoraNode. It always trains every layer, alpha too, and has no schedule and no clipping."""
    import comfy_extras.nodes_train as nodes_train
    from speed import core_options

    texts = [e.texts[0] for e in world.prepared.train]
    latents = world.task.host._base.process_latent_out(torch.stack([e.latents for e in world.prepared.train]))
    one = {**core_options(), "model": world.task.host._patcher, "latents": {"samples": latents}, "seed": seed,
           "steps": recipe["steps"], "learning_rate": recipe["learning_rate"], "rank": recipe["rank"],
           "batch_size": recipe["batch_size"], **change}
    positive = [[t["cond"].clone(), {"pooled_output": t["pooled_output"].clone(), "guidance": 1.0}] for t in texts]
    began = time.process_time()
    done = nodes_train.TrainLoraNode.execute(**{name: [value] for name, value in one.items()}, positive=[positive])
    return done.args[0], time.process_time() - began


def plain(world: World, recipe: dict[str, Any], seed: int) -> tuple[dict, float]:
    """diffusers and PEFT, written as their training example is: one loop, LoRA on the same layers."""
    from peft import LoraConfig, get_peft_model_state_dict
    from speed import TARGETS

    world.task.host.load(0)  # the live weights still hold the LoRA that was measured last
    model, examples = as_diffusers(world.task.host._live), world.prepared.train
    draw = torch.Generator().manual_seed(seed)
    began = time.process_time()
    torch.manual_seed(seed)
    model.enable_gradient_checkpointing()
    model.add_adapter(LoraConfig(r=recipe["rank"], lora_alpha=recipe["rank"], target_modules=TARGETS))
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=recipe["learning_rate"], weight_decay=0.01)
    order: list[int] = []
    for _ in range(recipe["steps"]):
        if len(order) < recipe["batch_size"]:
            order = torch.randperm(len(examples), generator=draw).tolist()
        chosen, order = [examples[i] for i in order[:recipe["batch_size"]]], order[recipe["batch_size"]:]
        latents = torch.stack([pack(e.latents) for e in chosen])
        noise = torch.randn(latents.shape, generator=draw)
        sigmas = torch.sigmoid(torch.randn(len(chosen), generator=draw))
        noisy = (1 - sigmas[:, None, None]) * latents + sigmas[:, None, None] * noise
        context = torch.cat([e.texts[0]["cond"] for e in chosen])
        pooled = torch.cat([e.texts[0]["pooled_output"] for e in chosen])
        edge = torch.arange(chosen[0].latents.shape[-1] // 2).float()
        pred = model(hidden_states=noisy, encoder_hidden_states=context, pooled_projections=pooled, timestep=sigmas,
                     guidance=torch.ones(len(chosen)) if model.config.guidance_embeds else None,
                     img_ids=torch.cartesian_prod(torch.zeros(1), edge, edge),
                     txt_ids=torch.zeros(context.shape[1], 3)).sample
        (pred - (noise - latents)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wall = time.process_time() - began
    found = {f"transformer.{name}": value.detach() for name, value in get_peft_model_state_dict(model).items()}
    return read(found, FAMILIES), wall


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(C, H, W) → tokens (H W / 4, 4 C), as the Flux pipeline has them."""
    return latents.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1)


def as_diffusers(live: Any) -> Any:
    """diffusers' transformer with the weights of ComfyUI's, by ComfyUI's own table of names."""
    import comfy.utils
    from diffusers import FluxTransformer2DModel

    p, weights = live.params, {name: value.clone() for name, value in live.state_dict().items()}
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=p.depth, num_single_layers=p.depth_single_blocks,
        attention_head_dim=128, num_attention_heads=p.num_heads, joint_attention_dim=p.context_in_dim,
        pooled_projection_dim=p.vec_in_dim, guidance_embeds=p.guidance_embed, axes_dims_rope=tuple(p.axes_dim))
    shape = {"depth": p.depth, "depth_single_blocks": p.depth_single_blocks, "hidden_size": p.hidden_size}
    table = comfy.utils.flux_to_diffusers(shape)
    converted = {}
    for name in model.state_dict():
        ours, rows, change = (table[name], None, None) if isinstance(table[name], str) else (*table[name], None)[:3]
        value = weights[ours] if rows is None else weights[ours].narrow(*rows)
        converted[name] = change(value) if change else value
    model.load_state_dict(converted)
    return model.float().requires_grad_(False)


ENGINES = {
    "TrainLoraNode": core,
    "TrainLoraNode, 4 × the learning rate": lambda w, r, s: core(w, {**r, "learning_rate": 4 * r["learning_rate"]}, s),
    "TrainLoraNode, batch 1, accumulated": lambda w, r, s: core(w, r, s, batch_size=1,
                                                                grad_accumulation_steps=r["batch_size"]),
    "diffusers + PEFT": plain,
}


def main() -> None:
    options, world = begin(argparse.ArgumentParser(description=__doc__.split("\n")[0]))
    compare(world, options.seeds)


if __name__ == "__main__":
    main()
