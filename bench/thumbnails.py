"""Makes the example workflows' thumbnails of what they make: each is run on a real server, that for FLUX.1 up to its
dataset, because its model is not here.

    python dev.py bench thumbnails

1: each prompt before training, early and at the end, from above. 2: images with their captions. 3: the picture drawn
with the new LoRA."""

from __future__ import annotations

import io
import json
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

from comfyui import ROOT, Server
from PIL import Image, ImageOps

FOLDER = ROOT / "example_workflows"
SIZE = 900, 600
MARGIN = 24
AN_HOUR = 3600.0
DATASET = {"class_type": "LiveLoraDataset", "inputs": {
    "folder": "demo_dataset", "resolution": 128, "trigger_word": "flatmoji", "missing_captions": "refuse",
    "bad_images": "refuse"}}


def drawn(server: Server, graph: dict[str, Any], node: str) -> Image.Image:
    """The pictures that a Save Image node of a graph saves, side by side."""
    saved = server.run(graph, AN_HOUR)[node]["images"]
    return side_by_side([[picture(server.get("/view?" + urllib.parse.urlencode(about))) for about in saved]])


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def side_by_side(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures of one size, row by row."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(rows[0]) * width, len(rows) * height), "white")
    for y, row in enumerate(rows):
        for x, one in enumerate(row):
            sheet.paste(one, (x * width, y * height))
    return sheet


def saved(source: dict[str, Any], output: int = 0) -> dict[str, Any]:
    """A node with Save Image behind it."""
    return {"source": source, "image": {"class_type": "SaveImage", "inputs": {
        "images": ["source", output], "filename_prefix": "thumbnail"}}}


def first_lora(server: Server, workflow: dict[str, Any]) -> Image.Image:
    server.run(workflow, AN_HOUR)
    job = server.get("/livelora/jobs")[-1]["job"]
    names = server.get(f"/livelora/jobs/{job}")["samples"]
    steps = sorted({name.split("_")[1] for name in names})
    rows = [[name for name in names if name.split("_")[1] == step] for step in (steps[0], steps[2], steps[-1])]
    pictures = [[picture(server.get(f"/livelora/jobs/{job}/samples/{name}")) for name in row] for row in rows]
    return side_by_side(pictures)


def flux_lora(server: Server, workflow: dict[str, Any]) -> Image.Image:
    sheet = drawn(server, saved(DATASET, 4), "image")
    return sheet.crop((0, 0, sheet.width, sheet.height // 2))


def use_it(server: Server, workflow: dict[str, Any]) -> Image.Image:
    [node] = [name for name, entry in workflow.items() if entry["class_type"] == "SaveImage"]
    return drawn(server, workflow, node)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        for path, make in zip(sorted(FOLDER.glob("*.json")), (first_lora, flux_lora, use_it), strict=True):
            made = make(server, server.to_api(json.loads(path.read_text(encoding="utf-8"))))
            page = Image.new("RGB", SIZE, "white")
            inner = ImageOps.contain(made, (SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN), Image.Resampling.LANCZOS)
            page.paste(inner, ((SIZE[0] - inner.width) // 2, (SIZE[1] - inner.height) // 2))
            page.save(path.with_suffix(".jpg"), quality=88)
            print(path.with_suffix(".jpg"), f"{path.with_suffix('.jpg').stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
