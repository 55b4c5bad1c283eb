"""What a step of the full-size FLUX.1-dev takes, as the plan predicts it and as an independent count finds it.

    python dev.py bench memory [--points 40]
    python dev.py bench memory --cards

No weights are needed and no GPU: tensors without values go through the real model code of ComfyUI, the real view, the
real `fetch`, PEFT's adapters and the real optimizer, all 57 blocks of them, and a dispatch mode adds up the storages
that live. The plan runs one block of each kind instead. Both count adapter, gradients, optimizer state, activations,
and weights that are cast for each use; neither counts the weights as they are loaded, the allocator's gaps, nor the
workspaces of the device's libraries. bitsandbytes' state is made by its own `init_state`, and not updated.

`--cards` prints what the plan does on cards of several sizes, for docs/guide.md."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import time
import types
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEV = dict(image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072,
           mlp_ratio=4.0, num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000,
           patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
"""The shape of FLUX.1-dev."""
GRID = {"weights": ("bf16", "fp8"), "pixels": (512, 768, 1024), "rank": (4, 16, 64), "batch": (1, 2),
        "kept": (0, 10, 30, 57), "optimizer": ("AdamW8bit", "AdamW")}
GIB = 2**30


@dataclass(frozen=True)
class Point:
    """One training."""

    weights: str
    pixels: int
    rank: int
    batch: int
    kept: int
    optimizer: str


def points(count: int) -> list[Point]:
    """So many points spread over the grid: each value of each axis comes equally often."""
    draw = random.Random(0)
    columns = [draw.sample(list(itertools.islice(itertools.cycle(values), count)), count) for values in GRID.values()]
    return [Point(*row) for row in zip(*columns, strict=True)]


def start() -> None:
    """ComfyUI's modules and ours."""
    sys.path[:0] = [os.environ["COMFYUI_PATH"]]
    from comfy.cli_args import args

    args.cpu = True
    package = types.ModuleType("livelora")
    package.__path__ = [str(ROOT)]
    sys.modules["livelora"] = package


def make_host(weights: str) -> Any:
    """The host of a FLUX.1-dev whose weights have no memory."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import torch
    from livelora.trainer.comfy.families.flux1 import FLUX1
    from livelora.trainer.comfy.host import ComfyHost

    config = comfy.supported_models.Flux(dict(DEV))
    stored = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[weights]
    config.set_inference_dtype(stored, torch.bfloat16)
    model = comfy.model_base.Flux(config, device=torch.device("meta"))
    cpu = torch.device("cpu")
    host = ComfyHost.__new__(ComfyHost)
    host._patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    host._base, host._live = model, model.diffusion_model
    host.family, host.device, host.dtype = FLUX1, cpu, torch.bfloat16
    return host


class Count:
    """Adds up the storages that live; made as a dispatch mode by `mode`."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, tensor: Any) -> None:
        """Counts a tensor's storage from here until it is gone."""
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            size = storage.nbytes()
            self.seen.add(storage)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size

    def mode(self) -> Any:
        """The mode that counts what operations make."""
        import torch
        from torch.utils import _pytree
        from torch.utils._python_dispatch import TorchDispatchMode

        count = self

        class Counting(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func is torch.ops.aten._local_scalar_dense.default:
                    return 1  # the optimizer reads how many steps it has taken
                made = func(*args, **(kwargs or {}))
                for value in _pytree.tree_leaves(made):
                    if torch.is_tensor(value):
                        count.add(value)
                return made

        return Counting()


def recipe(point: Point) -> Any:
    """The recipe of a point."""
    from livelora.trainer.recipe.config import TrainConfig

    return TrainConfig(steps=10, rank=point.rank, batch_size=point.batch, optimizer=point.optimizer)


def a_text() -> dict[str, Any]:
    """A caption of 256 tokens, as CLIPTextEncode gives it."""
    import torch

    return {"cond": torch.zeros(1, 256, DEV["context_in_dim"]), "pooled_output": torch.zeros(1, DEV["vec_in_dim"])}


def predicted(host: Any, point: Point) -> tuple[int, frozenset[int]]:
    """What the plan says, in bytes above the weights, and the blocks that it keeps."""
    from livelora.trainer.model.fitting import worth_most_first
    from livelora.trainer.training.planning import Stage, fixed

    stage = Stage(host, recipe(point), None, streamed=False)
    costs = stage.step((16, point.pixels // 8, point.pixels // 8), point.batch, a_text())
    kept = frozenset(worth_most_first(costs)[:point.kept])
    needs = fixed(stage.view, recipe(point))
    return needs.lasting + max(costs.peak(kept), needs.gradients + needs.update), kept


def counted(host: Any, point: Point, kept: frozenset[int]) -> int:
    """What a whole step takes, in bytes above the weights."""
    import torch
    from livelora.trainer.comfy.weights import fetch
    from livelora.trainer.lora.inject import inject
    from livelora.trainer.model.checkpointing import Blocks
    from livelora.trainer.model.view import build_view, copied_once
    from livelora.trainer.training.averaging import Averaged
    from livelora.trainer.training.optim import make_optimizer
    from livelora.trainer.training.targets import layout
    from livelora.trainer.training.update import whole_or_not_at_all
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

    config = recipe(point)
    view = build_view(host._live, fetch, torch.zeros(1, device="meta"))
    inject(view, config, layout(view, config, host.family))
    blocks, count = Blocks(host.family.blocks(view)), Count()
    blocks.kept = kept
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in host._live.modules():
            _give_device(module, count.seen.add)
        for module in view.modules():
            _give_device(module, lambda storage: None)
        params = [p for p in view.parameters() if p.requires_grad]
        for param in params:
            count.add(param)
        if point.optimizer == "AdamW8bit":
            import bitsandbytes.optim as bnb

            with unset_fake_temporarily():
                optimizer = bnb.AdamW8bit(params, lr=1e-4)
                optimizer.fill_qmap()
            with count.mode():
                for index, param in enumerate(params):
                    optimizer.init_state(optimizer.param_groups[0], param, 0, index)
        else:
            optimizer = make_optimizer([{"params": params, "lr": 1e-4}], config)
        with count.mode():
            for _ in range(2):  # in the second step the optimizer's state is there
                with copied_once(view):
                    _gradients(host, view, point)
                with whole_or_not_at_all(params, optimizer, Averaged(params, optimizer, config)):
                    if point.optimizer != "AdamW8bit":
                        optimizer.step()
                optimizer.zero_grad()
    return count.most


def _give_device(module: Any, known: Any) -> None:
    """Puts the parameters of a module, which have no memory, on the CPU, without values."""
    import torch

    for name, value in module._parameters.items():
        if value is not None:
            new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
            known(new.untyped_storage())
            module._parameters[name] = torch.nn.Parameter(new, requires_grad=value.requires_grad)


def _gradients(host: Any, view: Any, point: Point) -> None:
    """Forward and backward pass of one batch, through what `Trainer.losses` calls."""
    import torch

    shape = (point.batch, 16, point.pixels // 8, point.pixels // 8)
    latents, noise, sigmas = torch.randn(shape), torch.randn(shape), torch.rand(point.batch)
    texts = [{name: torch.empty_like(value) for name, value in a_text().items()}] * point.batch
    process = host.family.process
    pred = host.predict(view, process.add_noise(latents, noise, sigmas), sigmas, texts, 1.0)
    (pred - process.target(latents, noise)).square().mean().backward()


def main(count: int) -> None:
    """Prints a table, how far the ratios spread, and the worst point."""
    start()
    print("| weights | pixels | rank | batch | kept | optimizer | predicted GiB | counted GiB | ratio | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    ratios, seconds = [], []
    for point in points(count):
        began = time.perf_counter()
        expected, kept = predicted(make_host(point.weights), point)
        seconds.append(time.perf_counter() - began)
        found = counted(make_host(point.weights), point, kept)
        ratios.append(expected / found)
        print(f"| {point.weights} | {point.pixels}² | {point.rank} | {point.batch} | {point.kept} | "
              f"{point.optimizer} | {expected / GIB:.2f} | {found / GIB:.2f} | {ratios[-1]:.3f} | "
              f"{seconds[-1]:.1f} |",
              flush=True)
    worst, point = max(zip(ratios, points(count), strict=True), key=lambda pair: abs(pair[0] - 1))
    print(f"\npredicted ÷ counted: {min(ratios):.4f} to {max(ratios):.4f}, median {statistics.median(ratios):.4f}; "
          f"worst {worst:.4f} ({point}); a prediction takes {statistics.median(seconds):.1f} s (median)")


def cards() -> None:
    """Prints what the plan does on cards of several sizes."""
    start()
    from livelora.trainer.model.fitting import DoesNotFit
    from livelora.trainer.training.planning import plan_for

    sizes = (8, 10, 12, 16, 24, 32)
    print("| weights | pixels | rank | " + " | ".join(f"{size} GB" for size in sizes) + " |")
    print("| --- " * (3 + len(sizes)) + "|")
    for weights, pixels, rank in itertools.product(("fp8", "bf16"), (512, 768, 1024), (16, 64)):
        host, cells = make_host(weights), []
        point = Point(weights, pixels, rank, 1, 0, "AdamW8bit")
        for size in sizes:
            try:
                cells.append(_in_words(plan_for(host, recipe(point), {(16, pixels // 8, pixels // 8)}, a_text(),
                                                memory=host.memory().on_card(size))))
            except DoesNotFit:
                cells.append("does not fit")
        print(f"| {weights} | {pixels}² | {rank} | " + " | ".join(cells) + " |", flush=True)


def _in_words(plan: Any) -> str:
    [kept], rung = plan.kept.values(), plan.rung
    if rung.streamed:
        return f"{(plan.memory.weights - plan.weights) / GIB:.1f} GiB of weights fetched"
    twice = plan.blocks - len(kept)
    how = f"{twice} of {plan.blocks} blocks twice" if twice else "nothing twice"
    return how + (", inputs in RAM" if rung.in_ram else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--cards", action="store_true")
    given = parser.parse_args()
    cards() if given.cards else main(given.points)
