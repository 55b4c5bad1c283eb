"""Kill −9 at any moment costs at most the steps since the last state."""

from __future__ import annotations

import signal
import time

from client import newest_job
from graphs import training, with_save


def test_a_killed_server_goes_on_from_the_last_state(own_server, wait_for):
    straight = training(seed=50, steps=40, batch_size=4)
    own_server.run(straight)
    expected = own_server.get(f"/livelora/jobs/{newest_job(own_server)}")["losses"]

    graph = with_save(training(seed=50, steps=40, batch_size=4, save_every=5), "survivor")
    own_server.queue(graph)
    while len(own_server.get("/livelora/jobs")) < 2:
        time.sleep(0.05)
    job = newest_job(own_server)
    wait_for(own_server, job, lambda facts: facts["step"] >= 12)
    own_server.stop(signal.SIGKILL)
    states = own_server.base / "user" / "livelora" / "jobs" / job / "state"
    assert list(states.glob("step_0000*"))

    own_server.start()
    outputs = own_server.run(graph)
    assert outputs["save"]["text"] == ["Saved survivor.safetensors"]
    assert newest_job(own_server) == job
    facts = own_server.get(f"/livelora/jobs/{job}")
    assert facts["state"] == "done" and facts["losses"] == expected
    assert "LoRA training " + job + ": training Going on from step " in own_server.log()
    assert not list((own_server.base / "user" / "livelora").rglob("*.tmp"))


def test_a_server_that_is_told_to_end_saves_first(own_server, wait_for):
    own_server.run(training(seed=51, steps=1000, batch_size=4, mode="background"))
    job = newest_job(own_server)
    wait_for(own_server, job, lambda facts: facts["step"] >= 3)
    began = time.monotonic()
    own_server.stop(signal.SIGINT)
    assert time.monotonic() - began < 20
    folder = own_server.base / "user" / "livelora" / "jobs" / job
    assert list((folder / "state").glob("step_*/state.json")) and (folder / "lora.safetensors").exists()
