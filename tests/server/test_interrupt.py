"""Stopping: ComfyUI's own button and ours. What was learned is kept, and queueing again goes on from there."""

from __future__ import annotations

import time

import pytest
from client import newest_job
from comfyui import Failed
from graphs import training, with_save


def begin(server, graph, wait_for, step: int) -> tuple[str, str]:
    known = {job["job"] for job in server.get("/livelora/jobs")}
    prompt = server.queue(graph)
    end = time.monotonic() + 60
    while newest_job_or_none(server, known) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    job = newest_job(server)
    wait_for(server, job, lambda facts: facts["step"] >= step)
    return prompt, job


def newest_job_or_none(server, known):
    jobs = [job["job"] for job in server.get("/livelora/jobs") if job["job"] not in known]
    return jobs[-1] if jobs else None


def test_interrupting_the_prompt_stops_the_job_after_the_step_and_queueing_again_goes_on(server, wait_for):
    undisturbed = training(seed=30, steps=24, batch_size=4)
    server.run(undisturbed)
    expected = server.get(f"/livelora/jobs/{newest_job(server)}")["losses"]

    graph = with_save(training(seed=30, steps=24, batch_size=4, save_every=7), "gone_on")
    prompt, job = begin(server, graph, wait_for, step=10)
    server.post("/interrupt", {})
    with pytest.raises(Failed, match="interrupted"):
        server.result(prompt)
    stopped = server.get(f"/livelora/jobs/{job}")
    assert stopped["state"] == "stopped" and 10 <= stopped["step"] < 24
    assert f"Stopped at step {stopped['step']} of 24. Queue again to go on." == stopped["message"]
    assert (server.base / "user" / "default" / "livelora" / "jobs" / job / "lora.safetensors").exists()

    outputs = server.run(graph)
    assert outputs["save"]["text"] == ["Saved gone_on.safetensors"]
    ended = server.get(f"/livelora/jobs/{job}")
    assert ended["state"] == "done" and ended["losses"] == expected


def test_our_stop_button_ends_the_job_and_the_graph_goes_on_with_what_was_learned(server, wait_for):
    graph = with_save(training(seed=31, steps=500, batch_size=4), "kept")
    prompt, job = begin(server, graph, wait_for, step=3)
    server.post(f"/livelora/jobs/{job}/stop")
    outputs = server.result(prompt)
    assert outputs["save"]["text"] == ["Saved kept.safetensors"]
    assert server.get(f"/livelora/jobs/{job}")["state"] == "stopped"


def test_a_prompt_after_an_interruption_runs(server, draw, wait_for):
    prompt, _ = begin(server, training(seed=32, steps=500), wait_for, step=2)
    server.post("/interrupt", {})
    with pytest.raises(Failed):
        server.result(prompt)
    assert draw(server).shape == (128, 128, 3)


def test_interrupting_another_prompt_leaves_a_background_job_alone(server, wait_for):
    server.run(training(seed=33, steps=20, batch_size=4, mode="background"))
    job = newest_job(server)
    wait_for(server, job, lambda facts: facts["step"] >= 2)
    for _ in range(3):
        server.post("/interrupt", {})
        time.sleep(0.1)
    assert wait_for(server, job, lambda facts: facts["state"] not in ("training", "finishing"))["state"] == "done"
