"""What a person sees: a workflow is loaded, run and watched in a real browser."""

from __future__ import annotations

import json
import re
from itertools import combinations

import browser as on_this_machine
import pytest
from comfyui import ROOT
from demo_page import DEMO, SIZES_STAND, TRAIN, load, queue_demo, set_inputs

PROMPTS = "flatmoji, owl\nflatmoji, red apple"


def test_training_is_seen_as_it_goes(page, server):
    queue_demo(page, steps=4, every=2, prompts=PROMPTS, held_out=2, validate_every=2)
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 6", timeout=120_000)
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => e.textContent === "
                           "'Trained 4 steps.')", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.livelora .round img')].every((i) => i.naturalWidth === 64)")
    page.wait_for_function("[...document.querySelectorAll('.livelora.text')].some((e) => "
                           "e.textContent.includes('Saved flatmoji'))", timeout=60_000)
    titles = page.eval_on_selector_all(".livelora .round", "all => all.map((e) => e.previousSibling.textContent)")
    assert titles == ["Step 4", "Step 2", "Before training"]
    assert page.get_attribute(".livelora [role=progressbar]", "aria-valuenow") == "4"
    assert page.is_hidden(".livelora .go") and page.is_hidden(".livelora [data-action=stop]")
    losses = page.text_content(".livelora .losses")
    assert re.fullmatch(r"loss \d\.\d{4} · held-out \d\.\d{3} → \d\.\d{3} \([−+]?\d+ %\)(, best \d\.\d{3} at step 2)?",
                        losses), losses
    lines = page.eval_on_selector_all(".livelora.text .start > div", "all => all.map((e) => e.textContent)")
    at = lines.index("24 × 128×128")
    assert lines[at - 1].startswith("24 images in"), "as lines, not run together"
    assert overlaps(page) == []
    assert page.problems == []


FACTS = {"state": "training", "message": "", "actions": [], "step": 75, "steps": 100, "eta": 30, "warnings": [],
         "loss": 0.23456, "validation": [], "validation_base": None, "best": None, "skipped": 0, "learning_rate": 1e-4}
POINTS = [[0, 0.4], [25, 0.205], [75, 0.265]]


LINES = [
    ({}, "loss 0.2346"),
    ({"loss": None}, ""),
    # 0.265 / 0.425 = 0.6235, and 0.265 / 0.4 = 0.6625
    ({"validation": POINTS, "validation_base": 0.425, "best": [25, 0.205]},
     "loss 0.2346 · held-out 0.425 → 0.265 (−38 %), best 0.205 at step 25"),
    ({"validation": POINTS}, "loss 0.2346 · held-out 0.400 → 0.265 (−34 %)"),
    ({"validation": POINTS[:2], "validation_base": 0.4, "best": [25, 0.205]},
     "loss 0.2346 · held-out 0.400 → 0.205 (−49 %)"),
    ({"validation": [[0, 0.2], [5, 0.25]], "best": [5, 0.25]}, "loss 0.2346 · held-out 0.200 → 0.250 (+25 %)"),
    ({"skipped": 1}, "loss 0.2346 · 1 step skipped"),
    ({"skipped": 2, "learning_rate": -1e-4}, "loss 0.2346 · 2 steps skipped · erasing, learning rate −0.0001"),
    ({"learning_rate": -9.7555e-05}, "loss 0.2346 · erasing, learning rate −0.000098"),
    ({"loss": None, "learning_rate": None}, ""),
]


def test_the_loss_line_tells_what_is_known(page):
    load(page, DEMO)
    for facts, line in LINES:
        page.evaluate("(facts) => app.graph.nodes.find((n) => n.comfyClass === 'LiveLoraTrain').livelora.show(facts)",
                      {**FACTS, **facts})
        assert page.text_content(".livelora .losses") == line


def test_a_reload_finds_the_job_again(page, server):
    queue_demo(page, steps=2, prompts=PROMPTS)
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => e.textContent === "
                           "'Trained 2 steps.')", timeout=120_000)
    workflow = page.evaluate("app.graph.serialize()")
    page.reload()
    on_this_machine.wait_until_open(page)
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 4", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.livelora .state')].some((e) => e.textContent === "
                           "'Trained 2 steps.')", timeout=60_000)


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda p: p.stem)
def test_the_frontend_sends_an_example_as_our_converter_does(page, server, path):
    load(page, path)
    sent = page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    assert "Invalid workflow" not in page.inner_text("body")
    ours = server.to_api(json.loads(path.read_text(encoding="utf-8")))
    assert {node: (entry["class_type"], entry["inputs"]) for node, entry in sent.items()} == {
        node: (entry["class_type"], entry["inputs"]) for node, entry in ours.items()}


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda p: p.stem)
def test_no_node_of_an_example_lies_on_another(page, path):
    """Neither as it is opened nor after a run: of ours, only the node that ComfyUI gives a picture could grow."""
    load(page, path)
    assert overlaps(page) == []
    set_inputs(page, "LiveLoraDataset", folder="demo_dataset")
    page.evaluate("app.queuePrompt(0, 1, [app.graph.nodes.find((n) => n.type === 'LiveLoraDataset').id])")
    page.wait_for_function("[...document.querySelectorAll('.livelora.text')].some((e) => e.innerText.includes('24 i'))")
    page.wait_for_timeout(500)  # the picture comes, too
    assert overlaps(page) == []


def overlaps(page) -> list[tuple[str, str]]:
    """Which nodes lie on one another."""
    page.evaluate(SIZES_STAND)  # Nodes 2.0 makes nodes taller where their content asks for it
    title = 30
    boxes = [(name, x, y - title, x + width, y + height) for name, x, y, width, height in page.evaluate(
        "app.graph.nodes.map((n) => [n.type, ...n.pos, ...n.size])")]
    return [(a[0], b[0]) for a, b in combinations(boxes, 2)
            if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]]


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


canvas_only = pytest.mark.parametrize("rendering", [False], indirect=True, ids=["canvas"])
SHOWN = f"""async () => {{
  {TRAIN}
  app.canvas.draw(true, true);  // what lies where is known of what was drawn
  const [saved, prompt] = [node.serialize(), await app.graphToPrompt()];
  return {{
    button: node.widgets.find((w) => w.name === "advanced").label,
    shown: node.widgets.filter((w) => w.options?.advanced && node.isWidgetVisible(w)).map((w) => w.name),
    sockets: [...Array(node.size[1]).keys()].map((y) => node.getSlotOnPos([node.pos[0] + 5, node.pos[1] + y])?.name),
    height: node.size[1], needed: node.computeSize()[1],
    values: [saved.widgets_values, prompt.output],
  }};
}}"""


def press_the_fold_button(page) -> None:
    """With the mouse, where it is drawn."""
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [-300, -200]; }")
    x, y = page.evaluate(f"""() => {{
      {TRAIN}
      app.canvas.draw(true, true);
      const button = node.widgets.find((w) => w.name === "advanced");
      app.canvas.ds.offset[1] -= Math.max(0, button.last_y - 300);
      app.canvas.draw(true, true);
      const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 100, node.pos[1] + button.last_y + 10]);
      const box = app.canvas.canvas.getBoundingClientRect();
      return [box.left + x, box.top + y];
    }}""")
    page.wait_for_timeout(300)
    page.mouse.click(x, y)
    page.wait_for_timeout(300)


def advanced_inputs(server, workflow: dict) -> tuple[list[str], list[str]]:
    """LoRA Train's advanced inputs as the server tells them, and those whose value in `workflow` is not the default."""
    node = next(n for n in workflow["nodes"] if n["type"] == "LiveLoraTrain")
    spec = server.get("/object_info/LiveLoraTrain")["LiveLoraTrain"]["input"]["optional"]
    defaults = {name: options.get("default", (options.get("options") or [None])[0])
                for name, (_, options) in spec.items() if options.get("advanced")}
    values = server.to_api(workflow)[str(node["id"])]["inputs"]
    return list(defaults), [name for name, default in defaults.items() if values[name] != default]


@canvas_only
def test_advanced_inputs_are_folded_away_until_the_button_is_pressed(page, server):
    load(page, DEMO)
    names, changed = advanced_inputs(server, json.loads(DEMO.read_text(encoding="utf-8")))
    assert len(names) == 52 and len(changed) == 1
    folded = page.evaluate(SHOWN)
    assert folded["button"] == "Show 52 advanced inputs (1 changed)"
    assert folded["shown"] == [] and folded["height"] == folded["needed"] < 600
    press_the_fold_button(page)
    opened = page.evaluate(SHOWN)
    assert opened["button"] == "Hide advanced inputs"
    assert opened["shown"] == names and opened["height"] == opened["needed"] > 1200
    press_the_fold_button(page)
    again = page.evaluate(SHOWN)
    assert again["values"] == opened["values"] == folded["values"]
    assert set(names) <= set(opened["sockets"]) and not set(names) & set(again["sockets"])
    assert again == folded
    assert page.problems == []


@canvas_only
def test_the_fold_follows_an_engine_whose_inputs_come_and_go(page):
    """LoRA Captioner: two rare inputs of its own, and two of an engine that is asked."""
    found = page.evaluate("""async () => {
      app.graph.clear();
      const node = LiteGraph.createNode("LiveLoraCaption");
      app.graph.add(node);
      const engine = node.widgets.find((w) => w.name === "engine");
      const seen = {};
      for (const name of ["template", "vision-language folder", "tagger", "ComfyUI text model"]) {
        engine.value = name;
        engine.callback?.(name, app.canvas, node);
        await new Promise((done) => setTimeout(done, 500));
        app.canvas.draw(true, true);
        const rare = node.widgets.filter((w) => w.options?.advanced);
        seen[name] = [node.widgets.find((w) => w.name === "advanced").label, rare.every((w) => w.hidden)];
      }
      return seen;
    }""")
    assert found == {"template": ["Show 2 advanced inputs", True],
                     "vision-language folder": ["Show 4 advanced inputs", True],
                     "tagger": ["Show 2 advanced inputs", True],
                     "ComfyUI text model": ["Show 4 advanced inputs", True]}
    assert page.problems == []


@canvas_only
def test_an_advanced_input_that_is_linked_is_never_folded_away(page, server):
    load(page, DEMO)
    page.evaluate(f"""() => {{
      {TRAIN}
      const source = LiteGraph.createNode("PrimitiveInt");
      app.graph.add(source);
      source.connect(0, node, node.inputs.findIndex((slot) => slot.name === "extra_steps"));
    }}""")
    linked = page.evaluate(SHOWN)
    assert linked["shown"] == ["extra_steps"] and linked["button"] == "Show 51 advanced inputs (1 changed)"
    workflow = page.evaluate("JSON.stringify(app.graph.serialize())")
    page.evaluate("(workflow) => app.loadGraphData(workflow)", json.loads(workflow))
    loaded = page.evaluate(SHOWN)
    assert loaded["shown"] == linked["shown"] and loaded["values"] == linked["values"]
    assert "Invalid workflow" not in page.inner_text("body")
    page.evaluate(f"{TRAIN} node.disconnectInput(node.inputs.findIndex((slot) => slot.name === 'extra_steps'))")
    assert page.evaluate(SHOWN)["shown"] == []


@canvas_only
def test_a_copy_and_a_saved_workflow_stay_open_or_folded(page, server):
    load(page, DEMO)
    for shown in (0, 52):
        assert page.evaluate(f"{TRAIN} node.clone().widgets.filter((w) => w.options?.advanced && !w.hidden).length"
                             ) == shown
        workflow = page.evaluate("JSON.stringify(app.graph.serialize())")
        page.evaluate("(workflow) => app.loadGraphData(workflow)", json.loads(workflow))
        loaded = page.evaluate(SHOWN)
        assert len(loaded["shown"]) == shown and loaded["height"] == loaded["needed"]
        press_the_fold_button(page)
    assert "Invalid workflow" not in page.inner_text("body")


@pytest.mark.parametrize("rendering", [True], indirect=True, ids=["nodes 2.0"])
def test_nodes_2_0_folds_by_itself_and_gets_no_button_of_ours(page, server):
    load(page, DEMO)
    train = page.locator("[data-node-id='{}']".format(page.evaluate(f"() => {{ {TRAIN} return node.id; }}")))
    train.get_by_text("Show advanced inputs").click()
    names, _ = advanced_inputs(server, json.loads(DEMO.read_text(encoding="utf-8")))
    page.wait_for_function("(last) => document.body.innerText.includes(last)", arg=names[-1])
    assert all(name in train.inner_text() for name in names)
    assert not {"advanced", "Show 52 advanced inputs (1 changed)"} & set(train.inner_text().splitlines())
    assert page.problems == []
