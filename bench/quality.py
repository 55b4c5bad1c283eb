"""How well each choice of a recipe trains: held-out loss, seconds a step, bytes of state, on the demo's task.

    python dev.py bench quality choices [--only adapter,optimizer] [--steps 50] [--seeds 3]
    python dev.py bench quality claims
    python dev.py bench quality tlora

`choices` trains the demo's 24 pictures with every adapter, optimizer, timestep sampling and so on: same steps, same
batches, several seeds. An adapter or optimizer takes its own best learning rate (by its first seed, in steps of
three times), because what suits one breaks another. `claims` asks after how many steps what is said to converge faster
has the default's final loss. `tlora` tries T-LoRA, which is not among the choices.

The loss is always the same: mean squared velocity error on 32 pictures of names that are not in the training set, at
five noise levels with fixed noise. Seconds are CPU seconds of one thread, which
other work on the machine hardly changes."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed import ROOT, start_comfyui

start_comfyui()
package = types.ModuleType("livelora")
package.__path__ = [str(ROOT)]
sys.modules["livelora"] = package

import torch  # noqa: E402
from livelora.trainer.comfy.demo_model import load_demo_model  # noqa: E402
from livelora.trainer.comfy.host import ComfyHost  # noqa: E402
from livelora.trainer.data.scan import Cut, scan  # noqa: E402
from livelora.trainer.jobs.lease import Lease  # noqa: E402
from livelora.trainer.lora.file import Lora  # noqa: E402
from livelora.trainer.lora.inject import adapted  # noqa: E402
from livelora.trainer.recipe.config import TrainConfig  # noqa: E402
from livelora.trainer.training import state  # noqa: E402
from livelora.trainer.training.preparation import Preparation, Prepared  # noqa: E402
from livelora.trainer.training.task import Task  # noqa: E402
from livelora.trainer.training.trainer import Trainer  # noqa: E402
from livelora.trainer.training.validation import HeldOut  # noqa: E402

HELD_OUT = ROOT / "bench" / "demo_model" / "held_out" / "fluent"
RECIPE: dict[str, Any] = {"steps": 50, "rank": 16, "learning_rate": 1e-3, "batch_size": 4}
TUNED = ("adapter", "start", "LoRA+", "optimizer")
"""Fields whose choices want learning rates of their own; the others have the default's."""
EVERY = 5
"""Steps between the points of a curve."""
CLAIMS: dict[str, dict[str, Any]] = {
    "default": {}, "resolution_shift": {"timestep_sampling": "resolution_shift"},
    "fixed_shift 3": {"timestep_sampling": "fixed_shift", "timestep_shift": 3.0},
    "LoRA+, ratio 16": {"lora_plus_ratio": 16.0},
    "LoRA+, ratio 16, learning rate ÷ 4": {"lora_plus_ratio": 16.0, "learning_rate": 1e-3 / 12},
}
"""What is said to converge faster."""
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "adapter": {
        "LoRA": {}, "rsLoRA": {"adapter": "rsLoRA"}, "DoRA": {"adapter": "DoRA"}, "LoHa": {"adapter": "LoHa"},
        "LoKr": {"adapter": "LoKr"}, "LoKr, whole, factor 4": {"adapter": "LoKr", "rank": 4096, "lokr_factor": 4},
        "OFT": {"adapter": "OFT"}, "LoRA, rank 4": {"rank": 4}, "LoRA, rank 64": {"rank": 64},
        "LoRA, alpha = rank / 2": {"alpha": 8.0},
    },
    "start": {"kaiming": {}, "orthogonal": {"init": "orthogonal"}, "PiSSA": {"init": "PiSSA"}},
    "layers": {"all": {}, "attention and mlp": {"target_modules": "attention and mlp"},
               "attention": {"target_modules": "attention"}},
    "LoRA+": {"ratio 1": {}, "ratio 4": {"lora_plus_ratio": 4.0}, "ratio 16": {"lora_plus_ratio": 16.0}},
    "optimizer": {
        "AdamW8bit": {}, "AdamW": {"optimizer": "AdamW"}, "AdEMAMix8bit": {"optimizer": "AdEMAMix8bit"},
        "Lion8bit": {"optimizer": "Lion8bit", "learning_rate": 3e-4},
        "Adafactor": {"optimizer": "Adafactor"}, "Prodigy": {"optimizer": "Prodigy", "learning_rate": 1.0},
        "ScheduleFreeAdamW": {"optimizer": "ScheduleFreeAdamW", "lr_scheduler": "constant"},
        "CAME": {"optimizer": "CAME"},
    },
    "schedule": {
        "cosine": {}, "linear": {"lr_scheduler": "linear"}, "constant": {"lr_scheduler": "constant"},
        "wsd": {"lr_scheduler": "wsd"}, "cosine, warmup 10": {"lr_warmup_steps": 10},
        "constant, EMA 0.99": {"lr_scheduler": "constant", "ema_decay": 0.99},
    },
    "timesteps": {
        "sigmoid": {}, "uniform": {"timestep_sampling": "uniform"},
        "resolution_shift": {"timestep_sampling": "resolution_shift"},
        "fixed_shift 3": {"timestep_sampling": "fixed_shift", "timestep_shift": 3.0},
        "logit_normal, mean -0.5": {"timestep_sampling": "logit_normal", "timestep_mean": -0.5},
        "sigmoid, stratified": {"stratified_timesteps": True},
    },
    "loss": {"l2": {}, "l1": {"loss": "l1"}, "huber": {"loss": "huber"}, "smooth_l1": {"loss": "smooth_l1"},
             "huber, snr": {"loss": "huber", "huber_schedule": "snr"}},
    "numbers": {"fp32": {}, "bf16": {"adapter_dtype": "bf16"}},
}
"""What is compared; the first of each is what we ship."""


@dataclass
class World:
    """The demo model and its pictures, encoded once."""

    task: Task
    prepared: Prepared
    held_out: HeldOut
    base: float = math.nan
    """The held-out loss without a LoRA."""

    def measure(self, trainer: Trainer, *, base: bool = False) -> float:
        """The held-out loss."""
        return statistics.fmean(loss for part in self.held_out.parts
                                for loss in self.held_out.losses(trainer, part, base=base))


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, World]:
    """Reads the command line, loads and encodes everything, and prints what all runs have in common."""
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    RECIPE["steps"] = options.steps
    world = _make_world()
    print(f"{RECIPE}\nheld-out loss without a LoRA: {world.base:.4f}", flush=True)
    return options, world


def _make_world() -> World:
    torch.set_num_threads(1)
    with torch.inference_mode():
        host = ComfyHost(*load_demo_model(ROOT / "nodes" / "demo_weights"))
    with tempfile.TemporaryDirectory() as scratch:
        train, held_out = (scan(folder, cut=Cut(resolution=128), trigger_word="flatmoji", scratch=Path(scratch))
                           for folder in (ROOT / "example_workflows" / "demo_dataset", HELD_OUT))
    task = Task.of(host, TrainConfig(**RECIPE), train, validation=held_out)
    prepared = Preparation(task, Lease().step, lambda _: None, lambda _: None).run()
    world = World(task, prepared, HeldOut(prepared.held_out[::2], batch_size=8))
    world.base = world.measure(Trainer(host, TrainConfig(**RECIPE), prepared.train), base=True)
    return world


@dataclass
class Run:
    """What one training gave."""

    losses: dict[int, float]
    """Held-out loss by step."""
    seconds: float
    """Median of a step."""
    state_bytes: int
    walls: dict[int, float]
    """Seconds of all steps until then."""

    @property
    def final(self) -> float:
        """The held-out loss after the last step."""
        return self.losses[max(self.losses)]

    def reached(self, goal: float) -> int | None:
        """The first step at which it was measured to be there."""
        return next((step for step, loss in sorted(self.losses.items()) if loss <= goal), None)


def train(world: World, config: TrainConfig, every: int = 0) -> Run:
    """Trains, and measures at the end, and on the way if `every` says so."""
    trainer = Trainer(world.task.host, config, world.prepared.train)
    seconds, losses, walls = [], {}, {}
    while trainer.steps_done < config.steps:
        began = time.process_time()
        trainer.step()
        seconds.append(time.process_time() - began)
        if (every and trainer.steps_done % every == 0) or trainer.steps_done == config.steps:
            losses[trainer.steps_done], walls[trainer.steps_done] = world.measure(trainer), sum(seconds)
    with tempfile.TemporaryDirectory() as folder:
        path = state.save(Path(folder), trainer, Lora({}, {}), keep=1)
        size = sum((path / f"{part}.safetensors").stat().st_size for part in state.PARTS)
    return Run(losses, statistics.median(seconds), size, walls)


def tune(world: World, recipe: dict[str, Any]) -> tuple[float, Run]:
    """The best learning rate, in steps of three times, and the first seed's run with it."""
    tried: dict[int, Run] = {}

    def loss(power: int) -> float:
        if power not in tried:
            rate = recipe["learning_rate"] * 3.0**power
            tried[power] = train(world, TrainConfig(**{**recipe, "learning_rate": rate}))
        return math.inf if math.isnan(tried[power].final) else tried[power].final

    best = 0
    while (near := min((best - 1, best, best + 1), key=loss)) != best:
        best = near
    return recipe["learning_rate"] * 3.0**best, tried[best]


def row(world: World, name: str, recipe: dict[str, Any], runs: list[Run], seeds: int) -> None:
    """Trains with the other seeds, and prints a line of a table."""
    runs += [train(world, TrainConfig(**{**recipe, "seed": seed})) for seed in range(len(runs), seeds)]
    finals = [run.final for run in runs]
    spread = f" ± {statistics.stdev(finals):.4f}" if len(finals) > 1 else ""
    mean, seconds = statistics.fmean(finals), statistics.median(run.seconds for run in runs)
    print(f"| {name} | {recipe['learning_rate']:.2g} | {mean:.4f}{spread} | {100 * (mean / world.base - 1):+.1f} % "
          f"| {seconds:.3f} | {runs[0].state_bytes / 1e6:.2f} |", flush=True)


def choices(world: World, only: list[str], seeds: int) -> None:
    """A table for each field."""
    rate, first = tune(world, RECIPE)
    RECIPE["learning_rate"] = rate
    for field, rows in CHOICES.items():
        if only and field not in only:
            continue
        print(f"\n| {field} | learning rate | held-out loss | change | s/step | state MB |\n"
              "| --- | --- | --- | --- | --- | --- |", flush=True)
        for name, change in rows.items():
            recipe, runs = {**RECIPE, **change}, [] if change else [first]
            if change and field in TUNED:
                recipe["learning_rate"], run = tune(world, recipe)
                runs.append(run)
            row(world, name, recipe, runs, seeds)


def claims(world: World, seeds: int) -> None:
    """After how many steps a choice has the loss with which the default ends."""
    recipe = {**RECIPE, "learning_rate": RECIPE["learning_rate"] / 3}  # slow enough to see a difference
    print("\n| choice | held-out loss at the end | steps to the default's end, of each seed |\n| --- | --- | --- |")
    goals: list[float] = []
    for name, change in CLAIMS.items():
        runs = [train(world, TrainConfig(**{**recipe, **change, "seed": seed}), every=EVERY) for seed in range(seeds)]
        goals = goals or [run.final for run in runs]
        reached = [run.reached(goal) for run, goal in zip(runs, goals, strict=True)]
        print(f"| {name} | {statistics.fmean(r.final for r in runs):.4f} "
              f"| {', '.join('never' if n is None else str(n) for n in reached)} |", flush=True)


class RankMask:
    """T-LoRA's mask (arXiv:2507.05964): at noise level σ only the first ⌊(1 − σ)(R − r)⌋ + r of R ranks count. A
    forward hook on every A."""

    def __init__(self, trainer: Trainer, smallest: int) -> None:
        self.on, self._smallest, self._sigmas = True, smallest, torch.zeros(1)
        for layer in adapted(trainer.view).values():
            layer.forward._run = layer.forward._pefts  # the fused forward asks no hook
            layer.lora_A["default"].register_forward_hook(self)
        self._predict, trainer._predict = trainer._predict, self._predict_at

    def _predict_at(self, latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor, texts: list) -> Any:
        self._sigmas = sigmas
        return self._predict(latents, noise, sigmas, texts)

    def __call__(self, module: Any, inputs: Any, down: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return down
        rank = down.shape[-1]
        kept = ((1 - self._sigmas) * (rank - self._smallest)).floor() + self._smallest
        mask = torch.arange(rank) < kept[:, None]
        return down * mask.view(len(mask), *[1] * (down.ndim - 2), rank)


def tlora(world: World, seeds: int) -> None:
    """Trained with T-LoRA's mask; measured with it, and without, as every LoRA loader uses the file."""
    print("\n| | held-out loss, ranks masked | all ranks, as loaded |\n| --- | --- | --- |")
    for smallest in (16, 8, 1):
        found = []
        for seed in range(seeds):
            config = TrainConfig(**{**RECIPE, "learning_rate": 3e-3, "seed": seed, "init": "orthogonal"})
            trainer = Trainer(world.task.host, config, world.prepared.train)
            mask = RankMask(trainer, smallest)
            for _ in range(config.steps):
                trainer.step()
            masked = world.measure(trainer)
            mask.on = False
            found.append((masked, world.measure(trainer)))
        name = "LoRA, orthogonal" if smallest == 16 else f"T-LoRA, at least {smallest} of 16 ranks"
        means = " | ".join(f"{statistics.fmean(losses):.4f}" for losses in zip(*found, strict=True))
        print(f"| {name} | {means} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["choices", "claims", "tlora"])
    parser.add_argument("--only", default="", help="fields of `choices`, with commas between")
    options, world = begin(parser)
    if options.what == "choices":
        choices(world, [name for name in options.only.split(",") if name], options.seeds)
    else:
        {"claims": claims, "tlora": tlora}[options.what](world, options.seeds)


if __name__ == "__main__":
    main()
