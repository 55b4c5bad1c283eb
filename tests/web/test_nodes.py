"""What a person sees: a workflow is loaded, run and watched in a real browser."""

from __future__ import annotations

import json
import re
from itertools import combinations

import browser as on_this_machine
import pytest
from comfyui import ROOT
from demo_page import (
    DEMO,
    SIZES_STAND,
    TRAIN,
    add_node,
    load,
    look_at_train,
    new_seed,
    queue_demo,
    set_inputs,
    wait_for_line,
)

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
    assert titles == ["Before training", "Step 4", "Step 2"]
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


LATE = {"LiveLoraTrain": ["keep_states", "sharing"], "LiveLoraPreview": ["strength"]}
"""Inputs that 0.1.0 wrote values of, but no slots."""
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


def test_a_workflow_of_0_1_0_has_its_values_at_their_places_and_trains(page):
    """The first template as it was at commit 0093727; its slots tell the names that its values had."""
    workflow = json.loads((ROOT / "tests" / "web" / "workflow_of_0.1.0.json").read_text(encoding="utf-8"))
    load(page, workflow)
    sent = page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    for node in workflow["nodes"]:
        values, inputs = node.get("widgets_values") or [], sent[str(node["id"])]["inputs"]
        names = [slot["name"] for slot in node["inputs"] if "widget" in slot] + LATE.get(node["type"], [])
        assert [inputs[name] for name in names] == ["auto" if name == "gradient_checkpointing" else value  # it was True
                                                    for name, value in zip(names, values, strict=True)]
    set_inputs(page, "LiveLoraTrain", preset__steps=2, batch_size=2, seed=new_seed())
    set_inputs(page, "LiveLoraPreview", sampler_steps=2, width=64, height=64)
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_line(page, r"^Trained 2 steps\.$")
    assert page.problems == []


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


def test_a_box_keeps_its_width_beside_the_panel_at_the_right(page):
    load(page, DEMO)
    x, y = page.evaluate(f"""() => {{
      {TRAIN}
      app.canvas.ds.scale = 1;
      app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]];
      app.canvas.draw(true, true);
      const {{ left, top }} = app.canvas.canvas.getBoundingClientRect();
      app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", true);
      return [left + 400, top + 185];  // on its title
    }}""")
    width = "document.querySelector('.livelora.monitor').offsetWidth"
    before = page.evaluate(width)
    panel = page.get_by_test_id("properties-panel")
    try:
        page.wait_for_timeout(300)
        page.mouse.click(x, y)
        panel.get_by_text("learning_rate").first.wait_for()
        page.wait_for_timeout(300)
        assert page.evaluate(width) == before > 300
        assert panel.get_by_text("monitor").count() == 0
    finally:
        page.evaluate("app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")


FOLDED = ["Adapter", "Optimizer", "Noise", "Loss", "Captions", "Memory (1 changed)", "Validation", "Saving", "Sharing"]
"""LoRA Train's titles in the demo, which has a batch_size of its own."""
EVERYDAY = ["preset", "steps", "rank", "learning_rate", "seed", "mode"]
SEEN = """async (type) => {
  const node = app.graph.nodes.find((n) => n.comfyClass === type);
  await new Promise((done) => setTimeout(done, 200));
  app.canvas.draw(true, true);  // what lies where is known of what was drawn
  const visible = (widget) => (node.isWidgetRowVisible ?? node.isWidgetVisible).call(node, widget);
  const drawn = node.widgets.filter((w) => visible(w) && w.serialize !== false).map((w) => w.name.split(".").at(-1));
  const element = document.querySelector(`.lg-node[data-node-id="${node.id}"]`);
  const label = (row) => row.querySelector("[data-testid=widget-layout-field-label]") ?? row;
  const rows = [...element?.querySelectorAll(".lg-node-widgets > :not(:has(.livelora, .livelora-fold))") ?? []];
  const socketAt = (y) => node.getSlotOnPos([node.pos[0] + 5, node.pos[1] + y])?.name;
  const titles = [...document.querySelectorAll(".livelora-fold")];
  return {
    titles: titles.filter((e) => node.widgets.some((w) => w.element === e)).map((e) => e.textContent),
    open: titles.filter((e) => e.ariaExpanded === "true").map((e) => e.textContent),
    inputs: element ? rows.map((e) => label(e).innerText.split("\\n")[0]) : drawn,
    sockets: element ? null : [...new Set([...Array(Math.round(node.size[1])).keys()].map(socketAt))],
    height: element?.offsetHeight ?? node.size[1],
    values: [node.serialize().widgets_values, (await app.graphToPrompt()).output],
  };
}"""


def seen(page, kind: str = "LiveLoraTrain") -> dict:
    """What a node shows, and what it holds."""
    return page.evaluate(SEEN, kind)


def choose(page, name: str, value: object) -> None:
    """As a person does: LoRA Train is told."""
    page.evaluate(f"""([name, value]) => {{
      {TRAIN}
      const widget = node.widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value, app.canvas, node);
    }}""", [name, value])


def press_title(page, title: str) -> None:
    """With the mouse."""
    page.locator(".livelora-fold", has_text=title).click()


def reload_workflow(page) -> None:
    """Saves what is open, and opens that."""
    page.evaluate("app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))")
    assert "Invalid workflow" not in page.inner_text("body")


def test_rare_inputs_stand_in_groups_that_open_and_close(page):
    load(page, DEMO)
    look_at_train(page)
    folded = seen(page)
    assert folded["titles"] == FOLDED and folded["open"] == [] and folded["inputs"] == EVERYDAY
    press_title(page, "Captions")
    press_title(page, "Noise")
    opened = seen(page)
    assert opened["titles"] == FOLDED and opened["open"] == ["Noise", "Captions"]
    assert opened["inputs"] == [*EVERYDAY, "timestep_sampling", "stratified_timesteps", "caption_dropout",
                                "caption_shuffle"]
    assert folded["height"] + 4 * 24 <= opened["height"] <= folded["height"] + 4 * 36
    press_title(page, "Noise")
    press_title(page, "Captions")
    assert seen(page) == folded
    assert page.problems == []


def test_titles_are_pressed_by_keyboard(page):
    load(page, DEMO)
    look_at_train(page)
    page.locator(".livelora-fold", has_text="Adapter").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert seen(page)["open"] == ["Optimizer"]
    page.keyboard.press("Space")
    assert seen(page)["open"] == []


def test_an_input_appears_with_the_choice_that_gives_it_meaning(page):
    load(page, DEMO)
    look_at_train(page)
    press_title(page, "Loss")
    without = seen(page)
    assert without["inputs"] == [*EVERYDAY, "loss", "unmasked_weight", "prior_weight", "preservation_weight",
                                 "guidance"]
    choose(page, "loss", "huber")
    choose(page, "preservation_weight", 1)
    assert seen(page)["inputs"] == [*EVERYDAY, "loss", "huber_c", "huber_schedule", "unmasked_weight", "prior_weight",
                                    "preservation_weight", "preservation_class", "guidance"]
    choose(page, "huber_c", 0.2)
    choose(page, "loss", "l2")
    choose(page, "preservation_weight", 0)
    changed = seen(page)
    assert "Loss (1 changed)" in changed["titles"]
    assert changed["inputs"] == [*EVERYDAY, "loss", "huber_c", "unmasked_weight", "prior_weight",
                                 "preservation_weight", "guidance"], "a changed value is never hidden"
    choose(page, "huber_c", 0.1)
    assert {**seen(page), "values": without["values"]} == without


def test_a_title_counts_also_what_a_program_has_changed(page):
    load(page, DEMO)
    set_inputs(page, "LiveLoraTrain", max_grad_norm=2, alpha=8)
    titles = "[...document.querySelectorAll('.livelora-fold')].map((title) => title.textContent).join()"
    page.wait_for_function(f"{titles}.includes('Adapter (1 changed),Optimizer (1 changed),Noise,')")
    assert page.problems == []


def test_titles_take_no_place_among_the_values_that_are_saved(page):
    """The demo was saved before there were titles."""
    workflow = json.loads(DEMO.read_text(encoding="utf-8"))
    values = next(node["widgets_values"] for node in workflow["nodes"] if node["type"] == "LiveLoraTrain")
    load(page, DEMO)
    assert seen(page)["values"][0] == values
    choose(page, "keep_states", 7)
    reload_workflow(page)
    saved = seen(page)
    assert saved["values"][0] == [*values[:-3], 7, *values[-2:]]
    assert saved["values"][1]["4"]["inputs"]["keep_states"] == 7
    assert page.evaluate(f"{TRAIN} node.clone().serialize().widgets_values") == saved["values"][0]


def test_what_a_person_added_to_the_height_stays(page):
    load(page, DEMO)
    page.evaluate(f"{TRAIN} node.setSize([node.size[0], 700])")
    look_at_train(page)
    tall = seen(page)
    press_title(page, "Optimizer")
    assert seen(page)["height"] >= tall["height"] + 8 * 24
    press_title(page, "Optimizer")
    assert seen(page) == tall


def test_a_rare_input_that_is_linked_is_never_hidden(page):
    load(page, DEMO)
    page.evaluate(f"""() => {{
      {TRAIN}
      const source = LiteGraph.createNode("PrimitiveInt");
      app.graph.add(source);
      source.connect(0, node, node.inputs.findIndex((slot) => slot.name === "extra_steps"));
    }}""")
    linked = seen(page)
    assert linked["inputs"] == [*EVERYDAY, "extra_steps"] and linked["open"] == []
    if linked["sockets"]:  # on the canvas
        assert "extra_steps" in linked["sockets"] and "keep_states" not in linked["sockets"]
    reload_workflow(page)
    loaded = seen(page)
    assert loaded["inputs"] == linked["inputs"] and loaded["values"] == linked["values"]
    page.evaluate(f"{TRAIN} node.disconnectInput(node.inputs.findIndex((slot) => slot.name === 'extra_steps'))")
    assert seen(page)["inputs"] == EVERYDAY


def test_a_saved_workflow_keeps_its_groups_open(page):
    load(page, DEMO)
    look_at_train(page)
    press_title(page, "Memory")
    opened = seen(page)
    assert opened["open"] == ["Memory (1 changed)"]
    reload_workflow(page)
    assert seen(page) == opened
    press_title(page, "Memory")
    assert seen(page)["height"] < opened["height"] - 3 * 24 + 1


def test_other_nodes_have_one_title_for_what_is_rare_also_where_it_comes_and_goes(page):
    """LoRA Captioner: two rare inputs of its own, and two of an engine that is asked."""
    add_node(page, "LiveLoraCaption")
    rare = {"template": [], "vision-language folder": ["max_length", "max_side"], "tagger": [],
            "ComfyUI text model": ["max_length", "max_side"]}
    found = {}
    for engine in rare:
        page.evaluate("""(name) => {
          const [node] = app.graph.nodes;
          const engine = node.widgets.find((w) => w.name === "engine");
          engine.value = name;
          engine.callback?.(name, app.canvas, node);
        }""", engine)
        folded = seen(page, "LiveLoraCaption")
        press_title(page, "Advanced inputs")
        opened = seen(page, "LiveLoraCaption")
        press_title(page, "Advanced inputs")
        assert folded["titles"] == ["Advanced inputs"] and seen(page, "LiveLoraCaption") == folded
        found[engine] = [name for name in opened["inputs"] if name not in folded["inputs"]]
    assert found == {engine: [*own, "banned", "replace"] for engine, own in rare.items()}
    assert page.problems == []
