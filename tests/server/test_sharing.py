"""Who goes first: prompts or a training, by the three rules."""

from __future__ import annotations

import threading
import time

import pytest
from client import newest_job
from comfyui import Failed, Server
from graphs import training
from raw import act
from trouble import dawdling, troubled_server

LENGTH = 0.6
"""Seconds of a prompt that does nothing with the model."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with troubled_server(tmp_path_factory.mktemp("sharing")) as server:
        yield server


def begin(server: Server, wait_for, seed: int, **changes) -> str:
    """A job that trains."""
    server.run(training(seed, batch_size=2, mode="background", **changes))
    job = newest_job(server)
    wait_for(server, job, lambda facts: facts["step"] >= 2)
    return job


def end(server: Server, wait_for, job: str) -> None:
    act(server, job, "stop")
    wait_for(server, job, lambda facts: facts["state"] in ("stopped", "done"))


def times(server: Server, prompt: str) -> dict[str, float]:
    """When ComfyUI began and ended a prompt, in seconds since 1970."""
    messages = server.get(f"/history/{prompt}")[prompt]["status"]["messages"]
    return {kind: facts["timestamp"] / 1000 for kind, facts in messages}


class Watch:
    """Looks at a job's step all the time, in a thread."""

    def __init__(self, server: Server, job: str) -> None:
        self._server, self._job, self._looks, self._over = server, job, [], threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            before = time.time()
            step = self._server.get(f"/livelora/jobs/{self._job}")["step"]
            self._looks.append((before, time.time(), step))

    def steps(self, since: float, until: float) -> int:
        """How many were taken between two moments, as far as looks that lie wholly between them tell."""
        seen = [step for before, after, step in self._looks if since <= before and after <= until]
        return seen[-1] - seen[0] if seen else 0


def five_prompts(server: Server, job: str) -> tuple[Watch, list[dict[str, float]]]:
    """Queued at once, and when each of them ran."""
    with Watch(server, job) as watch:
        # The first lasts until the others are queued.
        prompts = [server.queue(dawdling(LENGTH if seed else 5 * LENGTH, seed)) for seed in range(5)]
        for prompt in prompts:
            server.result(prompt)
        time.sleep(0.3)
    return watch, [times(server, prompt) for prompt in prompts]


def test_prompts_first_lets_no_step_come_between_queued_prompts(shared, wait_for):
    job = begin(shared, wait_for, seed=910, steps=400)
    watch, ran = five_prompts(shared, job)
    assert watch.steps(ran[0]["execution_success"], ran[-1]["execution_success"]) == 0
    assert watch.steps(ran[0]["execution_start"], ran[-1]["execution_success"]) <= 1  # that under way
    step = shared.get(f"/livelora/jobs/{job}")["step"]
    wait_for(shared, job, lambda facts: facts["step"] > step)
    end(shared, wait_for, job)


def test_fair_share_trains_between_queued_prompts(shared, wait_for):
    """As long as each prompt took: at least a step in each of the four gaps, and prompts are not kept out."""
    job = begin(shared, wait_for, seed=911, steps=400)
    assert act(shared, job, "share", {"policy": "fair share"}).status == 200
    watch, ran = five_prompts(shared, job)
    assert watch.steps(ran[0]["execution_success"], ran[-1]["execution_success"]) >= 4
    assert shared.get(f"/livelora/jobs/{job}")["state"] == "training"
    end(shared, wait_for, job)


def test_training_first_holds_prompts_back_until_the_job_is_done(shared, wait_for):
    job = begin(shared, wait_for, seed=912, steps=30, sharing="training first")
    prompt = shared.queue(dawdling(0.1, seed=20))
    while prompt not in shared.get("/history"):
        state = shared.get(f"/livelora/jobs/{job}")["state"]
        time.sleep(0.05)
    assert shared.get(f"/livelora/jobs/{job}")["step"] == 30 and state in ("training", "finishing", "done")
    assert "execution_success" in times(shared, prompt)


def test_training_first_lets_a_prompt_go_that_is_interrupted(shared, wait_for):
    job = begin(shared, wait_for, seed=913, steps=400, sharing="training first")
    prompt = shared.queue(dawdling(30, seed=21))
    while not shared.get("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(1)  # ComfyUI forgets an interruption that comes before a prompt has begun
    assert prompt not in shared.get("/history")
    shared.post("/interrupt")
    with pytest.raises(Failed, match="interrupted"):
        shared.result(prompt, seconds=60)
    step = shared.get(f"/livelora/jobs/{job}")["step"]
    assert wait_for(shared, job, lambda facts: facts["step"] > step)["state"] == "training"
    end(shared, wait_for, job)


def test_training_first_lets_prompts_go_when_the_job_is_paused(shared, wait_for):
    job = begin(shared, wait_for, seed=914, steps=400, sharing="training first")
    prompt = shared.queue(dawdling(0.1, seed=22))
    time.sleep(0.5)
    assert prompt not in shared.get("/history")
    assert act(shared, job, "pause").status == 200
    shared.result(prompt, seconds=60)
    assert shared.get(f"/livelora/jobs/{job}")["state"] == "paused"
    end(shared, wait_for, job)
