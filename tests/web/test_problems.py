"""What people most often do wrong, and what the node that it concerns then says in its own box."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import count
from typing import Any, NamedTuple

import browser as on_this_machine
import pytest
from demo_page import MINUTE, SIZES_STAND, load, set_inputs
from graphs import training, with_preview, with_save
from other_models import save_pixart, save_taesd
from PIL import Image
from safetensors.torch import save_file
from torch import zeros

SAID = """(kind) => {
  const node = window.findOurs(kind);
  const said = node?.widgets?.map((w) => w.element?.querySelector(".problem:not([hidden])")).find(Boolean);
  return said && said.getBoundingClientRect().height > 12 ? said.innerText : "";
}"""
FIND = """window.findOurs = (kind) => {
  const nodes = [...app.graph.nodes];
  for (const node of nodes) nodes.push(...(node.subgraph?.nodes ?? []));
  return nodes.find((node) => node.comfyClass === kind);
}"""
COLOUR = "(selector) => getComputedStyle(document.querySelector(selector)).color.match(/\\d+/g).map(Number)"


@pytest.fixture(scope="session")
def files(server):
    """Datasets and models with something wrong, by name, under the server's own folders."""
    home = server.base / "input"

    def dataset(name: str) -> Any:
        folder = home / name
        folder.mkdir()
        for letter, colour in ("a", "red"), ("b", "blue"), ("c", "green"):
            Image.new("RGB", (64, 64), colour).save(folder / f"{letter}.png")
            (folder / f"{letter}.txt").write_text(f"flatmoji, a {colour} square")
        return folder

    (home / "empty").mkdir()
    dataset("plain")
    (dataset("uncaptioned") / "b.txt").unlink()
    (dataset("cut") / "b.png").write_bytes(b"\x89PNG nothing more")
    (dataset("latin") / "b.txt").write_bytes(b"caf\xe9")
    (dataset("long") / "b.txt").write_text("cat " * 4000)
    Image.new("L", (32, 16), 255).save(dataset("masked") / "b_mask.png")
    loras, vae = server.base / "models" / "loras", server.base / "models" / "vae"
    save_file({"unet.weight": zeros(2, 2)}, loras / "no_lora.safetensors")
    (loras / "cut_short.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_taesd(vae / "sd.safetensors", latent_channels=4)
    save_pixart(server.base / "models" / "diffusion_models" / "pixart.safetensors")
    return home


def dataset(**changes: Any) -> dict:
    graph = {"data": deepcopy(training(0)["data"])}
    graph["data"]["inputs"] |= changes
    return graph


def trained(folder: str = "demo_dataset", **changes: Any) -> dict:
    """A training that never begins."""
    graph = training(40, **changes)
    graph["data"]["inputs"]["folder"] = folder
    return graph


def unwired(name: str) -> dict:
    graph = trained()
    del graph["train"]["inputs"][name]
    return graph


def behind_dataset(kind: str, **inputs: Any) -> dict:
    return {**dataset(), "node": {"class_type": kind, "inputs": {"dataset": ["data", 0], **inputs}}}


def captioned(**changes: Any) -> dict:
    return behind_dataset("LiveLoraCaption", which="all", write_files=False, **changes) | {
        "shown": {"class_type": "LiveLoraReview", "inputs": {**REVIEW, "dataset": ["node", 0]}}}


REVIEW = {"action": "show", "table": "", "find": "", "replace": "", "regular_expression": False, "use": "all",
          "write_files": False}


def reviewed(**changes: Any) -> dict:
    return behind_dataset("LiveLoraReview", **{**REVIEW, **changes})


def merged(**changes: Any) -> dict:
    return {"node": {"class_type": "LiveLoraMerge", "inputs": {
        "lora_a": "no_lora.safetensors", "strength_a": 1.0, "lora_b": "none", "strength_b": 1.0, "rank": 0, **changes}}}


def with_vae(name: str) -> dict:
    graph = trained()
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": name}}
    graph["train"]["inputs"]["vae"] = ["vae", 0]
    return graph


def with_model(name: str) -> dict:
    graph = trained()
    graph["unet"] = {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}
    graph["train"]["inputs"]["model"] = ["unet", 0]
    return graph


def of_job(kind: str, **inputs: Any) -> dict:
    return {"model": {"class_type": "LiveLoraDemoModel", "inputs": {}},
            "shown": {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}},
            "node": {"class_type": kind, "inputs": {"job": "newest", **inputs}}}


class Mistake(NamedTuple):
    make: Callable[[], dict]
    node: str
    says: str


MISTAKES = {
    # Refused before anything runs.
    "no such folder": Mistake(
        lambda: dataset(folder="nowhere"), "LiveLoraDataset",
        "nowhere' does not exist. Choose a folder with .png, .jpg or .webp files."),
    "an empty folder": Mistake(lambda: dataset(folder="empty"), "LiveLoraDataset", "(it is empty)"),
    "a bad LoRA name": Mistake(
        lambda: with_save(trained(), "a:b"), "LiveLoraSave", "The LoRA's name must be a file name"),
    "a preview line": Mistake(
        lambda: with_preview(trained(), "owl --size 64", every=5), "LiveLoraPreview",
        "line 1: --size 64: there is no such option."),
    "no preview line": Mistake(lambda: with_preview(trained(), " ", every=5), "LiveLoraPreview", "has no prompts"),
    "a placeholder": Mistake(
        lambda: captioned(template="{triger}"), "LiveLoraCaption", "unknown placeholders: {triger}"),
    "no preset": Mistake(
        lambda: trained() | {"train": {"class_type": "LiveLoraTrain", "inputs": {
            **trained()["train"]["inputs"], "preset": "portrait"}}}, "LiveLoraTrain",
        "preset must be one of character, style, concept."),
    "no model": Mistake(lambda: unwired("model"), "LiveLoraTrain", "Required input is missing: model"),
    "no dataset": Mistake(lambda: unwired("dataset"), "LiveLoraTrain", "Required input is missing: dataset"),
    "no rank": Mistake(lambda: trained(rank=0), "LiveLoraTrain", "Value 0 smaller than min of 1: preset.rank"),
    "another choice": Mistake(
        lambda: trained(optimizer="Adam9"), "LiveLoraTrain", "Value not in list: optimizer: 'Adam9' not in"),
    "a job that is gone": Mistake(
        lambda: of_job("LiveLoraLive", job="flower_1", which="newest", strength=1.0, model=["model", 0]),
        "LiveLoraLive", "There is no job 'flower_1' here: it was deleted, or made on another machine."),
    "a job that is gone, in a grid": Mistake(
        lambda: of_job("LiveLoraGrid", job="flower_1", columns="steps", labels=True, **{"columns.most": 8}),
        "LiveLoraGrid", "There is no job 'flower_1' here"),
    "no table": Mistake(
        lambda: reviewed(action="write table", table="captions.txt"), "LiveLoraReview",
        "A table is a .csv or a .jsonl file, got 'captions.txt'."),
    "no LoRA to merge": Mistake(
        lambda: merged(lora_b="cut_short.safetensors"), "LiveLoraMerge", "cut_short.safetensors"),
    # Found when the node runs.
    "no captions": Mistake(lambda: trained("uncaptioned"), "LiveLoraTrain", "has no caption: b.png."),
    "no trigger word": Mistake(
        lambda: trained("uncaptioned") | dataset(
            folder="uncaptioned", missing_captions="use the trigger word", trigger_word=""),
        "LiveLoraTrain", "or fill in trigger_word."),
    "a picture that is cut": Mistake(
        lambda: dataset(folder="cut"), "LiveLoraDataset", "b.png cannot be read as a picture"),
    "a caption in Latin-1": Mistake(lambda: dataset(folder="latin"), "LiveLoraDataset", "b.txt is not UTF-8 text"),
    "a mask of another size": Mistake(lambda: dataset(folder="masked", masks="use"), "LiveLoraDataset", "b_mask.png"),
    "a table that is not there": Mistake(
        lambda: reviewed(action="read table", table="not_there.csv"), "LiveLoraReview",
        "not_there.csv' does not exist. Write one first"),
    "a LoRA of something else": Mistake(
        lambda: merged(), "LiveLoraMerge", "'no_lora.safetensors' cannot be merged or resized. This LoRA has"),
    "a long warmup": Mistake(
        lambda: trained(steps=5, lr_warmup_steps=9), "LiveLoraTrain",
        "lr_warmup_steps (9) is longer than the run (5 steps)"),
    "no best": Mistake(
        lambda: trained(result="best"), "LiveLoraTrain", "result is 'best', but there are no held-out images"),
    "no layer": Mistake(
        lambda: trained(target_regex="nothing"), "LiveLoraTrain", "No layer of this model is trained: 'nothing'"),
    "an unfit start": Mistake(
        lambda: trained(start_from="no_lora.safetensors"), "LiveLoraTrain",
        "'no_lora.safetensors' cannot be started from. This LoRA has"),
    "another VAE": Mistake(
        lambda: with_vae("sd.safetensors"), "LiveLoraTrain", "FLUX.1 needs its own VAE with 16 latent channels"),
    "another model": Mistake(
        lambda: with_model("pixart.safetensors"), "LiveLoraTrain", "LoRA Train trains FLUX.1 models, this one is"),
    "too little memory": Mistake(
        lambda: trained(leave_free=1000.0), "LiveLoraTrain", "This training needs"),
    "a size that is no number": Mistake(
        lambda: dataset(more_resolutions="768x1024"), "LiveLoraDataset", "such as '768, 1024', got '768x1024'."),
    "a long caption": Mistake(lambda: trained("long"), "LiveLoraTrain", "b.png"),
}
IDS = count(1000)
IN_BOTH = ["no such folder", "a preview line", "no model", "a job that is gone, in a grid", "no captions", "no layer"]
each = pytest.mark.parametrize
canvas = each("rendering", [False], indirect=True, ids=["canvas"])
elements = each("rendering", [True], indirect=True, ids=["nodes 2.0"])


def numbered(graph: dict) -> dict:
    """A graph with ids as the frontend makes them, each used once: it gives a node the values of the one before it."""
    ids = {name: str(next(IDS)) for name in graph}
    linked = lambda value: [ids[value[0]], value[1]] if isinstance(value, list) else value  # noqa: E731
    return {ids[name]: {"class_type": node["class_type"],
                        "inputs": {key: linked(value) for key, value in node["inputs"].items()}}
            for name, node in graph.items()}


def open_graph(page, graph: dict) -> None:
    page.evaluate(f"() => {{ {FIND} }}")
    page.evaluate("(graph) => app.loadApiJson(graph, 'Mistake')", numbered(graph))
    page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(graph), timeout=MINUTE)


def said(page, kind: str) -> str:
    """What stands in red in the box of the node of that kind, once something does."""
    return page.wait_for_function(SAID, arg=kind, timeout=MINUTE).json_value()


def check(page, mistake: Mistake) -> None:
    open_graph(page, mistake.make())
    page.evaluate("app.queuePrompt(0, 1).catch(() => {})")
    told = said(page, mistake.node)
    assert mistake.says in told
    for noise in ("Custom validation failed", "Traceback", "ValueError", "Error:", " - The"):
        assert noise not in told
    # Nothing else stands anywhere. (What the graph before showed leaves at the next drawing; and a LoRA Train that is
    # not run because of it says so, too.)
    page.wait_for_function("""(says) => [...document.querySelectorAll(".problem:not([hidden])")].every(
      (problem) => problem.innerText.includes(says))""", arg=mistake.says, timeout=MINUTE)


@canvas
@each("name", MISTAKES)
def test_a_mistake_is_told_at_its_node(page, files, name):
    check(page, MISTAKES[name])


@elements
@each("name", IN_BOTH)
def test_a_mistake_is_told_at_its_node_where_nodes_are_elements(page, files, name):
    check(page, MISTAKES[name])


def heights(page) -> dict[str, float]:
    return page.evaluate("Object.fromEntries(app.graph.nodes.map((node) => [node.type, Math.round(node.size[1])]))")


def queue(page) -> None:
    page.evaluate("app.queuePrompt(0, 1).catch(() => {})")


def test_a_node_without_a_box_has_one_as_long_as_something_is_wrong(page, files):
    open_graph(page, MISTAKES["a job that is gone, in a grid"].make())
    page.evaluate(SIZES_STAND)
    before = heights(page), page.evaluate("findOurs('LiveLoraGrid').widgets.length")
    queue(page)
    assert "There is no job" in said(page, "LiveLoraGrid")
    page.evaluate(SIZES_STAND)
    assert heights(page)["LiveLoraGrid"] > before[0]["LiveLoraGrid"] + 50
    red, green, blue = page.evaluate(COLOUR, ".problem:not([hidden])")
    assert red - max(green, blue) > 80
    page.evaluate("app.graph.remove(app.graph.nodes.find((node) => node.type === 'PreviewAny'))")
    queue(page)  # nothing of it runs, so that nothing is wrong with the grid either
    page.wait_for_function("!document.querySelector('.problem:not([hidden])')")
    page.evaluate(SIZES_STAND)
    del before[0]["PreviewAny"]
    assert (heights(page), page.evaluate("findOurs('LiveLoraGrid').widgets.length")) == before


def test_a_mistake_in_a_subgraph_is_told_inside(page, files):
    open_graph(page, dataset(folder="nowhere"))
    page.evaluate("() => { app.graph.convertToSubgraph(new Set(app.graph.nodes)); }")
    page.evaluate("app.loadGraphData(app.graph.serialize())")
    page.evaluate("() => { const [node] = app.graph.nodes; app.canvas.openSubgraph(node.subgraph, node); }")
    queue(page)
    assert "nowhere' does not exist" in said(page, "LiveLoraDataset")
    page.evaluate("app.canvas.setGraph(app.rootGraph ?? app.graph)")


def test_a_mistake_of_a_foreign_node_is_left_to_comfyui(page, files):
    open_graph(page, with_vae("not_there.safetensors"))
    queue(page)
    page.wait_for_timeout(500)
    assert page.locator(".problem:not([hidden])").count() == 0


def test_advice_is_amber_and_a_failure_is_red(page):
    open_graph(page, trained())
    page.evaluate("""() => findOurs("LiveLoraTrain").livelora.show({
      state: "failed", message: "It broke.", actions: [], step: 1, steps: 2, warnings: ["It overfits."], loss: null,
      validation: [], skipped: 0, learning_rate: 1e-4 })""")
    assert page.inner_text(".livelora .error") == "It broke."
    assert page.inner_text(".livelora .advice:not(:empty)") == "It overfits."
    red, green, blue = page.evaluate(COLOUR, ".livelora .error")
    assert red - max(green, blue) > 80 and red > 200, "light enough for the dark theme"
    red, green, blue = page.evaluate(COLOUR, ".livelora .advice:not(:empty)")
    assert red > green > blue + 60 and red > 200


REPORT = "() => window.findOurs('LiveLoraReview').widgets.find((w) => w.name === 'report').element.innerText"


def wait_for_report(page, told: str) -> list[str]:
    page.wait_for_function(f"(told) => ({REPORT})().includes(told)", arg=told, timeout=MINUTE)
    return page.evaluate(REPORT).strip().splitlines()


def test_a_report_has_its_warnings_first_and_unfolds(page, files):
    (files / "some.csv").write_text("file_name,caption\na.png,flatmoji\ngone.png,flatmoji\n")
    graph = reviewed(action="read table", table="some.csv", find="square", replace="box")
    graph["data"]["inputs"]["folder"] = "plain"
    open_graph(page, graph)
    page.evaluate(SIZES_STAND)
    before = heights(page)["LiveLoraReview"]
    queue(page)
    lines = wait_for_report(page, "3 captions changed")
    warned = ["1 row of some.csv for images not in the dataset: gone.png",
              "2 images without a row in some.csv, with captions as before: b.png, c.png"]
    changed = ["a.png: “flatmoji, a red square” → “flatmoji”",
               "b.png: “flatmoji, a blue square” → “flatmoji, a blue box”",
               "c.png: “flatmoji, a green square” → “flatmoji, a green box”"]
    assert lines == [*warned, "3 captions changed", changed[0], "2 more lines"]
    red, green, blue = page.evaluate(COLOUR, ".livelora .advice:not(:empty)")
    assert red > green > blue + 60
    page.evaluate(SIZES_STAND)
    assert heights(page)["LiveLoraReview"] == before, "no node grows by a run"
    button = "findOurs('LiveLoraReview').widgets.find((w) => w.name === 'report').element.querySelector('.unfold')"
    page.evaluate(f"{button}.click()")
    page.evaluate(SIZES_STAND)
    assert page.evaluate(REPORT).strip().splitlines() == [*warned, "3 captions changed", *changed, "less"]
    assert heights(page)["LiveLoraReview"] > before
    page.evaluate(f"{button}.click()")
    page.evaluate(SIZES_STAND)
    assert page.evaluate(REPORT).strip().splitlines() == lines
    assert heights(page)["LiveLoraReview"] == before
    assert page.problems == []


def reopen(page, workflow: dict) -> None:
    load(page, workflow)
    page.evaluate(f"() => {{ {FIND} }}")


def test_a_report_is_there_again_after_a_change_of_tabs_and_a_reload(page, files):
    graph = reviewed(find="flatmoji", replace="emoji")
    graph["data"]["inputs"]["folder"] = "plain"
    open_graph(page, graph)
    reopen(page, page.evaluate("app.graph.serialize()"))  # what comes from a prompt has no workflow's id yet
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("app.graph.nodes.length === 0")
    page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.wait_for_function("app.graph.nodes.length === 2")
    queue(page)
    lines = wait_for_report(page, "3 captions changed")
    page.evaluate("app.extensionManager.command.execute('Workspace.NextOpenedWorkflow')")
    page.wait_for_function("app.graph.nodes.length === 0")
    page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.wait_for_function("app.graph.nodes.length === 2")
    assert wait_for_report(page, "3 captions changed") == lines
    workflow = page.evaluate("app.graph.serialize()")
    page.reload()
    on_this_machine.wait_until_open(page)
    reopen(page, workflow)
    assert wait_for_report(page, "3 captions changed") == lines
    set_inputs(page, "LiveLoraReview", replace="sticker")
    changed = page.evaluate("app.graph.serialize()")
    reopen(page, changed)
    page.wait_for_timeout(1000)
    assert "changed" not in page.evaluate(REPORT), "that was another run"
