"""The demo: a LoRA is trained in a real ComfyUI, shown to have learned, and drawn. `python dev.py demo`.

It sends the example workflow "Train your first LoRA" through the server's HTTP API, with two changes: the loss of 64
held-out pictures is measured on the way, and so small a model goes without gradient checkpointing, which changes no
bit. Then ComfyUI's own KSampler draws prompts that were never trained on, with the LoRA file loaded by LoraLoader. Its
one argument is the folder to run in, which is emptied first."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [os.environ["COMFYUI_PATH"], str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfyui import Server  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

WORKFLOW = ROOT / "example_workflows" / "1 Train your first LoRA (demo, no downloads).json"
HELD_OUT = ROOT / "bench" / "demo_model" / "held_out"
COLUMNS = {"base": None, "LoRA 0.5": 0.5, "LoRA 1.0": 1.0}
ROWS = 8
SAMPLER = {"steps": 24, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "seed": 7}
STALLED = 600
"""Seconds without a change after which the demo gives up."""
OVERFIT = {"preset.learning_rate": 3e-3, "lr_scheduler": "constant", "preset.steps": 100, "validate_every": 25}
"""What not to do: too high a learning rate that never falls. Its curve rises from step 25 on."""


def held_out_captions() -> dict[str, str]:
    """Name → caption of the held-out pictures. None of the names is in the training set."""
    return {p.stem: p.read_text(encoding="utf-8").strip() for p in sorted((HELD_OUT / "fluent").glob("*.txt"))}


def training_graph(server: Server) -> tuple[dict, str]:
    """The example workflow as the server takes it, changed as the demo needs it, and the id of its train node."""
    graph = server.to_api(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    [train] = [n for n, node in graph.items() if node["class_type"] == "LiveLoraTrain"]
    [loader] = [node for node in graph.values() if node["class_type"] == "LiveLoraDataset"]
    graph["held-out"] = {"class_type": "LiveLoraDataset",
                         "inputs": {**loader["inputs"], "folder": str(HELD_OUT / "fluent")}}
    graph[train]["inputs"] |= {"validation": ["held-out", 0], "validate_every": 50}
    return graph, train


def train(server: Server, graph: dict) -> tuple[dict, dict]:
    """Runs a training graph, printing how it goes; gives the job's own account and the outputs by node. Raises
    TimeoutError if nothing moves any more."""
    known = {job["job"] for job in server.get("/livelora/jobs")}
    prompt_id, shown, told = server.queue(graph), "", time.monotonic()
    while not server.get(f"/history/{prompt_id}"):
        jobs = [job for job in server.get("/livelora/jobs") if job["job"] not in known]
        line, now = progress(jobs[-1]) if jobs else "loading", time.monotonic()
        if line != shown and (now - told > 2 or not shown):
            print(f"  {line}", flush=True)
            shown, told = line, now
        if now - told > STALLED:
            raise TimeoutError(f"Nothing has moved for {STALLED} s: {line}. The end of ComfyUI's log:\n"
                               f"{server.log()[-3000:]}")
        time.sleep(0.3)
    outputs = server.result(prompt_id)
    [job] = [job for job in server.get("/livelora/jobs") if job["job"] not in known]
    return server.get(f"/livelora/jobs/{job['job']}"), outputs


def progress(job: dict) -> str:
    """Step, loss and time left, in a line."""
    if job["state"] != "training" or job["loss"] is None:
        return f"{job['state']} {job['message']}".strip()
    held_out = f"  held-out {job['validation'][-1][1]:.3f}" if job["validation"] else ""
    left = f"  {job['eta']} s left" if job["eta"] is not None else ""
    return f"step {job['step']}/{job['steps']}  loss {job['loss']:.3f}{held_out}{left}"


def curve(validation: list) -> str:
    """A held-out curve as text, a line every few steps."""
    top = max(loss for _, loss in validation)
    chosen = validation[::max(1, len(validation) // 10)]
    if chosen[-1] != validation[-1]:
        chosen = [*chosen, validation[-1]]
    return "\n".join(f"  {step:5}  {loss:.3f}  {'█' * round(40 * loss / top)}" for step, loss in chosen)


def drawing_graph(lora: str, captions: dict[str, str], columns: dict[str, float | None]) -> dict:
    """For every caption and column: LoraLoader, KSampler, VAEDecode, SaveImage as `<name>/<column>`."""
    graph = {"model": {"class_type": "LiveLoraDemoModel", "inputs": {}},
             "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
             "none": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}}}
    for column, strength in columns.items():
        if strength is not None:
            graph[column] = {"class_type": "LoraLoader", "inputs": {
                "model": ["model", 0], "clip": ["model", 1], "lora_name": lora, "strength_model": strength,
                "strength_clip": strength}}
        source = ["model" if strength is None else column, 0]
        for name, caption in captions.items():
            text, drawn, decoded = f"{name} text", f"{name} {column}", f"{name} {column} decoded"
            graph[text] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": caption}}
            graph[drawn] = {"class_type": "KSampler", "inputs": {
                "model": source, "positive": [text, 0], "negative": ["none", 0], "latent_image": ["latent", 0],
                **SAMPLER}}
            graph[decoded] = {"class_type": "VAEDecode", "inputs": {"samples": [drawn, 0], "vae": ["model", 2]}}
            graph[f"{drawn} saved"] = {"class_type": "SaveImage", "inputs": {
                "images": [decoded, 0], "filename_prefix": f"demo/{column}/{name}"}}
    return graph


def draw(server: Server, lora: str, captions: dict[str, str], columns: dict[str, float | None]) -> dict:
    """Pictures by (column, name)."""
    outputs = server.run(drawing_graph(lora, captions, columns), seconds=1800)
    return {(column, name): Image.open(io.BytesIO(server.image(outputs[f"{name} {column} saved"]["images"][0])))
            for column in columns for name in captions}


def tensor(images: list[Image.Image]) -> torch.Tensor:
    """Pictures (N, 3, 128, 128), uint8."""
    return torch.from_numpy(np.stack([np.asarray(i.convert("RGB")) for i in images])).permute(0, 3, 1, 2).contiguous()


def table(pictures: dict, names: list[str], captions: dict[str, str]) -> Image.Image:
    """One picture: a row for each prompt, a column for base, LoRA 0.5 and LoRA 1.0."""
    font, edge, left, top = ImageFont.load_default(15), 128, 210, 34
    page = Image.new("RGB", (left + len(COLUMNS) * (edge + 8) + 8, top + len(names) * (edge + 8) + 8), "white")
    pen = ImageDraw.Draw(page)
    for x, column in enumerate(COLUMNS):
        pen.text((left + x * (edge + 8) + edge / 2, top / 2), column, "black", font, anchor="mm")
        for y, name in enumerate(names):
            page.paste(pictures[column, name], (left + x * (edge + 8), top + y * (edge + 8)))
    for y, name in enumerate(names):
        pen.multiline_text((12, top + y * (edge + 8) + edge / 2), captions[name].replace(", ", ",\n"), "black", font,
                           anchor="lm")
    return page


def judged(pictures: dict, names: list[str]) -> dict[str, float]:
    """The judge's accuracy on real held-out pictures, and the share it calls Fluent among base and LoRA samples."""
    sys.argv = sys.argv[:1]
    from comfy.cli_args import args

    args.cpu = True
    from demo_model import judge

    model = judge.load()
    real = {style: tensor([Image.open(HELD_OUT / style / f"{name}.png") for name in names])
            for style in ("noto", "fluent")}
    return {"accuracy": judge.accuracy(model, real["noto"], real["fluent"]),
            **{column: judge.share_fluent(model, tensor([pictures[column, name] for name in names]))
               for column in ("base", "LoRA 1.0")}}


def run(base: Path) -> dict:
    """The whole demo in the folder `base`; gives its figures."""
    captions = held_out_captions()
    with Server(base) as server:
        print(f"ComfyUI runs at {server.url}. Training “1 Train your first LoRA (demo, no downloads)”:")
        graph, node = training_graph(server)
        began = time.monotonic()
        job, outputs = train(server, graph)
        seconds = time.monotonic() - began
        [save] = [n for n, entry in graph.items() if entry["class_type"] == "LiveLoraSave"]
        lora = outputs[save]["text"][0].removeprefix("Saved ")
        print(f"Trained {job['step']} steps in {seconds:.0f} s, {len(captions)} held-out pictures measured on the way.")
        print("Drawing prompts that were never trained on, with KSampler and LoraLoader:")
        names = list(captions)
        pictures = draw(server, lora, captions, {"base": None, "LoRA 1.0": 1.0})
        pictures |= draw(server, lora, {name: captions[name] for name in names[:ROWS]}, {"LoRA 0.5": 0.5})
        print("What overfitting looks like: the same at a learning rate of 0.003 throughout")
        graph[node]["inputs"] |= OVERFIT
        del graph[node]["inputs"]["preview"]
        overfit, _ = train(server, {k: v for k, v in graph.items() if v["class_type"] != "LiveLoraSave"})
        listed = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
        log = server.log()
    picture = base / "output" / "demo.png"
    table(pictures, names[:ROWS], captions).save(picture)
    return {"job": job, "seconds": seconds, "lora": base / "models" / "loras" / lora, "picture": picture,
            "listed": lora in str(listed), "log": log, "overfit": overfit["validation"], **judged(pictures, names)}


def report(found: dict) -> None:
    """What a person wants to know of it."""
    job = found["job"]
    losses, validation = job["losses"], job["validation"]
    base, last = validation[0][1], validation[-1][1]
    part = max(1, len(losses) // 10)
    print(f"\nTraining loss: {np.mean(losses[:part]):.3f} → {np.mean(losses[-part:]):.3f} (first and last {part})")
    print(f"Held-out loss: {base:.3f} without the LoRA → {last:.3f} with it ({last / base - 1:+.0%}); lowest "
          f"{min(v for _, v in validation):.3f}")
    print(curve(validation))
    print(f"The same at learning rate 0.003: {found['overfit'][0][1]:.3f} → lowest "
          f"{min(v for _, v in found['overfit']):.3f} → {found['overfit'][-1][1]:.3f}. It overfits.")
    print(curve(found["overfit"]))
    print(f"A classifier that is right on {found['accuracy']:.1%} of the real held-out pictures calls Fluent:")
    print(f"  {found['base']:.0%} of the base model's pictures, {found['LoRA 1.0']:.0%} of those with the LoRA")
    print(f"The LoRA:    {found['lora']}")
    print(f"The picture: {found['picture']}")


def main() -> None:
    base = Path(sys.argv[1])
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    report(run(base))


if __name__ == "__main__":
    main()
