"""Jobs that only lie on disk: bringing them back queues their workflow in ComfyUI."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client import job_folder
from comfyui import Failed, Server
from graphs import training
from raw import act
from trainings import is_at, is_in, start


def until(server: Server, job: str, condition) -> None:
    while not condition(server.get(f"/livelora/jobs/{job}")):
        time.sleep(0.05)


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory):
    """What a server leaves on disk that was closed while a job trained, and the job's id."""
    with Server(tmp_path_factory.mktemp("left")) as first:
        job = start(first, seed=760, steps=5)
        until(first, job, is_in("done"))
        assert act(first, job, "extend", {"steps": 300}).json["prompt_id"]
        until(first, job, is_at(7))
    return first.base, job


@pytest.fixture
def paused(left_behind, tmp_path):
    """Starts a server with that job, after `change` was made to its folder."""
    servers, (base, job) = contextlib.ExitStack(), left_behind

    def begin(change=lambda folder: None) -> tuple[Server, str]:
        shutil.copytree(base / "user", tmp_path / "user")
        server = Server(tmp_path)
        change(job_folder(server, job))
        return servers.enter_context(server), job

    with servers:
        yield begin


def test_resuming_after_a_restart_queues_the_workflow(paused, wait_for):
    server, job = paused()
    assert server.get(f"/livelora/jobs/{job}")["state"] == "paused"
    assert act(server, job, "share", {"policy": "fair share"}).status == 200
    answer = act(server, job, "resume", {"client_id": server.client_id})
    server.result(answer.json["prompt_id"])
    assert wait_for(server, job, is_at(9))["sharing"] == "fair share"
    [entry] = server.get(f"/history/{answer.json['prompt_id']}").values()
    _, _, prompt, extra, outputs, *_ = entry["prompt"]
    assert outputs == ["train"] and prompt["train"]["inputs"]["mode"] == "background"
    assert extra["client_id"] == server.client_id and extra["extra_pnginfo"]["livelora_job"] == job
    assert len(server.get("/livelora/jobs")) == 1


def test_extending_after_a_restart(paused, wait_for):
    """One that is paused is lengthened as it lies there; one that is stopped goes on, and needs its workflow."""
    server, job = paused()
    assert act(server, job, "extend", {"steps": 20}).json["steps"] == 325
    assert act(server, job, "stop").json["state"] == "stopped"
    answer = act(server, job, "extend", {"steps": 5})
    server.result(answer.json["prompt_id"])
    assert wait_for(server, job, is_at(9))["steps"] == 330
    too_many = act(server, job, "extend", {"steps": 100000})
    assert too_many.status == 400 and "100000 steps in all, got 100325" in too_many.error


def test_a_job_waits_for_one_prompt_until_that_is_gone(paused, wait_for):
    server, job = paused()
    busy = server.queue(training(seed=761, steps=300))
    assert act(server, job, "resume").status == 200
    with ThreadPoolExecutor(5) as clients:
        answers = list(clients.map(lambda _: act(server, job, "resume"), range(5)))
    assert {(answer.status, "waits in ComfyUI's queue already" in answer.error) for answer in answers} == {(409, True)}
    server.post("/queue", {"clear": True})
    with ThreadPoolExecutor(5) as clients:
        answers = list(clients.map(lambda _: act(server, job, "resume"), range(5)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]
    server.post("/interrupt")
    with pytest.raises(Failed, match="interrupted"):
        server.result(busy)
    wait_for(server, job, is_at(8))


def test_a_job_whose_workflow_is_lost(paused):
    server, job = paused(lambda folder: (folder / "graph.json").unlink())
    for action, body in (("resume", {}), ("duplicate", {"changes": {"seed": 5}})):
        answer = act(server, job, action, body)
        assert answer.status == 409 and "workflow that this job came from is not known" in answer.error


def test_a_job_whose_workflow_runs_no_more(paused):
    def move_dataset(folder: Path) -> None:
        facts = json.loads((folder / "graph.json").read_text())
        facts["prompt"]["data"]["inputs"]["folder"] = "nowhere"
        (folder / "graph.json").write_text(json.dumps(facts))

    server, job = paused(move_dataset)
    answer = act(server, job, "resume")
    assert answer.status == 409 and "LiveLoraDataset (node data)" in answer.error
    assert "nowhere' does not exist. Choose a folder" in answer.error
    facts = server.get(f"/livelora/jobs/{job}")
    assert facts["state"] == "paused" and "resume" in facts["actions"] and "does not exist" in facts["message"]
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []}
