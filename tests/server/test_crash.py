"""Kill −9 at any moment costs at most the steps since the last state; being told to end costs nothing."""

from __future__ import annotations

import signal
import time

import pytest
from client import job_folder, newest_job
from comfyui import Refused, Server
from graphs import training, with_preview, with_save
from raw import act, ask
from trouble import dawdling, troubled_server

ALLOWED = 10.0
"""Seconds that ComfyUI may take to end, beside the step under way."""


def begin(server: Server, graph: dict) -> str:
    """Queues a graph and gives its job, without waiting for either to end."""
    known = len(server.get("/livelora/jobs"))
    server.queue(graph)
    while len(server.get("/livelora/jobs")) == known:
        time.sleep(0.02)
    return newest_job(server)


def end(server: Server) -> float:
    """As Ctrl+C does. Gives the seconds it took."""
    began = time.monotonic()
    server.stop(signal.SIGINT)
    assert server.process.returncode == 0, server.log()[-3000:]  # it was killed, or Python aborted
    return time.monotonic() - began


def resume(server: Server, job: str, wait_for) -> dict:
    """Over HTTP, to the end."""
    answer = act(server, job, "resume")
    assert answer.status == 200, answer
    return wait_for(server, job, lambda facts: facts["state"] in ("done", "failed", "stopped"))


@pytest.fixture
def undisturbed(server):
    """The losses of a training that nothing came between."""
    def undisturbed(**recipe) -> list[float]:
        server.run(training(**recipe))
        return server.get(f"/livelora/jobs/{newest_job(server)}")["losses"]

    return undisturbed


def test_a_killed_server_goes_on_from_the_last_state(own_server, wait_for):
    straight = training(seed=50, steps=24, batch_size=4)
    own_server.run(straight)
    expected = own_server.get(f"/livelora/jobs/{newest_job(own_server)}")["losses"]

    graph = with_save(training(seed=50, steps=24, batch_size=4, save_every=4), "survivor")
    job = begin(own_server, graph)
    wait_for(own_server, job, lambda facts: facts["step"] >= 10)
    own_server.stop(signal.SIGKILL)
    assert list((job_folder(own_server, job) / "state").glob("step_0000*"))

    own_server.start()
    outputs = own_server.run(graph)
    assert outputs["save"]["text"] == ["Saved survivor.safetensors"]
    assert newest_job(own_server) == job
    facts = own_server.get(f"/livelora/jobs/{job}")
    assert facts["state"] == "done" and facts["losses"] == expected
    assert "LoRA training " + job + ": training Going on from step " in own_server.log()
    assert not list((own_server.base / "user").rglob("*.tmp"))


def test_a_server_that_is_told_to_end_saves_first(own_server, undisturbed, wait_for):
    recipe = {"seed": 51, "steps": 24, "batch_size": 4, "lr_scheduler": "constant"}
    expected = undisturbed(**recipe)
    job = begin(own_server, training(**recipe, mode="background"))
    wait_for(own_server, job, lambda facts: facts["step"] >= 5)
    seconds = end(own_server)
    [state] = (job_folder(own_server, job) / "state").iterdir()
    step = int(state.name.removeprefix("step_"))
    assert 5 <= step < 24

    own_server.start()
    facts = own_server.get(f"/livelora/jobs/{job}")
    assert (facts["state"], facts["step"]) == ("paused", step)
    assert facts["message"] == f"ComfyUI was closed at step {step} of 24. Resume to go on."
    facts = resume(own_server, job, wait_for)
    assert facts["state"] == "done" and facts["losses"] == expected
    assert f"LoRA training {job}: training Going on from step {step}." in own_server.log()
    assert seconds < ALLOWED + longest_step(own_server, job)


def longest_step(server: Server, job: str) -> float:
    lines = server.get(f"/livelora/jobs/{job}/metrics")["lines"]
    return max(line["seconds"] for line in lines if "seconds" in line)


def test_a_server_that_is_told_to_end_while_a_prompt_waits_for_its_job(own_server, undisturbed, wait_for):
    """The prompt ends with the server: nothing of a job half done comes out of it."""
    recipe = {"seed": 52, "steps": 20, "batch_size": 4}
    expected = undisturbed(**recipe)
    job = begin(own_server, with_save(training(**recipe), "half_done"))
    wait_for(own_server, job, lambda facts: facts["step"] >= 4)
    seconds = end(own_server)
    own_server.start()
    facts = own_server.get(f"/livelora/jobs/{job}")
    assert facts["state"] == "paused" and facts["message"].startswith("ComfyUI was closed at step ")
    assert not list((own_server.base / "models" / "loras").iterdir())
    facts = resume(own_server, job, wait_for)
    assert facts["state"] == "done" and facts["losses"] == expected
    assert seconds < ALLOWED + longest_step(own_server, job)


def test_a_server_that_is_told_to_end_while_a_prompt_has_the_gpu(tmp_path, wait_for):
    """The job waits for the prompt then, and saves its state all the same."""
    with troubled_server(tmp_path) as server:
        job = begin(server, training(seed=55, steps=200, batch_size=2, mode="background"))
        wait_for(server, job, lambda facts: facts["step"] >= 4)
        server.queue(dawdling(60, seed=1))
        step = None
        while step != (now := server.get(f"/livelora/jobs/{job}")["step"]):
            step = now
            time.sleep(5)  # longer than a step
        assert end(server) < ALLOWED
        server.start()
        facts = server.get(f"/livelora/jobs/{job}")
        assert (facts["state"], facts["step"], facts["snapshots"]) == ("paused", step, [step])


def test_a_second_comfyui_on_the_same_user_folder_leaves_the_jobs_alone(own_server, tmp_path, wait_for):
    """As people do who have two GPUs. It takes over when the first is gone, be it killed."""
    job = begin(own_server, training(seed=55, steps=3000))
    wait_for(own_server, job, lambda facts: facts["step"] > 1)
    with Server(tmp_path / "second", "--user-directory", str(own_server.base / "user")) as second:
        answer = ask(second, "GET", "/livelora/jobs")
        assert answer.status == 409 and answer.error.startswith("Another ComfyUI that runs now has the jobs")
        with pytest.raises(Refused, match="Another ComfyUI that runs now has the jobs"):
            second.run(training(seed=56, steps=2))
        facts = own_server.get(f"/livelora/jobs/{job}")
        assert facts["state"] == "training" and not facts["warnings"]
        own_server.stop(signal.SIGKILL)
        [facts] = second.get("/livelora/jobs")
        assert (facts["job"], facts["state"]) == (job, "paused")


def test_a_server_that_is_told_to_end_while_a_job_is_being_prepared(tmp_path, undisturbed, wait_for):
    recipe = {"seed": 53, "steps": 4}
    expected = undisturbed(**recipe)
    with troubled_server(tmp_path) as server:
        server.queue(training(**recipe, mode="background"))
        server.queue(dawdling(60, seed=2))  # the job gets no further than that
        while not server.get("/livelora/jobs"):
            time.sleep(0.02)
        job = newest_job(server)
        wait_for(server, job, lambda facts: facts["state"] == "preparing" and "Encoding" in facts["message"])
        assert end(server) < ALLOWED
        server.start()
        facts = server.get(f"/livelora/jobs/{job}")
        assert (facts["state"], facts["message"]) == ("paused", "ComfyUI was closed before training began. "
                                                                "Resume to go on.")
        facts = resume(server, job, wait_for)
        assert facts["state"] == "done" and facts["losses"] == expected


def test_a_pause_at_a_measured_step_leaves_nothing_out(own_server, wait_for):
    """The measurement and the pictures that were due after the step are made when the job goes on."""
    graph = with_preview(training(seed=54, steps=6, mode="background", held_out=4.0, validate_every=1), "owl", every=1)
    job = begin(own_server, graph)
    for step in (2, 4):
        wait_for(own_server, job, lambda facts, step=step: facts["step"] >= step)
        act(own_server, job, "pause")
        if wait_for(own_server, job, lambda facts: facts["state"] in ("paused", "done"))["state"] == "paused":
            act(own_server, job, "resume")
    facts = wait_for(own_server, job, lambda facts: facts["state"] == "done")
    assert [step for step, _ in facts["validation"]] == list(range(7))
    assert facts["samples"] == [f"step_{step:06}_00.png" for step in range(7)]
