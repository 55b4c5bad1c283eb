"""A job in the background: prompts run between its steps, nothing in the live model changes, queueing again
attaches."""

from __future__ import annotations

import numpy as np
import pytest
from client import newest_job
from comfyui import Failed
from graphs import drawing, training, with_preview, with_save
from safetensors import safe_open


def test_a_picture_is_the_same_before_during_and_after_training(server, draw, wait_for):
    before = draw(server, "owl")
    graph = training(seed=20, steps=400, mode="background", batch_size=4)
    server.run(with_preview(graph, "flatmoji, owl", every=4))
    job = newest_job(server)
    begun = wait_for(server, job, lambda facts: facts["step"] >= 3)
    during, ended = [], begun
    while len(during) < 3 or (ended["step"] == begun["step"] and len(during) < 30):
        during.append(draw(server, "owl"))
        ended = server.get(f"/livelora/jobs/{job}")
    assert begun["state"] == ended["state"] == "training" and begun["step"] < ended["step"] < 400
    server.post(f"/livelora/jobs/{job}/stop")
    wait_for(server, job, lambda facts: facts["state"] == "stopped")
    after = draw(server, "owl")
    assert all(np.array_equal(before, picture) for picture in (*during, after))


def test_training_is_not_changed_by_prompts_in_between(server, draw, wait_for):
    """Same recipe but for what else ran: the same losses, bit for bit."""
    server.run(training(seed=21, steps=12))
    undisturbed = server.get(f"/livelora/jobs/{newest_job(server)}")["losses"]
    server.run(training(seed=21, steps=12, save_every=5, mode="background"))  # save_every makes it another job
    job = newest_job(server)
    draw(server, "owl")
    draw(server, "red apple")
    disturbed = wait_for(server, job, lambda facts: facts["state"] == "done")["losses"]
    assert disturbed == undisturbed


def test_queueing_again_attaches_and_gives_the_newest_lora(server, wait_for):
    graph = with_save(training(seed=22, steps=300, mode="background", batch_size=4), "newest")
    first = server.run(graph)
    assert "save" not in first  # nothing was learned yet: Save LoRA was passed over, without an error
    job = newest_job(server)
    wait_for(server, job, lambda facts: facts["step"] >= 5)
    second = server.run(graph)
    wait_for(server, job, lambda facts: facts["step"] >= 15)
    third = server.run(graph)
    assert newest_job(server) == job
    assert (second["save"]["text"], third["save"]["text"]) == (["Saved newest.safetensors"],
                                                              ["Saved newest_00002.safetensors"])
    server.post(f"/livelora/jobs/{job}/stop")
    wait_for(server, job, lambda facts: facts["state"] == "stopped")
    from safetensors.torch import load_file

    folder = server.base / "models" / "loras"
    one, two = (load_file(folder / f"{name}.safetensors") for name in ("newest", "newest_00002"))
    assert one.keys() == two.keys() and any(not one[k].equal(two[k]) for k in one)


def test_jobs_wait_for_each_other(server, wait_for):
    server.run(training(seed=23, steps=300, mode="background"))
    first = newest_job(server)
    server.run(training(seed=24, steps=3, mode="background"))
    second = newest_job(server)
    wait_for(server, first, lambda facts: facts["step"] >= 2)
    assert server.get(f"/livelora/jobs/{second}")["state"] == "queued"
    server.post(f"/livelora/jobs/{first}/stop")
    wait_for(server, second, lambda facts: facts["state"] == "done")


def test_a_background_training_saves_its_lora_when_it_ends(server, wait_for):
    """Nobody queues anything again. What does, afterwards, gets that file and makes no second one."""
    graph = with_save(training(seed=23, steps=4, mode="background"), "people/overnight")
    server.run(graph)
    job = newest_job(server)
    facts = wait_for(server, job, lambda facts: facts["state"] == "done")
    assert facts["saves"] == ["people/overnight"] and facts["saved"] == ["people/overnight.safetensors"]
    listed = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    assert "people/overnight.safetensors" in str(listed)
    with safe_open(server.base / "models" / "loras" / "people" / "overnight.safetensors", framework="pt") as file:
        assert file.metadata()["ss_steps"] == "4" and file.metadata()["ss_output_name"] == "overnight"
    assert server.run(graph)["save"]["text"] == ["Saved people/overnight.safetensors"]
    server.post(f"/livelora/jobs/{job}/duplicate", {"changes": {"seed": 24}})
    wait_for(server, job, lambda facts: len(server.get("/livelora/jobs")) and newest_job(server) != job)
    other = wait_for(server, newest_job(server), lambda facts: facts["state"] == "done")
    assert other["saved"] == ["people/overnight_00002.safetensors"]
    assert server.post(f"/livelora/jobs/{job}/export")["saved"] == ["people/overnight.safetensors"]


def test_nothing_is_trained_for_a_file_that_cannot_be_saved(server):
    """ComfyUI runs LoRA Train although another output of the same prompt is refused."""
    before = server.get("/livelora/jobs")
    prompt = server.post("/prompt", {"prompt": with_save(training(seed=25, steps=4), "../overnight")})["prompt_id"]
    with pytest.raises(Failed, match=r"Save LoRA \(node save\) could not save what is trained, so nothing is trained. "
                                     r"The LoRA's name must be a file name"):
        server.result(prompt)
    assert server.get("/livelora/jobs") == before


def test_nothing_is_trained_for_nodes_that_cannot_run(server):
    """ComfyUI would draw nothing after the training. Whoever runs LoRA Train alone does not ask for a picture, and one
    that is trained is handed to those that can run."""
    graph = training(seed=26, steps=2) | {name: node for name, node in drawing("owl", model=["train", 0]).items()
                                          if name != "none guided"}
    graph["sampler"]["inputs"].pop("positive")
    graph["sampler"]["inputs"]["negative"] = ["guided", 0]

    def run(**more) -> dict:
        return server.result(server.post("/prompt", {"prompt": graph, **more})["prompt_id"])

    before = server.get("/livelora/jobs")
    with pytest.raises(Failed, match=r"What follows LoRA Train cannot run, so nothing is trained. "
                                     r"KSampler \(node sampler\): Required input is missing: positive. Correct that"):
        run()
    assert server.get("/livelora/jobs") == before
    assert "train" in run(partial_execution_targets=["train"])
    graph["model of it"] = {"class_type": "PreviewAny", "inputs": {"source": ["train", 3]}}
    assert run()["model of it"]["text"] == [newest_job(server)]
