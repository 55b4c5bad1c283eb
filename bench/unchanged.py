"""What must stay what it was when code only moves: `python dev.py bench unchanged COMMIT`.

Two real ComfyUI servers, one with the pack as it was at COMMIT, one with this checkout, do the same work side by side:

- one recipe for each choice that changes the weights trains 20 steps; the LoRAs must be equal bit for bit;
- jobs paused at COMMIT go on in this checkout to the bits they would have had without a pause;
- LoRA files written at COMMIT are read as a start and merged, with the same result;
- the example workflows saved at COMMIT load and run here.

Prints a line for each comparison, and exits with 1 if one differs."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one core for each server; sums depend on the number of threads

import torch  # noqa: E402
from comfyui import ROOT, Server  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

sys.path.insert(0, str(ROOT / "tests" / "support"))

from graphs import training, with_save  # noqa: E402

STEPS = 20
RECIPES: dict[str, dict] = {
    "as it is": {},
    **{f"adapter {name}": {"adapter": name, "rank": 8} for name in ("rsLoRA", "DoRA", "LoHa", "LoKr", "OFT")},
    **{f"init {name}": {"init": name} for name in ("orthogonal", "PiSSA")},
    **{f"target_modules {name}": {"target_modules": name} for name in ("attention and mlp", "attention")},
    "target_regex": {"target_regex": r"double_blocks\.0\..*"},
    "block_ranks": {"block_ranks": "double 0: 8, single: 2", "block_learning_rates": "double: 0.5, single 0: 2"},
    "lokr_factor": {"adapter": "LoKr", "lokr_factor": 4, "alpha": 2.0},
    "bf16": {"adapter_dtype": "bf16"},
    **{f"bf16 {name}": {"adapter_dtype": "bf16", "optimizer": name} for name in ("AdamW", "Adafactor")},
    "dropout": {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1},
    "OFT module_dropout": {"adapter": "OFT", "rank": 16, "module_dropout": 0.2},
    **{f"optimizer {name}": {"optimizer": name} for name in (
        "PagedAdamW8bit", "AdEMAMix8bit", "Lion8bit", "AdamW", "Adafactor", "CAME")},
    "optimizer Prodigy": {"optimizer": "Prodigy", "learning_rate": 1.0},
    "optimizer ScheduleFreeAdamW": {"optimizer": "ScheduleFreeAdamW", "lr_scheduler": "constant"},
    **{f"lr_scheduler {name}": {"lr_scheduler": name, "lr_warmup_steps": 3} for name in ("linear", "constant")},
    "lr_scheduler cosine_with_restarts": {"lr_scheduler": "cosine_with_restarts", "lr_cycles": 2},
    "lr_scheduler polynomial": {"lr_scheduler": "polynomial", "lr_power": 2.0},
    "lr_scheduler wsd": {"lr_scheduler": "wsd", "lr_decay_steps": 6},
    **{f"loss {name}": {"loss": name} for name in ("l1", "huber", "smooth_l1")},
    **{f"huber_schedule {name}": {"loss": "huber", "huber_schedule": name} for name in ("exponential", "snr")},
    **{f"timestep_sampling {name}": {"timestep_sampling": name} for name in ("uniform", "resolution_shift")},
    "timestep_sampling logit_normal": {"timestep_sampling": "logit_normal", "timestep_mean": 0.5, "timestep_std": 0.7},
    "timestep_sampling fixed_shift": {"timestep_sampling": "fixed_shift", "timestep_shift": 3.0},
    "stratified_timesteps": {"stratified_timesteps": True, "gradient_accumulation_steps": 2},
    "LoRA+ and EMA": {"lora_plus_ratio": 4.0, "ema_decay": 0.9, "alpha": 8.0},
    "captions": {"caption_dropout": 0.3, "caption_shuffle": "tags", "keep_tokens": 1, "caption_variants": 4},
    "sentences": {"caption_shuffle": "sentences"},
    "preservation": {"preservation_weight": 0.5, "preservation_class": "emoji"},
    "erase": {"erase": True, "learning_rate": -1e-4, "weight_decay": 0.0},
    "held_out": {"held_out": 4.0, "validate_every": 5, "result": "best"},
    "no gradient_checkpointing": {"gradient_checkpointing": False, "max_grad_norm": 0.0, "batch_size": 3},
    "extra_steps": {"extra_steps": 5, "save_every": 7, "guidance": 3.5},
}
PAUSED: dict[str, dict] = {
    "LoRA": {}, "DoRA, EMA, bf16": {"adapter": "DoRA", "ema_decay": 0.9, "adapter_dtype": "bf16"},
    "OFT, Prodigy": {"adapter": "OFT", "rank": 16, "optimizer": "Prodigy", "learning_rate": 1.0},
    "LoKr, Adafactor, held_out": {"adapter": "LoKr", "optimizer": "Adafactor", "held_out": 4.0, "validate_every": 10},
    "ScheduleFreeAdamW": {"optimizer": "ScheduleFreeAdamW", "lr_scheduler": "constant"},
}
STARTS = {"LoRA": "as it is", "DoRA": "adapter DoRA", "LoHa": "adapter LoHa", "LoKr": "adapter LoKr",
          "OFT": "adapter OFT"}
PAUSE_AT, PAUSED_STEPS = 12, 30


def checkout(commit: str, folder: Path) -> None:
    """The files of a commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def job_folder(server: Server, job: str) -> Path:
    return server.base / "user" / "default" / "livelora" / "jobs" / job


def newest(server: Server) -> str:
    return server.get("/livelora/jobs")[-1]["job"]


def checkpointed(seed: int, **changes) -> dict:
    """A training graph with the default of the node, unlike the tests' graphs."""
    return training(seed, **{"gradient_checkpointing": True, **changes})


def train(server: Server, seed: int, changes: dict, steps: int = STEPS) -> Path:
    """Trains to the end, saves in fp32 and gives the job's folder."""
    server.run(with_save(checkpointed(seed, steps=steps, **changes), f"lora_{seed}", "fp32"))
    return job_folder(server, newest(server))


def train_all(server: Server) -> dict[str, Path]:
    return {name: train(server, seed, changes) for seed, (name, changes) in enumerate(RECIPES.items())}


def uninterrupted(server: Server) -> dict[str, Path]:
    return {name: train(server, 1000 + seed, changes, PAUSED_STEPS) for seed, (name, changes) in
            enumerate(PAUSED.items())}


def wait_for(server: Server, job: str, states: tuple[str, ...], step: int = 0) -> dict:
    while True:
        facts = server.get(f"/livelora/jobs/{job}")
        if facts["state"] == "failed":
            raise RuntimeError(facts["message"])
        if facts["state"] in states and facts["step"] >= step:
            return facts
        time.sleep(0.05)


def pause_all(server: Server) -> dict[str, str]:
    """Starts each in the background and pauses it on the way."""
    jobs = {}
    for seed, (name, changes) in enumerate(PAUSED.items()):
        server.run(checkpointed(1000 + seed, steps=PAUSED_STEPS, mode="background", **changes))
        jobs[name] = newest(server)
        wait_for(server, jobs[name], ("training",), PAUSE_AT)
        server.post(f"/livelora/jobs/{jobs[name]}/pause")
        facts = wait_for(server, jobs[name], ("paused", "done"))
        assert facts["state"] == "paused", f"{name} was done before it could be paused"
    return jobs


def resume_all(server: Server, jobs: dict[str, str]) -> dict[str, Path]:
    for job in jobs.values():
        server.post(f"/livelora/jobs/{job}/resume")
        wait_for(server, job, ("done",))
    return {name: job_folder(server, job) for name, job in jobs.items()}


def start_all(server: Server, files: dict[str, Path]) -> dict[str, Path]:
    """Goes on from LoRA files, and merges two of them."""
    loras, found = server.base / "models" / "loras", {}
    for name, path in files.items():
        shutil.copy(path, loras / f"before {name}.safetensors")
    for seed, name in enumerate(files):
        found[f"start from {name}"] = train(server, 2000 + seed, {
            "adapter": name, "rank": 8, "start_from": f"before {name}.safetensors"}, 5)
    merged = {"merge": {"class_type": "LiveLoraMerge", "inputs": {
        "lora_a": "before LoRA.safetensors", "strength_a": 0.5, "lora_b": "lora_9.safetensors", "strength_b": -0.25,
        "rank": 3}},
        "save": {"class_type": "LiveLoraSave", "inputs": {"lora": ["merge", 0], "name": "merged", "dtype": "fp32"}}}
    server.run(merged)
    return {**found, "merged": loras / "merged.safetensors"}


def run_examples(server: Server, folder: Path) -> list[str]:
    """Those that need no downloads, with a few steps."""
    done = []
    for path in sorted(folder.glob("*.json")):
        graph = server.to_api(json.loads(path.read_text(encoding="utf-8")))
        if any(node["class_type"] == "UNETLoader" for node in graph.values()):
            continue
        for node in graph.values():
            if node["class_type"] == "LiveLoraTrain":
                node["inputs"] |= {"preset.steps": 3, "batch_size": 1}
            if node["class_type"] == "LiveLoraPreview":
                node["inputs"] |= {"every_n_steps": 3, "sampler_steps": 2, "width": 64, "height": 64}
        server.run(graph)
        done.append(path.stem)
    return done


def tensors(path: Path) -> dict[str, tuple]:
    """Names, types, shapes and bytes."""
    file = path / "lora.safetensors" if path.is_dir() else path
    return {name: (str(value.dtype), tuple(value.shape), value.flatten().view(torch.uint8).numpy().tobytes())
            for name, value in load_file(file).items()}


def compare(before: dict[str, Path], after: dict[str, Path], what: str) -> int:
    """Prints a line for each pair; how many differ."""
    different = 0
    for name, path in before.items():
        same = tensors(path) == tensors(after[name])
        different += not same
        print(f"{'same     ' if same else 'DIFFERENT'} {what}: {name}", flush=True)
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as both:
        home = Path(scratch)
        checkout(commit, home / "pack")
        old, new = Server(home / "before", pack=home / "pack"), Server(home / "after")
        with old, new:
            before, after = both.map(train_all, (old, new))
            different = compare(before, after, f"{STEPS} steps")
            files = {kind: before[recipe] / "lora.safetensors" for kind, recipe in STARTS.items()}
            starts = both.map(start_all, (old, new), (files, files))
            different += compare(*starts, "LoRA files of before")
            whole = uninterrupted(old)
        paused = Server(home / "paused", pack=home / "pack")
        with paused:
            jobs = pause_all(paused)
        link = home / "paused" / "custom_nodes" / "livelora"
        link.unlink()
        going_on = Server(home / "paused")
        with going_on:
            different += compare(whole, resume_all(going_on, jobs), "paused before, gone on here")
            ran = run_examples(going_on, home / "pack" / "example_workflows")
            print(f"ran       workflows of before: {', '.join(ran)}")
    print(f"{different} differ from {commit}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
