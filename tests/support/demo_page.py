"""ComfyUI's page with the demo workflow in it, as a person sees and uses it."""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path

from comfyui import ROOT
from playwright.sync_api import Page

DEMO = ROOT / "example_workflows" / "1 Train your first LoRA (demo, no downloads).json"
MINUTE = 60_000
"""In milliseconds. This machine may be busy."""
TOAST = ".p-toast-detail, [data-testid=toast]"
"""A message in the corner, before frontend 1.58 and since."""
TRAIN = "const node = app.graph.nodes.find((n) => n.comfyClass === 'LiveLoraTrain');"
SIZES_STAND = """() => new Promise((done) => {
  let last = "", frames = 0;
  const look = () => {
    const sizes = JSON.stringify(app.graph.nodes.map((n) => [...n.size]));
    frames = sizes === last ? frames + 1 : 0;
    last = sizes;
    if (frames === 20) done();
    else requestAnimationFrame(look);
  };
  look();
})"""
"""Ends once no node has grown for a while."""
_SEEDS = count(100)
_SET = """([type, values]) => {
  const node = app.graph.nodes.find((n) => n.comfyClass === type);
  for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value;
}"""
_INTO_VIEW = f"""() => {{
  {TRAIN}
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [300 - node.pos[0], 500 - node.pos[1] - node.size[1]];
  app.canvas.setDirty(true, true);
}}"""


def new_seed() -> int:
    """The same recipe would be the same, finished job."""
    return next(_SEEDS)


def load(page: Page, workflow: Path | dict) -> None:
    """Opens a workflow."""
    if isinstance(workflow, Path):
        workflow = json.loads(workflow.read_text(encoding="utf-8"))
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_function("(types) => types.every((type) => app.graph.nodes.some((node) => node.type === type))",
                           arg=sorted({node["type"] for node in workflow["nodes"]}), timeout=MINUTE)


def set_inputs(page: Page, kind: str, **values: object) -> None:
    """Of the node of that kind; `__` in a name stands for `.`."""
    page.evaluate(_SET, [kind, {name.replace("__", "."): value for name, value in values.items()}])


def queue_demo(page: Page, steps: int, every: int = 5000, prompts: str = "flatmoji, owl", **recipe: object) -> None:
    """Loads the demo and trains it, with small previews every so many steps."""
    load(page, DEMO)
    look_at_train(page)
    set_inputs(page, "LiveLoraTrain", preset__steps=steps, batch_size=2, seed=new_seed(), **recipe)
    set_inputs(page, "LiveLoraPreview", every_n_steps=every, sampler_steps=2, width=64, height=64, prompts=prompts)
    page.evaluate("app.queuePrompt(0, 1)")


def add_node(page: Page, kind: str) -> None:
    """Adds a node, where it is seen."""
    page.evaluate("""(kind) => {
      const node = LiteGraph.createNode(kind);
      node.pos = [300, 300];
      app.graph.add(node);
      app.canvas.ds.scale = 1;
      app.canvas.ds.offset = [0, 0];
    }""", kind)


def look_at_train(page: Page) -> None:
    """So that the mouse can reach the lower end of LoRA Train."""
    page.evaluate(_INTO_VIEW)


def job_of(page: Page) -> str | None:
    """The job that LoRA Train is tied to."""
    return page.evaluate(f"() => {{ {TRAIN} return node.properties.livelora_job ?? null; }}")


def start_demo(page: Page, steps: int = 3000) -> str:
    """The id of a job that trains, and is seen to."""
    queue_demo(page, steps)
    wait_for_line(page, rf"^Step [1-9]\d* of {steps}")
    return job_of(page)


def wait_for_line(page: Page, pattern: str) -> str:
    """Until LoRA Train says that; gives all that it says then."""
    return page.wait_for_function("""(pattern) => {
      const line = document.querySelector(".livelora .state")?.textContent ?? "";
      return new RegExp(pattern).test(line) && line;
    }""", arg=pattern, timeout=2 * MINUTE).json_value()


def press(page: Page, action: str) -> None:
    """A button of LoRA Train, or of its menu."""
    button = page.locator(f".livelora [data-action={action}]")
    if button.get_attribute("role") == "menuitem":
        page.click(".livelora .more", timeout=MINUTE)
    button.click(timeout=MINUTE)


def answer_dialog(page: Page, button: str, text: str | None = None) -> str:
    """Presses a button of the dialog, after typing something, and gives what the dialog said."""
    dialog = page.get_by_role("dialog")
    said = dialog.inner_text(timeout=MINUTE)
    if text is not None:
        dialog.get_by_role("textbox").fill(text)
    # Not by its accessible name: an icon font adds letters to that.
    dialog.locator("button", has_text=re.compile(rf"^\s*{button}\s*$")).click(timeout=MINUTE)
    dialog.wait_for(state="detached", timeout=MINUTE)
    return said


def toast(page: Page) -> str:
    """What a message in the corner says, below its title."""
    page.wait_for_selector(TOAST, timeout=MINUTE)
    return page.inner_text(TOAST).strip().splitlines()[-1]
