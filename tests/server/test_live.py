"""Live LoRA and LoRA Sample Grid on a real server. The references are core's LoraLoader and the samples themselves."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from client import newest_job, pixels, sample
from comfyui import Failed, Refused
from graphs import drawing, training, with_preview, with_save
from safetensors.torch import save_file

PROMPTS = "flatmoji, owl\nred apple --d 7"


@pytest.fixture(scope="module")
def trained(server):
    """A job that is done, its LoRA in loras as live.safetensors, in full precision."""
    graph = with_preview(training(seed=80, steps=5, save_every=2, keep_states=3), PROMPTS, every=2)
    server.run(with_save(graph, "live", dtype="fp32"))
    return newest_job(server)


def live(job: str, which: str = "newest", strength: float = 1.0, model: str = "model", **more) -> dict:
    return {"class_type": "LiveLoraLive", "inputs": {
        "model": [model, 0], "job": job, "which": which, "strength": strength, **more}}


def drawing_live(prefix: str, *args, **options) -> dict:
    """The owl with Live LoRA, and what the node says."""
    graph = drawing("flatmoji, owl", model=["live", 0], prefix=prefix)
    return {**graph, "live": live(*args, **options), "said": {"class_type": "PreviewAny", "inputs": {
        "source": ["live", 1]}}}


def drawing_by_file(name: str, strength: float) -> dict:
    graph = drawing("flatmoji, owl", lora=name, prefix=f"file{time.time_ns()}")
    graph["lora"]["inputs"]["strength_model"] = strength
    return graph


def grid(job: str, columns: str, labels: bool = False, **more) -> dict:
    """LoRA Sample Grid and Save Image."""
    inputs = {f"columns.{name}" if name in ("most", "strengths") else name: value for name, value in more.items()}
    return {"grid": {"class_type": "LiveLoraGrid", "inputs": {
                "job": job, "columns": columns, "labels": labels, **inputs}},
            "image": {"class_type": "SaveImage", "inputs": {"images": ["grid", 0], "filename_prefix": "grid"}}}


def by_strength(job: str, strengths: str, prompts: str = PROMPTS, **changes) -> dict:
    graph = with_preview(training(seed=80), prompts, every=2, **changes)
    return {**{name: graph[name] for name in ("model", "preview")},
            **grid(job, "strengths", strengths=strengths, model=["model", 0], clip=["model", 1], vae=["model", 2],
                   preview=["preview", 0])}


def cell(page: np.ndarray, row: int, column: int) -> np.ndarray:
    """Of a grid without labels: pictures of 128 pixels with 4 between and 8 around."""
    return page[8 + row * 132:, 8 + column * 132:][:128, :128]


def cached(server, prompt: str) -> list[str]:
    """The nodes that a prompt had from ComfyUI's cache."""
    messages = dict(server.get(f"/history/{prompt}")[prompt]["status"]["messages"])
    return messages["execution_cached"]["nodes"]


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.5, 0.0])
def test_live_lora_draws_what_lora_loader_draws_from_the_saved_file(server, trained, strength):
    outputs = server.run(drawing_live(f"live{strength}", trained, strength=strength))
    expected = pixels(server, server.run(drawing_by_file("live.safetensors", strength)))
    assert np.array_equal(pixels(server, outputs), expected)
    assert outputs["live"]["text"] == [f"{trained}: step 5 of 5"]
    base = pixels(server, server.run(drawing("flatmoji, owl", prefix=f"base{strength}")))
    assert np.array_equal(expected, base) == (strength == 0)


def test_the_lora_of_a_step_is_the_one_that_was_saved_with_its_state(server, trained):
    assert server.get(f"/livelora/jobs/{trained}")["snapshots"] == [2, 4, 5]
    outputs = server.run(drawing_live("step", trained, "step", **{"which.step": 2}))
    assert outputs["live"]["text"] == [f"{trained}: step 2 of 5"]
    shutil.copy(server.base / f"user/default/livelora/jobs/{trained}/state/step_000002/lora.safetensors",
                server.base / "models/loras/step2.safetensors")
    expected = pixels(server, server.run(drawing_by_file("step2.safetensors", 1.0)))
    assert np.array_equal(pixels(server, outputs), expected)
    with pytest.raises(Failed, match=f"Job {trained} has no LoRA of step 3. Choose one of 2, 4, 5, or 'newest'."):
        server.run(drawing_live("nostep", trained, "step", **{"which.step": 3}))


def test_without_held_out_images_the_best_is_the_newest_and_it_says_so(server, trained):
    outputs = server.run(drawing_live("best", trained, "best"))
    assert outputs["live"]["text"] == [
        f"{trained}: step 5 of 5, the newest: without held-out images there is no best one"]


def test_the_best_lora_is_that_of_the_lowest_held_out_loss(server):
    server.run(training(seed=81, steps=6, held_out=2, validate_every=2, learning_rate=0.05))
    job = newest_job(server)
    best, _ = server.get(f"/livelora/jobs/{job}")["best"]
    outputs = server.run(drawing_live("bestof", job, "best"))
    assert outputs["live"]["text"] == [f"{job}: step {best} of 6"]


def step_of(outputs: dict, job: str) -> int:
    """Of the LoRA that was drawn with."""
    return int(outputs["live"]["text"][0].removeprefix(f"{job}: step ").split()[0])


def test_it_draws_again_only_when_there_is_a_newer_lora(server, trained, wait_for):
    graph = drawing_live("again", trained)
    server.run(graph)
    prompt = server.queue(graph)
    server.result(prompt)
    assert {"live", "sampler"} <= {*cached(server, prompt)}

    server.run(training(seed=82, steps=500, mode="background"))
    job = newest_job(server)
    wait_for(server, job, lambda facts: facts["step"] >= 2)
    first = server.run(drawing_live("newer", "newest"))
    wait_for(server, job, lambda facts: facts["step"] > step_of(first, job))
    second = server.run(drawing_live("newer", "newest"))
    server.post(f"/livelora/jobs/{job}/stop")
    assert 2 <= step_of(first, job) < step_of(second, job) < 500
    assert not np.array_equal(pixels(server, first), pixels(server, second))
    wait_for(server, job, lambda facts: facts["state"] == "stopped")


def test_before_the_first_step_the_model_is_as_it_was(server, wait_for):
    server.run(training(seed=83, steps=500, mode="background"))
    first = newest_job(server)
    server.run(training(seed=84, steps=5, mode="background"))
    waiting = newest_job(server)
    try:
        outputs = server.run(drawing_live("nothing", waiting))
        assert outputs["live"]["text"] == [f"{waiting}: no LoRA yet (queued), the model is as it was"]
        base = pixels(server, server.run(drawing("flatmoji, owl", prefix="nothing yet")))
        assert np.array_equal(pixels(server, outputs), base)
        with pytest.raises(Failed, match=f"Job {waiting} has no LoRA yet"):
            server.run(by_strength(waiting, "0, 1"))
        with pytest.raises(Failed, match=f"The job {waiting} has no samples to show"):
            server.run(grid(waiting, "steps", most=8))
    finally:
        for job in (waiting, first):
            server.post(f"/livelora/jobs/{job}/stop")
            wait_for(server, job, lambda facts: facts["state"] == "stopped")


@pytest.mark.parametrize("graph", [drawing_live("no", "20250101-cat-12345678"),
                                   grid("20250101-cat-12345678", "steps", most=8)], ids=["live", "grid"])
def test_a_job_from_another_machine_is_refused_before_anything_runs(server, graph):
    with pytest.raises(Refused) as caught:
        server.run(graph)
    told = str(caught.value.errors)
    assert told.count("There is no job '20250101-cat-12345678' here: it was deleted, or made on another machine. "
                      "Choose one of the list, or 'newest'.") == 1


def test_another_base_model_is_refused(server, trained):
    from tiny_flux import random_flux

    save_file(random_flux(hidden_size=384, num_heads=3), server.base / "models/diffusion_models/wider.safetensors")
    wider = {"class_type": "UNETLoader", "inputs": {"unet_name": "wider.safetensors", "weight_dtype": "default"}}
    with pytest.raises(Failed, match="This LoRA was trained for another base model"):
        server.run({**drawing_live("wider", trained, model="wider"), "wider": wider})


def test_a_linked_job_is_looked_up_when_the_node_runs(server, trained):
    """Linked from an output of any type, here a file's name."""
    graph = {**drawing_live("linked", ["save", 0]), **with_save(training(seed=80, steps=5, save_every=2), "linked")}
    with pytest.raises(Failed, match="There is no job 'linked.safetensors' here"):
        server.run(graph)


def test_a_grid_of_steps_shows_the_samples_pixel_for_pixel(server, trained):
    page = pixels(server, server.run(grid(trained, "steps", most=8)))
    names = [f"step_{step:06}" for step in (0, 2, 4, 5)]
    assert page.shape == (8 + 128 + 4 + 128 + 8, 8 + 4 * 132 - 4 + 8, 3)
    for row in range(2):
        for column, name in enumerate(names):
            assert np.array_equal(cell(page, row, column), np.asarray(sample(server, trained, f"{name}_{row:02}.png")))
    page = pixels(server, server.run(grid(trained, "steps", most=2)))
    assert np.array_equal(cell(page, 0, 1), np.asarray(sample(server, trained, "step_000005_00.png")))
    labelled = pixels(server, server.run(grid(trained, "steps", labels=True, most=2)))
    assert labelled.shape[0] > page.shape[0] and labelled.shape[1] > page.shape[1] + 50


def test_a_grid_of_strengths_begins_with_the_base_and_has_the_newest_samples_at_1(server, trained):
    page = pixels(server, server.run(by_strength(trained, "0, 0.5, 1")))
    for row in range(2):
        for column, name in ((0, "step_000000"), (2, "step_000005")):
            assert np.array_equal(cell(page, row, column), np.asarray(sample(server, trained, f"{name}_{row:02}.png")))
        assert not np.array_equal(cell(page, row, 0), cell(page, row, 1))
        assert not np.array_equal(cell(page, row, 1), cell(page, row, 2))


def test_strengths_name_all_that_is_missing_and_load_nothing(server, trained):
    graph = by_strength(trained, "0, 1")
    for name in ("clip", "preview"):
        del graph["grid"]["inputs"][name]
    with pytest.raises(Failed, match="clip is not connected, preview is not connected. Connect them, or set columns"):
        server.run(graph)
    with pytest.raises(Failed, match="strengths are numbers from -10 to 10 with commas between, got 'strong'"):
        server.run(by_strength(trained, "0, strong"))


def test_a_grid_of_steps_does_not_load_a_model_that_is_wired(server, trained):
    graph = by_strength(trained, "0, 1")
    graph["grid"]["inputs"] |= {"columns": "steps", "columns.most": 1}
    del graph["grid"]["inputs"]["columns.strengths"]
    (server.base / "models/diffusion_models/broken.safetensors").write_bytes(b"no model")
    graph["broken"] = {"class_type": "UNETLoader", "inputs": {
        "unet_name": "broken.safetensors", "weight_dtype": "default"}}
    graph["grid"]["inputs"]["model"] = ["broken", 0]
    page = pixels(server, server.run(graph))
    assert np.array_equal(cell(page, 0, 0), np.asarray(sample(server, trained, "step_000005_00.png")))


def test_the_stop_button_ends_a_grid_of_strengths(server, trained, draw):
    prompt = server.queue(by_strength(trained, "0, 0.25, 0.5, 0.75, 1", sampler_steps=200))
    time.sleep(3)
    began = time.monotonic()
    server.post("/interrupt", {})
    with pytest.raises(Failed, match="interrupted"):
        server.result(prompt)
    assert time.monotonic() - began < 5
    draw(server, "owl")  # the button was meant for that prompt alone


def test_without_a_job_it_says_what_to_do_and_after_a_restart_the_job_is_still_there(own_server):
    with pytest.raises(Failed, match="There is no training job yet. Queue a workflow with LoRA Train first."):
        own_server.run(drawing_live("none", "newest"))
    own_server.run(training(seed=85, steps=2))
    before = own_server.run(drawing_live("before", "newest"))
    own_server.stop()
    own_server.start()
    after = own_server.run(drawing_live("after", "newest"))
    assert before["live"]["text"] == after["live"]["text"] == [f"{newest_job(own_server)}: step 2 of 2"]
    assert np.array_equal(pixels(own_server, before), pixels(own_server, after))
    options = own_server.get("/object_info/LiveLoraLive")["LiveLoraLive"]["input"]["required"]["job"][1]["options"]
    assert options == ["newest", newest_job(own_server)]
