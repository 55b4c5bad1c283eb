"""What a person sees: a workflow is loaded, run and watched in a real browser."""

from __future__ import annotations

import json
from itertools import count

import pytest
from comfyui import ROOT

DEMO = ROOT / "example_workflows" / "Train your first LoRA (demo, no downloads).json"
SEEDS = count(100)
SET = """([type, values]) => {
  const node = app.graph.nodes.find((n) => n.comfyClass === type);
  for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value;
}"""


def load(page, path) -> None:
    page.evaluate("(workflow) => app.loadGraphData(workflow)", json.loads(path.read_text(encoding="utf-8")))
    page.wait_for_function("app.graph.nodes.length > 4")


def shorten(page, steps: int) -> None:
    """A short training with a seed of its own: the same recipe would be the same, finished job."""
    page.evaluate(SET, ["LiveLoraTrain", {"preset.steps": steps, "batch_size": 2, "seed": next(SEEDS)}])
    page.evaluate(SET, ["LiveLoraPreview", {"every_n_steps": 2, "sampler_steps": 2, "width": 64, "height": 64,
                                            "prompts": "flatmoji, owl\nflatmoji, red apple"}])


def test_training_is_seen_as_it_goes(page, server):
    load(page, DEMO)
    shorten(page, steps=4)
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 6", timeout=120_000)
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => e.textContent === "
                           "'Trained 4 steps.')", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.livelora .round img')].every((i) => i.naturalWidth === 64)")
    page.wait_for_function("[...document.querySelectorAll('.livelora.text')].some((e) => "
                           "e.textContent.includes('Saved flatmoji'))", timeout=60_000)
    titles = page.eval_on_selector_all(".livelora .round", "all => all.map((e) => e.previousSibling.textContent)")
    assert titles == ["Step 4", "Step 2", "Before training"]
    assert page.get_attribute(".livelora [role=progressbar]", "aria-valuenow") == "4"
    assert page.is_hidden(".livelora button")
    texts = page.eval_on_selector_all(".livelora.text", "all => all.map((e) => e.innerText)")
    assert any(text.startswith("24 images") and text.count("\n") > 3 for text in texts), "as lines, not run together"
    assert page.problems == []


def test_the_stop_button_ends_training_and_keeps_what_was_learned(page, server):
    load(page, DEMO)
    shorten(page, steps=2000)
    page.evaluate(SET, ["LiveLoraPreview", {"every_n_steps": 5000}])
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => "
                           "e.textContent.startsWith('Step ') && e.textContent.includes('of 2000'))", timeout=120_000)
    page.eval_on_selector(".livelora button", "button => button.click()")
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => "
                           "e.textContent.startsWith('Stopped at step'))", timeout=60_000)
    assert server.get("/livelora/jobs")[-1]["state"] == "stopped"


def test_a_reload_finds_the_job_again(page, server):
    load(page, DEMO)
    shorten(page, steps=2)
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => e.textContent === "
                           "'Trained 2 steps.')", timeout=120_000)
    workflow = page.evaluate("app.graph.serialize()")
    page.reload()
    page.wait_for_function("window.app?.vueAppReady && app.isGraphReady", timeout=120_000)
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 4", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => e.textContent === "
                           "'Trained 2 steps.')", timeout=60_000)


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda p: p.stem)
def test_the_frontend_sends_an_example_as_our_converter_does(page, server, path):
    load(page, path)
    sent = page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    ours = server.to_api(json.loads(path.read_text(encoding="utf-8")))
    assert {node: (entry["class_type"], entry["inputs"]) for node, entry in sent.items()} == {
        node: (entry["class_type"], entry["inputs"]) for node, entry in ours.items()}


def test_choosing_a_preset_fills_in_its_values(page):
    load(page, DEMO)
    found = page.evaluate("""async () => {
      const node = app.graph.nodes.find((n) => n.comfyClass === "LiveLoraTrain");
      const preset = node.widgets.find((w) => w.name === "preset");
      const read = () => Object.fromEntries(node.widgets.map((w) => [w.name, w.value]));
      const seen = [];
      for (const name of ["character", "concept"]) {
        preset.value = name;
        preset.callback?.(name, app.canvas, node);
        await new Promise((done) => setTimeout(done, 300));
        seen.push([read()["preset.rank"], read()["preset.steps"]]);
      }
      return seen;
    }""")
    assert found == [[16, 1200], [48, 2000]]
