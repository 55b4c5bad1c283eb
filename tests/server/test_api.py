"""Jobs over HTTP: looking, acting, and what browsers hear."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from client import job_folder, newest_job
from graphs import training, with_preview, with_save
from raw import act, ask
from trainings import is_at, is_in, may, start


def test_the_list_and_the_details(server):
    server.run(with_preview(training(seed=750, steps=3), "owl\nred apple", every=2))
    listed = server.get("/livelora/jobs")[-1]
    facts = server.get(f"/livelora/jobs/{listed['job']}")
    assert {name: facts[name] for name in listed} == listed
    assert (facts["state"], facts["step"], facts["steps"], len(facts["losses"])) == ("done", 3, 3, 3)
    assert facts["samples"] == [f"step_{step:06}_{prompt:02}.png" for step in (0, 2, 3) for prompt in (0, 1)]
    files = [p for p in job_folder(server, listed["job"]).rglob("*") if p.is_file()]
    assert abs(facts["disk_bytes"] - sum(p.stat().st_size for p in files)) < 4096 * 10  # folders count a little
    picture = ask(server, "GET", f"/livelora/jobs/{listed['job']}/samples/{facts['samples'][0]}")
    assert picture.body == (job_folder(server, listed["job"]) / "samples" / facts["samples"][0]).read_bytes()


def test_metrics_come_page_by_page_and_whole(server):
    server.run(training(seed=751, steps=7, held_out=2.0, validate_every=2))
    job = newest_job(server)
    lines = [json.loads(line) for line in (job_folder(server, job) / "metrics.jsonl").read_text().splitlines()]
    for most in (1, 2, 3, 5, 100):
        found, since = [], -1
        while page := server.get(f"/livelora/jobs/{job}/metrics?since={since}&most={most}")["lines"]:
            found, since = found + page, page[-1]["step"]
        assert found == lines
    after = server.get(f"/livelora/jobs/{job}/metrics?since=4")
    assert after == {"lines": [line for line in lines if line["step"] > 4], "last": 7}
    assert server.get(f"/livelora/jobs/{job}/metrics?since=7") == {"lines": [], "last": 7}


def test_metrics_of_a_training_are_neither_lost_nor_doubled(server):
    """A held-out loss is written some time after the loss of its step."""
    server.run(training(seed=752, steps=12, held_out=2.0, validate_every=1, mode="background"))
    job, found, since, state = newest_job(server), [], -1, ""
    while state != "done":
        state = server.get(f"/livelora/jobs/{job}")["state"]
        page = server.get(f"/livelora/jobs/{job}/metrics?since={since}")
        found, since = found + page["lines"], page["last"]
    assert found == [json.loads(line) for line in (job_folder(server, job) / "metrics.jsonl").read_text().splitlines()]


def test_every_action_of_a_training(server, wait_for):
    job = start(server, seed=753)
    wait_for(server, job, is_at(2))
    assert act(server, job, "sample").status == act(server, job, "save").status == 200
    wait_for(server, job, lambda facts: len(facts["samples"]) == 2 and facts["snapshots"])
    assert act(server, job, "share", {"policy": "fair share"}).json["sharing"] == "fair share"
    assert act(server, job, "extend", {"steps": 50}).status == 200
    assert wait_for(server, job, may("pause"))["steps"] == 450
    assert act(server, job, "pause").status == 200
    step = wait_for(server, job, is_in("paused"))["step"]
    answer = act(server, job, "resume")
    assert answer.status == 200 and "prompt_id" not in answer.json  # its model is still in memory
    wait_for(server, job, is_at(step + 1))
    assert act(server, job, "delete").status == 409
    assert act(server, job, "stop").status == 200
    wait_for(server, job, is_in("stopped"))
    assert act(server, job, "delete").json == {"deleted": job}
    assert not job_folder(server, job).exists()
    assert ask(server, "GET", f"/livelora/jobs/{job}").status == 404


def test_the_queue_is_put_in_order(server, wait_for):
    jobs = [start(server, seed) for seed in (754, 755, 756)]
    wait_for(server, jobs[0], is_at(1))
    before = [server.get(f"/livelora/jobs/{job}")["position"] for job in jobs[1:]]
    assert act(server, jobs[2], "move", {"position": before[0]}).json["position"] == before[0]
    assert server.get(f"/livelora/jobs/{jobs[1]}")["position"] == before[1]
    for job in reversed(jobs):
        assert act(server, job, "discard").status == 200
        facts = wait_for(server, job, is_in("stopped"))
        assert (facts["losses"], facts["samples"], facts["snapshots"]) == ([], [], [])
        assert act(server, job, "delete").status == 200


def test_a_duplicate_is_another_job(server, wait_for):
    server.run(with_save(training(seed=757, steps=2, held_out=2.0), "another"))
    job = newest_job(server)
    answer = act(server, job, "duplicate", {"changes": {"seed": 758, "rank": 8, "steps": 3, "learning_rate": 1}})
    server.result(answer.json["prompt_id"])
    copy = newest_job(server)
    facts = wait_for(server, copy, is_in("done"))
    one = server.get(f"/livelora/jobs/{job}")["recipe"]
    assert facts["recipe"] == {**one, "seed": 758, "rank": 8, "steps": 3, "learning_rate": 1.0}
    assert copy != job and one["seed"] == 757
    assert facts["saved"] == ["another_00002.safetensors"]  # by itself: LoRA Train alone was queued


def test_ten_clients_at_once(server, wait_for):
    """Each action is applied once or refused; the count of steps tells."""
    job = start(server, seed=759)
    wait_for(server, job, is_at(1))
    with ThreadPoolExecutor(10) as clients:
        answers = list(clients.map(lambda i: act(server, job, ("extend", "pause", "resume")[i % 3],
                                                 {"steps": 10 + i} if i % 3 == 0 else {}), range(30)))
    assert {answer.status for answer in answers} <= {200, 409}
    assert all(answer.error for answer in answers if answer.status == 409)
    extended = sum(10 + i for i, answer in enumerate(answers) if i % 3 == 0 and answer.status == 200)
    assert wait_for(server, job, may("stop"))["steps"] == 400 + extended
    assert act(server, job, "stop").status == 200
    facts = wait_for(server, job, is_in("stopped"))
    on_disk = json.loads((job_folder(server, job) / "job.json").read_text())
    assert (on_disk["state"], on_disk["step"], on_disk["recipe"]) == ("stopped", facts["step"], facts["recipe"])


def test_events(server, wait_for):
    """Two browsers; one of them queues the workflow."""
    heard: dict[str, list[dict]] = {server.client_id: [], "another": []}
    over = threading.Event()

    async def listen(client: str) -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{server.url}/ws?clientId={client}") as socket:
                ready.wait()
                while not over.is_set():
                    with contextlib.suppress(asyncio.TimeoutError):
                        message = await socket.receive(timeout=0.5)
                        if message.type == aiohttp.WSMsgType.TEXT and "livelora." in message.data:
                            heard[client].append(json.loads(message.data))

    ready = threading.Barrier(3)
    with ThreadPoolExecutor(2) as browsers:
        try:
            listening = [browsers.submit(asyncio.run, listen(client)) for client in heard]
            ready.wait(30)
            server.run(with_preview(training(seed=762, steps=3), "owl", every=3))
            job = newest_job(server)
            assert act(server, job, "delete").status == 200
            end = time.monotonic() + 60
            while not all(told and told[-1]["type"] == "livelora.deleted" for told in heard.values()):
                assert time.monotonic() < end, heard
                time.sleep(0.05)
        finally:
            over.set()
    assert [future.result() for future in listening] == [None, None]
    of = {client: [(m["type"].removeprefix("livelora."), m["data"]) for m in told] for client, told in heard.items()}
    assert all(facts["job"] == job for told in of.values() for _, facts in told)
    own, other = of[server.client_id], of["another"]
    assert [(facts["train_node"], facts["workflow"]) for kind, facts in own if kind == "job"] == [("train", None)]
    assert [event for event in own if event[0] != "job"] == other  # everybody hears the rest
    states = {facts["state"] for kind, facts in other if kind == "progress"}
    assert states == {"queued", "preparing", "training", "finishing", "done"}
    assert [facts["file"] for kind, facts in other if kind == "sample"] == [f"step_00000{i}_00.png" for i in (0, 3)]
    assert other[-1] == ("deleted", {"job": job})
