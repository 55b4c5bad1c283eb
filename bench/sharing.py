"""A job in the background and prompts on one device: what each loses by the other. On two cores about five minutes.

    python dev.py bench sharing [--steps 80]

Three real ComfyUI servers, one after the other, each with a base folder of its own. One trains a job and draws nothing.
One draws and never trains. One does both: it draws the same prompts while it trains the same job, all at once, then as
many one by one, each at another moment of a step. Three kinds of prompt take turns: the demo model; the same through
LoraLoader with the first server's LoRA; a second copy of the model from a file, at another size, from a picture.

A prompt's wait is from its POST, or from the end of the prompt before it if that is later, to ComfyUI's
execution_success. The added wait is that less the median of its kind on the server that never trains. Exits with 1 if a
prompt fails, a picture or a weight differs by a bit, a prompt waits longer than one step and half a second more, or the
job takes steps between prompts that are queued at once.

OpenMP's idle threads sleep on all three (OMP_WAIT_POLICY). By default libgomp lets them spin until a second thread of
the process computes too, then hardly (its manual, GOMP_SPINCOUNT): on idle cores prompts of a model as small as this
one would seem to wait for the lease, and next to other programs spinning ones take five times as long."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui import ROOT, Failed, Server
from safetensors import deserialize

PROMPTS, ALLOWED = 20, 0.5
KINDS = ("demo model", "LoraLoader", "other model, from a picture")
NAMES = ("red apple", "owl", "rocket", "blue heart", "sun behind cloud", "fish", "mushroom")
SAMPLER = {"steps": 12, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
LORA, MODEL, VAE, PICTURE = "shared.safetensors", "second.safetensors", "second_vae.safetensors", "picture.png"


def training_graph(mode: str, steps: int) -> dict:
    """A job on the demo's pictures, and Save LoRA, which is passed over while there is no LoRA yet."""
    return {
        "model": _node("LiveLoraDemoModel"),
        "data": _node("LiveLoraDataset", folder="demo_dataset", resolution=128, trigger_word="flatmoji",
                      missing_captions="refuse", bad_images="refuse"),
        "train": _node("LiveLoraTrain", model=["model", 0], clip=["model", 1], vae=["model", 2], dataset=["data", 0],
                       preset="style", **{"preset.steps": steps, "preset.rank": 16, "preset.learning_rate": 1e-3},
                       seed=0, mode=mode, batch_size=24, save_every=20),
        "save": _node("LiveLoraSave", lora=["train", 1], name=LORA.removesuffix(".safetensors"), dtype="fp16"),
    }


def drawing_graph(kind: str, seed: int) -> dict:
    """A prompt of a kind. No two seeds share a picture, so that nothing of it comes from ComfyUI's cache."""
    model: list[Any] = ["demo", 0]
    clip, vae, latent, changes = ["demo", 1], ["demo", 2], ["empty", 0], {}
    graph = {"demo": _node("LiveLoraDemoModel"),
             "empty": _node("EmptyLatentImage", width=128, height=128, batch_size=1)}
    if kind == KINDS[1]:
        graph["lora"] = _node("LoraLoader", model=model, clip=clip, lora_name=LORA, strength_model=1.0,
                              strength_clip=1.0)
        model, clip = ["lora", 0], ["lora", 1]
    elif kind == KINDS[2]:
        graph |= {"second": _node("UNETLoader", unet_name=MODEL, weight_dtype="default"),
                  "vae": _node("VAELoader", vae_name=VAE), "picture": _node("LoadImage", image=PICTURE),
                  "scaled": _node("ImageScale", image=["picture", 0], upscale_method="bilinear", width=192, height=160,
                                  crop="disabled"),
                  "encoded": _node("VAEEncode", pixels=["scaled", 0], vae=["vae", 0])}
        model, vae, latent, changes = ["second", 0], ["vae", 0], ["encoded", 0], {"denoise": 0.7}
    return graph | {
        "text": _node("CLIPTextEncode", clip=clip, text=f"flatmoji, {NAMES[seed % len(NAMES)]}"),
        "none": _node("CLIPTextEncode", clip=clip, text=""),
        "drawn": _node("KSampler", model=model, positive=["text", 0], negative=["none", 0], latent_image=latent,
                       seed=seed, **(SAMPLER | changes)),
        "decoded": _node("VAEDecode", samples=["drawn", 0], vae=vae),
        "saved": _node("SaveImage", images=["decoded", 0], filename_prefix=f"drawn_{seed:03}"),
    }


def _node(kind: str, **inputs: Any) -> dict:
    return {"class_type": kind, "inputs": inputs}


@dataclass(frozen=True)
class Prompt:
    """How a prompt went. `seconds`: from its POST, or the end of the prompt before it if that is later, to its end."""

    kind: str
    seconds: float
    ended: float
    picture: bytes | None
    error: str


def furnish(base: Path, lora: Path | None) -> Path:
    """A base folder with the files that the prompts load."""
    source = ROOT / "nodes" / "demo_weights"
    files = {f"models/diffusion_models/{MODEL}": source / "transformer.safetensors",
             f"models/vae/{VAE}": source / "vae.safetensors",
             f"input/{PICTURE}": ROOT / "example_workflows" / "demo_dataset" / "bone.png",
             **({f"models/loras/{LORA}": lora} if lora else {})}
    for name, file in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, base / name)
    return base


def finished(server: Server, kind: str, prompt_id: str, begin: float) -> Prompt:
    """Waits for a prompt that could begin at `begin`, seconds since 1970."""
    try:
        outputs, error = server.result(prompt_id), ""
    except Failed as err:
        outputs, error = {}, err.message
    messages = dict(server.get(f"/history/{prompt_id}")[prompt_id]["status"]["messages"])
    ended = max(facts["timestamp"] for facts in messages.values()) / 1000  # execution_success is the last one
    picture = server.image(outputs["saved"]["images"][0]) if "saved" in outputs else None
    return Prompt(kind, ended - begin, ended, picture, error)


def one_by_one(server: Server, job: str | None = None) -> list[Prompt]:
    """Each prompt when the one before it has ended; with a job, when training goes on, at any moment of a step."""
    done = []
    for index in range(PROMPTS):
        if job:
            meet_a_step(server, job, index * 0.618 % 1)  # evenly spread
        kind, begin = KINDS[index % len(KINDS)], time.time()
        done.append(finished(server, kind, server.queue(drawing_graph(kind, index)), begin))
    return done


def reach(server: Server, job: str, step: int, seconds: float = 120) -> None:
    """Waits until a job has taken so many steps; ends the bench if it does not come to it."""
    end = time.monotonic() + seconds
    while (facts := server.get(f"/livelora/jobs/{job}"))["step"] < step:
        if facts["state"] not in ("queued", "preparing", "training"):
            sys.exit(f"Prompts are left and the job is {facts['state']}: {facts['message']} Give it more --steps.")
        if time.monotonic() > end:
            sys.exit(f"The job is at step {facts['step']} and did not come to {step} in {seconds} s.")
        time.sleep(0.02)


def meet_a_step(server: Server, job: str, part: float) -> None:
    """Waits until the job has taken a step, then for `part` of another."""
    reach(server, job, server.get(f"/livelora/jobs/{job}")["step"] + 1)
    time.sleep(part * statistics.median(step_seconds(server, job)))


def at_once(server: Server) -> list[Prompt]:
    """All prompts queued together."""
    sent, done, ended = [], [], 0.0
    for index in range(PROMPTS):
        kind, posted = KINDS[index % len(KINDS)], time.time()
        sent.append((kind, server.queue(drawing_graph(kind, PROMPTS + index)), posted))
    for kind, prompt_id, posted in sent:
        done.append(finished(server, kind, prompt_id, max(posted, ended)))
        ended = done[-1].ended
    return done


def step_seconds(server: Server, job: str) -> list[float]:
    """How long each step of a job took, by its metrics.jsonl."""
    [path] = (server.base / "user").rglob(f"{job}/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line["seconds"] for line in lines if "seconds" in line]


def trained(server: Server, job: str) -> dict[str, dict]:
    """The job's LoRA when it is done: name → dtype, shape and bytes of each tensor."""
    while (facts := server.get(f"/livelora/jobs/{job}"))["state"] != "done":
        if facts["state"] in ("failed", "stopped", "paused"):
            sys.exit(f"The job is {facts['state']}: {facts['message']}\n{server.log()[-3000:]}")
        time.sleep(0.3)
    [path] = (server.base / "user").rglob(f"{job}/lora.safetensors")
    return dict(deserialize(path.read_bytes()))


@dataclass(frozen=True)
class Found:
    """`alone` and `shared`: prompts one by one and at once, without and with training."""

    alone: tuple[list[Prompt], list[Prompt]]
    shared: tuple[list[Prompt], list[Prompt]]
    seconds: list[float]
    """Of every step since the first prompt."""
    meanwhile: int
    """Steps that were taken while prompts were queued at once."""
    undisturbed: dict[str, dict]
    disturbed: dict[str, dict]


def train_alone(base: Path, count: int) -> dict[str, dict]:
    """The LoRA of the job with nobody else on the server."""
    with Server(furnish(base, None)) as server:
        server.run(training_graph("wait", count))
        return trained(server, server.get("/livelora/jobs")[-1]["job"])


def draw_alone(base: Path, lora: Path) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts on a server that never trains."""
    with Server(furnish(base, lora)) as server:
        warm_up(server)
        return one_by_one(server), at_once(server)


def share(base: Path, lora: Path, count: int) -> dict[str, Any]:
    """What `Found` holds of the server that does both."""
    with Server(furnish(base, lora)) as server:
        warm_up(server)
        server.run(training_graph("background", count))
        job = server.get("/livelora/jobs")[-1]["job"]
        reach(server, job, before := 3)
        together = at_once(server)
        meanwhile = server.get(f"/livelora/jobs/{job}")["step"] - before
        single = one_by_one(server, job)
        disturbed = trained(server, job)
        return {"shared": (single, together), "meanwhile": meanwhile, "disturbed": disturbed,
                "seconds": step_seconds(server, job)[before:]}


def warm_up(server: Server) -> None:
    """One prompt of each kind, so that what only a first one costs is on no side."""
    for index, kind in enumerate(KINDS):
        server.run(drawing_graph(kind, 2 * PROMPTS + index))


def measure(base: Path, count: int) -> Found:
    """Everything, in one folder."""
    print(f"{count} steps undisturbed", flush=True)
    undisturbed, lora = train_alone(base / "train", count), base / "train" / "models" / "loras" / LORA
    print(f"{PROMPTS} prompts one by one and {PROMPTS} at once, without training", flush=True)
    alone = draw_alone(base / "draw", lora)
    print("The same while the job trains", flush=True)
    return Found(alone=alone, undisturbed=undisturbed, **share(base / "share", lora, count))


def added(found: Found, queued: int, kinds: Sequence[str] = KINDS) -> list[float]:
    """Seconds that training added to the wait of each prompt. `queued`: 0 one by one, 1 at once."""
    usual = medians(found)
    return [p.seconds - usual[p.kind] for p in found.shared[queued] if p.kind in kinds]


def medians(found: Found) -> dict[str, float]:
    """Seconds of a prompt of each kind where nothing trains."""
    prompts = [p for part in found.alone for p in part]
    return {kind: statistics.median(p.seconds for p in prompts if p.kind == kind) for kind in KINDS}


def table(found: Found) -> None:
    """A row for each kind and way to queue."""
    print("\n| prompts | seconds without training | queued | number | added wait: median | worst |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for kind, usual in medians(found).items():
        for queued, how in enumerate(("one by one", "at once")):
            more = added(found, queued, [kind])
            print(f"| {kind} | {usual:.2f} | {how} | {len(more)} | {statistics.median(more):.2f} | {max(more):.2f} |")
    alone, shared = (sum(p.seconds for p in part) for part in (found.alone[1], found.shared[1]))
    print(f"\nAll {PROMPTS} at once: {alone:.2f} s without training, {shared:.2f} s with it.\n")


def verdicts(found: Found) -> bool:
    """The claims, each with what was found. True if all hold."""
    pairs = [(a, b) for one, two in zip(found.alone, found.shared, strict=True) for a, b in zip(one, two, strict=True)]
    errors = [one.error or two.error for one, two in pairs if one.error or two.error]
    same = sum(a.picture is not None and a.picture == b.picture for a, b in pairs)
    worst, step = max(added(found, 0) + added(found, 1)), max(found.seconds)
    ours, theirs = found.disturbed, found.undisturbed
    equal = sum(ours.get(name) == tensor for name, tensor in theirs.items())
    claims = {
        f"{len(pairs) - len(errors)} of {len(pairs)} prompts succeeded {'; '.join(errors)}": not errors,
        f"{same} of {len(pairs)} pictures are byte-identical": same == len(pairs),
        f"worst added wait {worst:.2f} s; steps took {statistics.median(found.seconds):.2f} s, at most {step:.2f} s":
            worst <= step + ALLOWED,
        # the one under way, and one that may have ended before we asked
        f"steps while {PROMPTS} prompts were queued at once: {found.meanwhile}": found.meanwhile <= 2,
        f"{equal} of {len(theirs)} tensors of the LoRA are bit-identical": equal == len(theirs) == len(ours) > 0,
    }
    for claim, holds in claims.items():
        print(f"{'ok    ' if holds else 'NOT OK'} {claim}")
    return all(claims.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=80, help="of the job; it must outlast the prompts")
    options = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "passive"  # for the servers
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.steps)
    table(found)
    sys.exit(0 if verdicts(found) else 1)


if __name__ == "__main__":
    main()
