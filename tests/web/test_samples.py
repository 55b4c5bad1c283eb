"""Samples are looked at on LoRA Sample Preview, and carry the graph that they came from, as core's pictures do."""

from __future__ import annotations

import io
import json
import re

import pytest
from comfyui import Server
from demo_page import DEMO, MINUTE, job_of, load, new_seed, queue_demo, wait_for_line
from PIL import Image
from raw import act


def drop(page, address: str) -> None:
    """A picture of the server's, on the canvas."""
    page.evaluate("""async (address) => {
      const picture = await (await fetch(address)).blob();
      await app.handleFile(new File([picture], "sample.png", { type: "image/png" }));
    }""", address)


def sent(page) -> dict:
    """The nodes as they would be queued: kind and inputs, by id."""
    prompt = page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    return {node: (entry["class_type"], entry["inputs"]) for node, entry in prompt.items()}


def placed(page) -> list:
    """The nodes as they lie there, to the pixel: Nodes 2.0 moves them by less."""
    return sorted(page.evaluate(
        "app.graph.serialize().nodes.map((n) => [n.id, n.type, [...n.pos].map(Math.round), n.widgets_values])"))


PREVIEW = "const node = app.graph.nodes.find((n) => n.comfyClass === 'LiveLoraPreview');"
VIEWER = ".livelora-viewer"
IN_FOCUS = "document.activeElement.firstElementChild?.dataset.file ?? document.activeElement.className"


@pytest.fixture(scope="module")
def trained(server) -> dict:
    """The demo workflow after a training: two prompts, drawn before it and after its steps 2 and 4."""
    workflow = json.loads(DEMO.read_text(encoding="utf-8"))
    graph = server.to_api(workflow)
    for node in graph.values():
        if node["class_type"] == "LiveLoraTrain":
            node["inputs"] |= {"preset.steps": 4, "batch_size": 1, "seed": new_seed()}
        if node["class_type"] == "LiveLoraPreview":
            node["inputs"] |= {"every_n_steps": 2, "sampler_steps": 2, "width": 64, "height": 64,
                               "prompts": "flatmoji, owl\nflatmoji, red apple"}
    server.run(graph)
    for node in workflow["nodes"]:
        if node["type"] in ("LiveLoraTrain", "LiveLoraPreview"):
            node["properties"]["livelora_job"] = server.get("/livelora/jobs")[-1]["job"]
    return workflow


def load_samples(page, trained: dict) -> None:
    """Opens the workflow, and brings its samples into sight."""
    load(page, trained)
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 6")
    page.evaluate(f"""() => {{
      {PREVIEW}
      app.canvas.ds.scale = 1;
      app.canvas.ds.offset = [200 - node.pos[0], 200 - node.pos[1]];
      app.canvas.setDirty(true, true);
    }}""")


def test_single_pictures_are_seen_whole_and_beside_each_other(page):
    queue_demo(page, steps=2, every=2, prompts="flatmoji, owl")
    wait_for_line(page, r"^Trained 2 steps\.$")
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 2")
    room, before, after = page.evaluate("""['', ' > :nth-child(1) img', ' > :nth-child(2) img'].map(
      (part) => document.querySelector(`.livelora .rounds${part}`).getBoundingClientRect().toJSON())""")
    assert room["top"] < before["top"] < before["bottom"] <= room["bottom"]
    assert before["right"] < after["left"] and before["top"] == after["top"]
    assert before["width"] > 60, "they are not small either"


def open_sample(page, file: str) -> None:
    page.locator(f".livelora .round button:has([data-file='{file}'])").click(timeout=MINUTE)
    page.wait_for_selector(VIEWER)


def seen(page) -> tuple[str, str, str]:
    """The file that is large, and what is said of it."""
    page.wait_for_function(f"document.querySelector('{VIEWER} .now').complete")
    address = page.get_attribute(f"{VIEWER} .now", "src")
    return address.split("/")[-1], page.inner_text(f"{VIEWER} .prompt"), page.inner_text(f"{VIEWER} output")


def test_a_sample_opens_large_and_keys_lead_to_the_others(page, trained):
    load_samples(page, trained)
    open_sample(page, "step_000002_01.png")
    assert seen(page) == ("step_000002_01.png", "Prompt 2 of 2", "Step 2 (2 of 3)")
    box = page.locator(f"{VIEWER} .now").bounding_box()
    assert box["width"] > 600 and box["width"] == pytest.approx(box["height"], abs=1)
    assert page.evaluate("""({ x, y }) => !!document.elementFromPoint(x + 9, y + 9).closest("dialog:modal")""", box)
    for key, file in [("ArrowRight", "000004_01"), ("ArrowRight", "000004_01"), ("ArrowDown", "000004_00"),
                      ("ArrowLeft", "000002_00"), ("ArrowUp", "000002_01"), ("Home", "000000_01"),
                      ("End", "000004_01")]:
        page.keyboard.press(key)
        assert seen(page)[0] == f"step_{file}.png", key
    page.click(f"{VIEWER} .steps")  # its middle
    assert seen(page) == ("step_000002_01.png", "Prompt 2 of 2", "Step 2 (2 of 3)")
    page.click(f"{VIEWER} .next")
    assert seen(page)[:2] == ("step_000002_00.png", "Prompt 1 of 2")
    nodes = page.evaluate(f"() => {{ {PREVIEW} app.canvas.select(node); return app.graph.nodes.length; }}")
    for key in ("Delete", "Control+a", "Control+v"):
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    page.wait_for_selector(VIEWER, state="detached")
    assert page.evaluate(IN_FOCUS) == "step_000002_01.png"
    assert page.evaluate("app.graph.nodes.length") == nodes
    assert page.problems == []


def test_a_sample_is_laid_against_the_one_from_before_training(page, trained):
    load_samples(page, trained)
    open_sample(page, "step_000004_00.png")
    assert page.is_hidden(f"{VIEWER} .before") and page.is_hidden(f"{VIEWER} .wipe")
    page.click(f"{VIEWER} .compare")
    assert page.get_attribute(f"{VIEWER} .before", "src").endswith("/step_000000_00.png")
    box = page.locator(f"{VIEWER} .now").bounding_box()
    for start, end in ((0.5, 0.25), (0.25, 0.9)):
        page.mouse.move(box["x"] + start * box["width"], box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + end * box["width"], box["y"] + 300, steps=3)
        page.mouse.up()
        cut = page.locator(f"{VIEWER} .before").evaluate("(e) => getComputedStyle(e).clipPath")
        assert float(re.fullmatch(r"inset\(0px ([\d.]+)% 0px 0px\)", cut)[1]) == pytest.approx(100 * (1 - end), abs=1)
    page.keyboard.press("ArrowLeft")
    assert seen(page)[0] == "step_000002_00.png" and page.is_visible(f"{VIEWER} .before")
    page.keyboard.press("ArrowUp")
    assert page.get_attribute(f"{VIEWER} .before", "src").endswith("/step_000000_01.png")
    page.keyboard.press("Home")
    assert seen(page)[2] == "Before training (1 of 3)" and page.is_hidden(f"{VIEWER} .before")
    page.click(f"{VIEWER} .close")
    page.wait_for_selector(VIEWER, state="detached")
    assert page.evaluate(IN_FOCUS) == "step_000004_00.png"
    assert page.problems == []


def test_many_samples_scroll_in_the_room_that_the_node_has(page, trained):
    load_samples(page, trained)
    [height] = [node["size"][1] for node in trained["nodes"] if node["type"] == "LiveLoraPreview"]
    assert page.evaluate(f"() => {{ {PREVIEW} return node.size[1]; }}") == pytest.approx(height, abs=1)
    shown, whole = page.eval_on_selector(".livelora .rounds", "(e) => [e.clientHeight, e.scrollHeight]")
    assert 100 < shown < height and whole > 500
    last = page.locator(".livelora .round img").last
    page.click(".livelora .rounds >> text=Before training")  # Nodes 2.0 lets what has the focus scroll
    page.mouse.wheel(0, 5000)
    page.wait_for_function("(e) => e.scrollTop > 100", arg=page.query_selector(".livelora .rounds"))
    outer, inner = page.locator(".livelora .rounds").bounding_box(), last.bounding_box()
    assert outer["y"] < inner["y"] + inner["height"] < outer["y"] + outer["height"] + 1
    assert page.evaluate("app.canvas.ds.scale") == 1
    assert page.problems == []


def test_a_sample_dropped_on_the_canvas_restores_the_graph(page, server, wait_for):
    queue_demo(page, steps=2)
    wait_for_line(page, r"^Trained 2 steps\.$")
    job = job_of(page)
    name = server.get(f"/livelora/jobs/{job}")["samples"][-1]
    before = placed(page), sent(page)
    page.evaluate("app.graph.clear()")
    drop(page, f"/livelora/jobs/{job}/samples/{name}")
    page.wait_for_function("app.graph.nodes.length > 4")
    assert (placed(page), sent(page)) == before
    assert job_of(page) == job
    wait_for_line(page, r"^Trained 2 steps\.$")
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 2", timeout=MINUTE)
    assert "Invalid workflow" not in page.inner_text("body")


def test_a_sample_of_a_duplicate_restores_what_was_queued(page, server, wait_for):
    """Nobody has drawn the workflow of a job that was made by an HTTP call; what ran is in the picture all the same."""
    queue_demo(page, steps=2)
    wait_for_line(page, r"^Trained 2 steps\.$")
    job = job_of(page)
    answer = act(server, job, "duplicate", {"changes": {"seed": new_seed(), "rank": 6}})
    server.result(answer.json["prompt_id"])
    copy = server.get("/livelora/jobs")[-1]["job"]
    assert copy != job
    name = wait_for(server, copy, lambda facts: facts["state"] == "done")["samples"][-1]
    texts = Image.open(io.BytesIO(server.get(f"/livelora/jobs/{copy}/samples/{name}"))).text
    assert "workflow" not in texts
    page.evaluate("app.graph.clear()")
    drop(page, f"/livelora/jobs/{copy}/samples/{name}")
    page.wait_for_function("app.graph.nodes.some((n) => n.comfyClass === 'LiveLoraTrain')")
    found = {node: (entry["class_type"], entry["inputs"]) for node, entry in json.loads(texts["prompt"]).items()}
    assert sent(page) == found
    assert next(inputs["preset.rank"] for kind, inputs in found.values() if kind == "LiveLoraTrain") == 6


@pytest.fixture(scope="module")
def anns_server(tmp_path_factory):
    """One with several users, asked in Ann's name."""
    with Server(tmp_path_factory.mktemp("users"), "--multi-user") as running:
        running.user = running.post("/users", {"username": "ann"}).decode().strip('"')
        yield running


def test_a_user_among_several_sees_the_samples(open_page, anns_server):
    page = open_page(anns_server)
    queue_demo(page, steps=2)
    wait_for_line(page, r"^Trained 2 steps\.$")
    assert len(anns_server.get(f"/livelora/jobs/{job_of(page)}")["samples"]) == 2
    page.wait_for_function("""() => {
      const pictures = [...document.querySelectorAll(".livelora .round img")];
      return pictures.length === 2 && pictures.every((picture) => picture.naturalWidth === 64);
    }""")
    page.evaluate("document.querySelector('.livelora .round button').click()")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"document.querySelector('{VIEWER} output').textContent === 'Step 2 (2 of 2)'")
    assert page.inner_text(f"{VIEWER} .prompt") == "Prompt 1 of 1: flatmoji, owl"
    sample = anns_server.get(f"/livelora/jobs/{job_of(page)}/samples/step_000002_00.png")
    page.wait_for_function(f"""async (pixels) => {{
      const picture = document.querySelector("{VIEWER} .now"), pen = new OffscreenCanvas(64, 64).getContext("2d");
      await picture.decode().catch(() => null);
      pen.drawImage(picture, 0, 0);
      return pen.getImageData(0, 0, 64, 64).data.join() === pixels;
    }}""", arg=",".join(map(str, Image.open(io.BytesIO(sample)).convert("RGBA").tobytes())))
    assert page.problems == []
