"""Images without captions, as a person meets them: told first, mended by LoRA Captioner, refused by LoRA Train."""

from __future__ import annotations

from demo_page import MINUTE
from PIL import Image

CAPTIONING = """(folder) => {
  const [data, captioner] = ["LiveLoraDataset", "LiveLoraCaption"].map((type) => LiteGraph.createNode(type));
  for (const [i, node] of [data, captioner].entries()) {
    node.pos = [100 + 400 * i, 100];
    app.graph.add(node);
  }
  const set = (node, name, value) => {
    const widget = node.widgets.find((w) => w.name === name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  };
  set(data, "folder", folder);
  set(captioner, "template", "a photo of {name}");
  set(captioner, "engine", "template");
  data.connect(0, captioner, 0);
}"""
TOLD = """() => [...document.querySelectorAll(".livelora.text")].map((element) =>
  [...element.querySelectorAll(":scope > div > div")].map((line) => line.textContent).join("\\n"))"""


def test_captions_that_are_missing_are_told_and_the_captioner_runs_by_itself(page, server):
    folder = server.base / "input" / "no_captions"
    folder.mkdir(exist_ok=True)
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    page.evaluate(CAPTIONING, "no_captions")
    shown = page.evaluate("app.graph.nodes[0].widgets.find((w) => w.name === 'missing_captions').options")
    assert not shown.get("advanced")
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_function(f"({TOLD})().filter(Boolean).length === 2", timeout=MINUTE)
    loader, captioner = page.evaluate(TOLD)
    assert ("• 2 without a caption, which LoRA Train refuses. Write one .txt file for each image (blue.png → "
            "blue.txt), let LoRA Captioner write them, or set missing_captions to 'use the trigger word' and fill in "
            "trigger_word.") in loader
    assert captioner == ("2 of 2 captions changed in memory only (dry run)\nblue.png: “” → “a photo of blue”\n"
                         "red.png: “” → “a photo of red”")
    page.wait_for_function("app.graph.nodes[0].imgs?.length || document.querySelector('[data-node-id] img')",
                           timeout=MINUTE)
    assert page.problems == []
