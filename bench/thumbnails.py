"""Takes the example workflows' thumbnails: each is run in a real browser and photographed.

    python dev.py bench thumbnails

The FLUX.1 workflow is photographed only: its model is not here, but for empty files of that name, without which ComfyUI
frames the loaders in red. Needs Chromium."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

from browser import browser, change_settings, new_tab, open_comfyui
from comfyui import Server
from PIL import Image
from playwright.sync_api import Page

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
SETTINGS = {"Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
WIDTH = 960
FLUX = ["diffusion_models/flux1-dev", "text_encoders/clip_l", "text_encoders/t5xxl_fp16", "vae/ae"]
FIT = """() => {
  const all = app.graph.nodes.map((n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
  const [left, top] = [0, 1].map((i) => Math.min(...all.map((b) => b[i])) - 20);
  const [right, bottom] = [2, 3].map((i) => Math.max(...all.map((b) => b[i])) + 20);
  const ds = app.canvas.ds, scale = Math.min(1500 / (right - left), 1000 / (bottom - top), 1);
  ds.scale = scale; ds.offset = [-left + 110 / scale, -top + 90 / scale];
  app.canvas.setDirty(true, true);
  return {x: 110, y: 90, width: (right - left) * scale, height: (bottom - top) * scale};
}"""


def photograph(page: Page, path: Path) -> None:
    """The graph alone, as a JPEG."""
    clip = page.evaluate(FIT)
    page.wait_for_timeout(1500)
    shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS).save(path, quality=85)
    print(path, f"{path.stat().st_size // 1000} kB")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, browser() as running:
        for name in FLUX:
            path = Path(folder, "models", f"{name}.safetensors")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        change_settings(server, SETTINGS)
        page = new_tab(running, server, 1720, 1120)
        open_comfyui(page, server)
        for path in sorted(FOLDER.glob("*.json")):
            workflow = json.loads(path.read_text(encoding="utf-8"))
            page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
            if "Flux" not in path.stem:
                done = len(server.get("/history"))
                page.evaluate("app.queuePrompt(0, 1)")
                while len(server.get("/history")) == done:
                    page.wait_for_timeout(1000)
            photograph(page, path.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
