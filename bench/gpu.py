"""FLUX.1-dev at full size on a GPU: memory and seconds of a step, on cards of every size, beside others.

    python dev.py bench gpu --json gpu.json
    COMFYUI_PATH=… python bench/gpu.py --json gpu.json [--minutes 8] [--tiny]

It needs PyTorch, PEFT and a ComfyUI, no network and no files: weights are random and made on the device (11.9 billion,
bf16 and fp8). An engine whose packages are missing is told as a row; so is one that runs out of memory, or of time:
the whole ends within `--minutes`, whatever happens. The JSON is written after each row. `--tiny` does all of it with a
tiny model, also on the CPU: it shows that this script works, its figures mean nothing.

A smaller card is made of the one that is there by a limit on what PyTorch may allocate, and by telling ComfyUI of as
much free memory as such a card has. What the limit leaves out: the CUDA context and the desktop, some 0.5 GB, and that
a smaller card is slower. One picture, 256 text tokens, LoRA of rank 16 on every Linear of every block, AdamW. The
others recompute every block, ours what its own plan says.

Seconds are the median of the steps after the first. The floor is the FLOP of a forward and a backward without
recomputation and without the adapter (about 1 % more), counted, divided by the rate of a large bf16 matrix product on
this very card; MFU is the floor divided by the seconds."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import statistics
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from speed import RANK, ROOT, TARGETS, core_options

GIB = 2**30
FULL = dict(in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
            num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
            qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
TINY = {**FULL, "vec_in_dim": 128, "context_in_dim": 128, "hidden_size": 256, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1}
TEXT_TOKENS = 256
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
CARDS = (None, 24, 16, 12, 10, 8)
"""GiB; None is the card as it is."""
STEPS = 4
"""Steps of a row, the first one included."""
SPARE, WATCH = 20, 5
"""Seconds before the end after which no row begins, and after which a row that does not end is given up."""


@dataclass
class Row:
    """One engine on one card at one size, and what came of it."""

    weights: str
    card: int | None
    pixels: int
    engine: str
    note: str = "no time"
    seconds: list[float] = field(default_factory=list)
    """Of each step, the first one included."""
    peak: float = 0.0
    """GiB allocated at most."""
    reserved: float = 0.0
    """GiB that PyTorch held at most."""
    predicted: float | None = None
    """GiB that ours expected to be allocated at most."""
    floor: float = 0.0

    @property
    def step(self) -> float | None:
        """Seconds of a step; of the first one, if there was no other."""
        return statistics.median(self.seconds[1:] or self.seconds) if self.seconds else None


class Enough(Exception):
    """Ends an engine: it has made its steps, or its time is up."""


class Clock:
    """Times the steps of a row and ends it."""

    def __init__(self, row: Row, until: float) -> None:
        self._row, self._until, self._last = row, until, time.perf_counter()

    def tick(self, *_: Any) -> None:
        """Is called after each step of the optimizer. Raises Enough."""
        synchronize()
        now = time.perf_counter()
        self._row.seconds.append(now - self._last)
        self._last = now
        if len(self._row.seconds) == STEPS or (now > self._until and len(self._row.seconds) > 1):
            raise Enough

    def begin(self) -> None:
        """Is called when everything is set up."""
        synchronize()
        self._last = time.perf_counter()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class World:
    """What all engines share: the device, the shape, and ComfyUI's model in one format at a time."""

    def __init__(self, tiny: bool) -> None:
        self.patcher: Any
        self.shape: dict[str, Any] = TINY if tiny else FULL
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.draw = torch.Generator(self.device).manual_seed(0)
        self.weights, self.patcher = "", None

    def load(self, weights: str) -> None:
        """Makes ComfyUI's model, in RAM, as Load Diffusion Model leaves it."""
        import comfy.model_patcher
        import comfy.supported_models

        self.weights, self.patcher = weights, None
        self.empty()
        config = comfy.supported_models.Flux({"image_model": "flux", **self.shape})
        config.set_inference_dtype(DTYPES[weights], None if weights == "bf16" else torch.bfloat16)
        model = config.get_model({}, "")
        self.fill(model)
        patcher = comfy.model_patcher.ModelPatcher(model, self.device, torch.device("cpu"))
        # Core's node asks for a copy, which it would read from a file. It trains on the same weights here.
        patcher.cached_patcher_init = (lambda **_: patcher, ())
        self.patcher = patcher

    def fill(self, model: torch.nn.Module) -> None:
        """Draws weights that keep activations near one."""
        for name, param in model.named_parameters():
            scale = 0.02 if param.ndim == 1 else param.shape[1] ** -0.5
            values = torch.randn(param.shape, generator=self.draw, device=self.device) * scale
            param.data.copy_((values + ("norm" in name and param.ndim == 1)).to(param.dtype))

    def text(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Returns an encoded caption, as CLIPTextEncode would give it."""
        return (torch.randn(1, TEXT_TOKENS, self.shape["context_in_dim"], device=device),
                torch.randn(1, self.shape["vec_in_dim"], device=device))

    def empty(self) -> None:
        """Takes everything off the device."""
        import comfy.model_management as mm

        mm.unload_all_models()
        self.tidy()

    def tidy(self) -> None:
        """Forgets what the last row has left; ComfyUI's model stays where it is."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def card(size: int | None) -> Iterator[None]:
    """While inside, PyTorch allocates no more than a card of `size` GiB has, and ComfyUI is told so."""
    if size is None or not torch.cuda.is_available():
        yield
        return
    real, limit = torch.cuda.mem_get_info, size * GIB
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.get_device_properties(0).total_memory))
    torch.cuda.mem_get_info = lambda *_: (max(0, limit - torch.cuda.memory_reserved()), limit)
    try:
        yield
    finally:
        torch.cuda.mem_get_info = real
        torch.cuda.set_per_process_memory_fraction(1.0)


def predicted(trainer: Any) -> float:
    """Returns the GiB that the trainer's own plan expects to be allocated at most."""
    return (trainer.plan.weights + trainer.plan.work) / GIB


def livelora(world: World, row: Row, clock: Clock) -> None:
    """Ours, as a job drives it."""
    from livelora.trainer.comfy.families.flux1 import FLUX1
    from livelora.trainer.comfy.host import ComfyHost
    from livelora.trainer.recipe.config import TrainConfig
    from livelora.trainer.training import trainer as loop
    from livelora.trainer.training.example import Example

    host = ComfyHost.__new__(ComfyHost)  # no text encoders here: the conditioning is given
    base = world.patcher.model
    host._patcher, host._base, host._live = world.patcher, base, base.diffusion_model
    host.family, host.device, host.dtype = FLUX1, world.device, base.get_dtype_inference()
    context, pooled = world.text()
    latents = torch.randn(16, row.pixels // 8, row.pixels // 8)
    config = TrainConfig(steps=STEPS, rank=RANK, optimizer="AdamW", learning_rate=1e-4, lr_scheduler="wsd")
    trainer = loop.Trainer(host, config, [Example(latents, [{"cond": context, "pooled_output": pooled}])])
    row.predicted = predicted(trainer)
    clock.begin()
    while True:
        trainer.step()
        clock.tick()


def core(world: World, row: Row, clock: Clock) -> None:
    """ComfyUI's own node, with its fastest depth of checkpointing; on a smaller card with its offloading."""
    import comfy_extras.nodes_train as nodes_train

    context, pooled = world.text()
    one = {**core_options(), "model": world.patcher, "training_dtype": "bf16", "steps": STEPS, "rank": RANK,
           "latents": {"samples": torch.randn(1, 16, row.pixels // 8, row.pixels // 8)}, "checkpoint_depth": 3,
           "positive": [[context, {"pooled_output": pooled, "guidance": 1.0}]], "offloading": row.card is not None}
    make = nodes_train._create_optimizer

    def watched(*given: Any) -> torch.optim.Optimizer:
        optimizer = make(*given)
        optimizer.register_step_post_hook(clock.tick)
        return optimizer

    nodes_train._create_optimizer = watched
    try:
        clock.begin()
        nodes_train.TrainLoraNode.execute(**{name: [value] for name, value in one.items()})
    finally:
        nodes_train._create_optimizer = make


def diffusers_peft(world: World, row: Row, clock: Clock) -> None:
    """As its training example does it: gradient checkpointing, LoRA on the same layers, AdamW; for fp8 with its
    layerwise casting. It has all weights on the device."""
    from peft import LoraConfig

    model = diffusers_model(world, row.weights)
    model.enable_gradient_checkpointing()
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    params = [p for p in model.parameters() if p.requires_grad]
    for param in params:
        param.data = param.data.float()
    optimizer = torch.optim.AdamW(params, lr=1e-4)
    device, edge = world.device, row.pixels // 16
    context, pooled = (t.bfloat16() for t in world.text(device))
    latents = torch.randn(1, edge**2, 64, device=device)
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(edge).float(), torch.arange(edge).float()).to(device)
    clock.begin()
    while True:
        noise, sigma = torch.randn_like(latents), torch.sigmoid(torch.randn(1, device=device))
        with torch.autocast(device.type, torch.bfloat16):
            pred = model(hidden_states=((1 - sigma) * latents + sigma * noise).bfloat16(), timestep=sigma,
                         encoder_hidden_states=context, pooled_projections=pooled, img_ids=grid,
                         guidance=torch.ones(1, device=device),
                         txt_ids=torch.zeros(TEXT_TOKENS, 3, device=device)).sample
        (pred.float() - (noise - latents)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()


def diffusers_model(world: World, weights: str) -> Any:
    """diffusers' transformer on the device, filled there."""
    from diffusers import FluxTransformer2DModel

    shape = world.shape
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=shape["depth"], num_single_layers=shape["depth_single_blocks"],
            attention_head_dim=128, num_attention_heads=shape["num_heads"], guidance_embeds=True,
            joint_attention_dim=shape["context_in_dim"], pooled_projection_dim=shape["vec_in_dim"],
            axes_dims_rope=tuple(shape["axes_dim"])).to(torch.bfloat16).requires_grad_(False)
    if weights == "fp8":  # from the start, so that the peak is not that of bf16
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "norm" not in name and name != "proj_out":
                module.to(DTYPES[weights])
    model.to_empty(device=world.device)
    world.fill(model)
    if weights == "fp8":
        model.enable_layerwise_casting(storage_dtype=DTYPES[weights], compute_dtype=torch.bfloat16)
    return model


ENGINES: dict[str, Callable[[World, Row, Clock], None]] = {
    "LiveLoRA": livelora, "diffusers + PEFT": diffusers_peft, "TrainLoraNode, depth 3": core}


def run(world: World, row: Row, until: float) -> None:
    """Fills in a row."""
    if row.card and torch.cuda.is_available() and row.card * GIB > torch.cuda.get_device_properties(0).total_memory:
        row.note = "a larger card than this one"
        return
    world.tidy()
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with card(row.card):
        row.note = _outcome(functools.partial(ENGINES[row.engine], world, row, Clock(row, until)))
    if world.device.type == "cuda":
        row.peak, row.reserved = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB


def _outcome(work: Callable[[], None]) -> str:
    """Returns what came of it, in words; empty if it went well. The error itself would keep tensors alive."""
    try:
        work()
    except Enough:
        return ""
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as err:
        return f"{type(err).__name__}: {str(err).splitlines()[0][:120] if str(err) else ''}"
    return ""


def flop(shape: dict[str, Any], pixels: int) -> int:
    """Counts the FLOP of a forward and of the backward to the inputs, by running both on tensors without values."""
    import comfy.ldm.flux.model
    import comfy.ops
    from livelora.trainer.comfy.families.flux1 import FLUX1
    from livelora.trainer.comfy.weights import fetch
    from livelora.trainer.model.checkpointing import Blocks
    from livelora.trainer.model.view import build_view
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        live = comfy.ldm.flux.model.Flux(**shape, dtype=torch.bfloat16, operations=comfy.ops.manual_cast)
        view = build_view(live, fetch, torch.zeros(1))
        blocks = Blocks(FLUX1.blocks(view))
        blocks.kept = range(len(blocks.all))
        x = torch.randn(1, 16, pixels // 8, pixels // 8, dtype=torch.bfloat16, requires_grad=True)
        context = torch.randn(1, TEXT_TOKENS, shape["context_in_dim"], dtype=torch.bfloat16)
        pooled, one = torch.randn(1, shape["vec_in_dim"], dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)
        view(x, one, context=context, y=pooled, guidance=one, transformer_options=FLUX1.options(view)).sum().backward()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, edge: int) -> float:
    """Measures the FLOP/s of a square bf16 matrix product on random values, the best of three times ten."""
    a, b = (torch.randn(edge, edge, device=device).bfloat16() for _ in range(2))
    times = []
    for _ in range(4):
        synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        synchronize()
        times.append(time.perf_counter() - began)
    return 10 * 2 * edge**3 / min(times[1:])


class Report:
    """All rows, as a Markdown table and as JSON."""

    def __init__(self, world: World, rows: list[Row], path: Path | None, tiny: bool) -> None:
        self.rows, self._path = rows, path
        device = torch.cuda.get_device_name() if world.device.type == "cuda" else "CPU"
        self.facts = {"device": device, "torch": torch.__version__, "tiny": tiny}

    def write(self) -> None:
        """Writes the JSON, if a path is given."""
        if self._path:
            rows = [{**asdict(row), "step": row.step} for row in self.rows]
            self._path.write_text(json.dumps({**self.facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")

    def print(self) -> None:
        """Prints the table."""
        print(f"\n{self.facts}\n")
        columns = ("weights", "card GiB", "pixels", "engine", "predicted GiB", "peak GiB", "reserved GiB", "s/step",
                   "floor s", "MFU", "")
        print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
        for row in self.rows:
            step = "" if row.step is None else f"{row.step:.3f}"
            share = f"{row.floor / row.step:.0%}" if row.step else ""
            expected = "" if row.predicted is None else f"{row.predicted:.2f}"
            note = row.note or ("the first step alone" if len(row.seconds) == 1 else "")
            cells = (row.weights, row.card or "all", f"{row.pixels}²", row.engine, expected, f"{row.peak:.2f}",
                     f"{row.reserved:.2f}", step, f"{row.floor:.3f}", share, note)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure(world: World, report: Report, end: float) -> None:
    """Fills in the rows, format by format and engine by engine. Each engine has its share of the time that is left, and
    so has each row of it."""
    slots = [(weights, engine) for weights in DTYPES for engine in ENGINES]
    for place, (weights, engine) in enumerate(slots):
        rows = [row for row in report.rows if (row.weights, row.engine) == (weights, engine)]
        slot_end = time.monotonic() + (end - time.monotonic()) / (len(slots) - place)
        for number, row in enumerate(rows):
            left = slot_end - time.monotonic()
            if left <= 0:
                break
            if world.weights != weights:
                world.load(weights)
            elif number == 0 or row.card != rows[number - 1].card or rows[number - 1].note:
                world.empty()
            run(world, row, time.perf_counter() + left / (len(rows) - number))
            report.write()
            print(f"{weights} {row.card or 'all'} GiB {row.pixels}² {engine}: {row.step} s, {row.peak:.2f} GiB "
                  f"{row.note}", flush=True)


def begin(tiny: bool) -> World:
    """Makes ComfyUI and LiveLoRA importable."""
    if not torch.cuda.is_available() and not tiny:
        sys.exit("No GPU that PyTorch can use. --tiny shows on the CPU that this script works.")
    if "livelora" not in sys.modules:
        sys.path.insert(0, os.environ["COMFYUI_PATH"])
        from comfy.cli_args import args

        args.cpu = not torch.cuda.is_available()
        package = types.ModuleType("livelora")
        package.__path__ = [str(ROOT)]
        sys.modules["livelora"] = package
    return World(tiny)


def main(arguments: list[str] | None = None) -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, also on the CPU")
    options = parser.parse_args(arguments)
    world = begin(options.tiny)
    rate, sizes = matmul_rate(world.device, 256 if options.tiny else 8192), (128,) if options.tiny else (512, 1024)
    floors = {pixels: flop(world.shape, pixels) / rate for pixels in sizes}
    cards = CARDS[::5] if options.tiny else CARDS
    rows = [Row(weights, size, pixels, engine, floor=floors[pixels]) for weights in DTYPES for engine in ENGINES
            for size in cards for pixels in sizes]
    report = Report(world, rows, options.json, options.tiny)
    report.facts |= {"matmul TFLOP/s": rate / 1e12, "TFLOP": {n: floors[n] * rate / 1e12 for n in sizes}}
    end = began + 60 * options.minutes - SPARE

    def give_up() -> None:
        report.write()
        report.print()
        os._exit(0)

    watch = threading.Timer(end + SPARE - WATCH - time.monotonic(), give_up)  # for a step that never ends
    watch.daemon = True
    watch.start()
    try:
        measure(world, report, end)
    finally:
        watch.cancel()
    report.write()
    report.print()


if __name__ == "__main__":
    main()
