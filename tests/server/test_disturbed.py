"""Whatever prompts do with the model while a job trains in the background, the job learns the same, to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from client import job_folder, newest_job, pixels
from comfyui import Failed, Server
from graphs import drawing, training, with_preview, with_save
from other_models import save_controlnet
from safetensors.torch import load_file
from trouble import failing, health, troubled_server

GRAPH = dict(seed=70, steps=45, batch_size=2, ema_decay=0.9, save_every=20, gradient_checkpointing="all")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = troubled_server(tmp_path_factory.mktemp("comfyui"))
    (running.base / "models" / "controlnet").mkdir(parents=True)
    save_controlnet(running.base / "models" / "controlnet" / "tiny.safetensors")
    with running:
        running.run(with_save(training(seed=71, steps=3, learning_rate=0.01), "other"))
        yield running


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> dict:
    """The LoRA of a job that trained alone; the job is then deleted, so that the same can be trained again."""
    server.run(training(**GRAPH))
    job = newest_job(server)
    lora = load_file(job_folder(server, job) / "lora.safetensors")
    server.post(f"/livelora/jobs/{job}/delete")
    return lora


def with_controlnet(graph: dict) -> dict:
    graph["hint"] = {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 128, "batch_size": 1,
                                                            "color": 0xFF8000}}
    graph["control"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "tiny.safetensors"}}
    graph["controlled"] = {"class_type": "ControlNetApplyAdvanced", "inputs": {
        "positive": ["guided", 0], "negative": ["none guided", 0], "control_net": ["control", 0], "image": ["hint", 0],
        "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}}
    graph["sampler"]["inputs"] |= {"positive": ["controlled", 0], "negative": ["controlled", 1]}
    return graph


def larger(graph: dict) -> dict:
    graph["latent"]["inputs"] |= {"width": 192, "height": 64}
    return graph


def on_another_model(graph: dict) -> dict:
    """Another node is another copy of the model: ComfyUI loads it beside, or instead of, ours."""
    graph["another"] = {"class_type": "LiveLoraDemoModel", "inputs": {}}
    graph["sampler"]["inputs"]["model"] = ["another", 0]
    return graph


DRAWN: dict[str, Callable[[str], dict]] = {
    "the base": lambda prefix: drawing("owl", prefix=prefix),
    "another LoRA": lambda prefix: drawing("owl", prefix=prefix, lora="other.safetensors"),
    "a ControlNet": lambda prefix: with_controlnet(drawing("owl", prefix=prefix)),
    "another size": lambda prefix: larger(drawing("owl", prefix=prefix)),
    "another model": lambda prefix: on_another_model(drawing("owl", prefix=prefix)),
}


def disturb(server: Server, round_: int) -> dict[str, np.ndarray]:
    """All of it once, and the pictures."""
    pictures = {}
    for number, (name, graph) in enumerate(DRAWN.items()):
        pictures[name] = pixels(server, server.run(graph(f"disturbed{round_}{number}")))
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(0.2)
    server.post("/free", {"unload_models": True})
    with pytest.raises(Failed, match="says that the GPU is full"):
        server.run(failing("OutOfMemoryError", round_))
    return pictures


def test_every_kind_of_prompt_leaves_the_training_as_it_would_have_been(server, undisturbed, wait_for):
    alone = disturb(server, 0)
    assert len({picture.tobytes() for picture in alone.values()}) == 4  # only another copy of the model draws the same
    server.run(with_preview(training(**GRAPH, mode="background"), "flatmoji, owl", every=25))
    job, round_ = newest_job(server), 1
    wait_for(server, job, lambda facts: facts["step"] >= 2)
    while (facts := server.get(f"/livelora/jobs/{job}"))["state"] == "training" and facts["step"] < 36:
        pictures = disturb(server, round_)
        assert all(np.array_equal(pictures[name], alone[name]) for name in alone)
        round_ += 1
        wait_for(server, job, lambda now, step=facts["step"]: now["step"] > step + 7 or now["state"] != "training")
    assert round_ > 2
    ended = wait_for(server, job, lambda facts: facts["state"] == "done")
    assert not ended["warnings"] and len(ended["samples"]) == 3
    found = load_file(job_folder(server, job) / "lora.safetensors")
    assert found.keys() == undisturbed.keys() and all(found[k].equal(undisturbed[k]) for k in found)


def test_freeing_memory_again_and_again_ends_neither_the_training_nor_comfyui(server, wait_for):
    """ComfyUI frees it in its prompt thread, but outside any prompt; its list of loaded models has no lock."""
    server.run(training(seed=72, steps=25, batch_size=1))
    expected = server.get(f"/livelora/jobs/{newest_job(server)}")["losses"]
    server.post(f"/livelora/jobs/{newest_job(server)}/delete")
    server.run(training(seed=72, steps=25, batch_size=1, mode="background"))
    job, asked = newest_job(server), 0
    while server.get(f"/livelora/jobs/{job}")["state"] in ("queued", "preparing", "training"):
        for _ in range(3):
            server.post("/free", {"unload_models": True, "free_memory": asked % 3 == 0})
            asked += 1
    ended = wait_for(server, job, lambda facts: facts["state"] in ("done", "failed"))
    assert (ended["state"], ended["losses"]) == ("done", expected), ended["message"]
    assert asked > 50
    assert server.run(drawing("owl", prefix="alive"))["image"]


def test_nothing_is_left_behind(server, wait_for):
    left = health(server)
    assert left["idle"] and not left["in_training"] and "livelora" not in left["threads"]
    assert not list(Path(server.base / "user").rglob("*.tmp"))
