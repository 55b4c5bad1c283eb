"""A sample carries the graph that it came from, as core's pictures do."""

from __future__ import annotations

import io
import json

import pytest
from comfyui import Server
from demo_page import MINUTE, job_of, new_seed, queue_demo, wait_for_line
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
    assert page.problems == []
