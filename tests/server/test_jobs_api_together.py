"""Ten clients act on one job at once, without order: each action is done once or refused with a reason, and the disk
says what the server says."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter

from client import job_folder, newest_job
from comfyui import Server
from graphs import training, with_preview
from raw import act, ask
from trouble import half_written, health, same_lora, troubled_server

SECONDS, CLIENTS, LONGEST = 20, 10, 20
RECIPE = {"seed": 920, "steps": 60, "lr_scheduler": "constant", "save_every": 10}
"""A constant learning rate: else a run that is extended late is another than one that was as long from the start."""
WEIGHTS = {"save": 5, "resume": 4, "sample": 3, "extend": 2, "share": 2, "pause": 1, "move": 1, "stop": 0.3,
           "discard": 0.1}
NEEDED, PATIENCE = {"pause", "resume", "extend", "save", "share"}, 300
"""What must be done at least once, and how many more seconds a slow machine is given for it."""
STATES = {"queued", "preparing", "training", "paused", "finishing", "done", "stopped", "failed"}


class Gate:
    """Lets clients act, or holds them back until none of them acts."""

    def __init__(self) -> None:
        self._changed, self._open, self._inside = threading.Condition(), True, 0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._open = False
            assert self._changed.wait_for(lambda: not self._inside, timeout=60), "an action does not come back"

    def reopen(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


class Clients:
    """What they do, and what they were told."""

    def __init__(self, server: Server, job: str, seed: int) -> None:
        self.server, self.job, self.gate, self.over = server, job, Gate(), threading.Event()
        self.answers: list[tuple[str, int, str, float]] = []
        """Action, status, the sentence of a refusal, seconds."""
        self.problems: list[str] = []
        self.begin = iter(["save"] * CLIENTS)
        """What each does first: the job trains then for certain, and on a busy machine seldom later."""
        actors = [threading.Thread(target=self.alone, args=(self.do, random.Random(seed + i))) for i in range(CLIENTS)]
        watchers = [threading.Thread(target=self.alone, args=(self.look, None)) for _ in range(2)]
        self.threads = [*actors, *watchers]

    def alone(self, work, draw) -> None:
        while not self.over.is_set():
            try:
                work(draw)
            except Exception as err:
                self.problems.append(f"{type(err).__name__}: {err}")

    def do(self, draw: random.Random) -> None:
        action = next(self.begin, None) or draw.choices(list(WEIGHTS), WEIGHTS.values())[0]
        body = {"extend": {"steps": 1}, "move": {"position": draw.randrange(3)},
                "share": {"policy": draw.choice(["prompts first", "fair share"])}}.get(action)
        with self.gate:
            began = time.monotonic()
            answer = act(self.server, self.job, action, body)
            error = answer.error if answer.status >= 400 else ""
            self.answers.append((action, answer.status, error, time.monotonic() - began))
        time.sleep(draw.random())

    def look(self, _: None) -> None:
        answer = ask(self.server, "GET", f"/livelora/jobs/{self.job}")
        facts = answer.json
        if answer.status != 200 or facts["state"] not in STATES or facts["step"] > facts["steps"]:
            self.problems.append(f"GET: {answer.status} {answer.body[:300]}")
        time.sleep(0.02)  # the training needs the processor too

    def run(self) -> None:
        """Twenty seconds of it, and until all that is needed was done; with a look at the disk now and then."""
        for thread in self.threads:
            thread.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or not (NEEDED <= self.done or time.monotonic() > end + PATIENCE):
            time.sleep(1)
            self.gate.shut()
            self.compare()
            self.gate.reopen()
        self.over.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()

    @property
    def done(self) -> set[str]:
        return {action for action, status, *_ in self.answers if status == 200}

    def compare(self) -> None:
        """No action is under way; only the training itself may change the state meanwhile."""
        for _ in range(50):
            changes, said, on_disk = self.changes(), self.said(), self.written()
            if (changes, said) == (self.changes(), self.said()):
                assert on_disk == said
                return
        raise AssertionError("the state never stood still")

    def changes(self) -> int:
        """How often its state has changed, if only to be the same again."""
        return self.server.log().count(f"LoRA training {self.job}:")

    def said(self) -> tuple:
        facts = self.server.get(f"/livelora/jobs/{self.job}")
        return facts["state"], facts["sharing"], facts["recipe"]

    def written(self) -> tuple:
        facts = json.loads((job_folder(self.server, self.job) / "job.json").read_text())
        return facts["state"], facts["sharing"], facts["recipe"]


def start(server: Server, **changes) -> str:
    server.run(with_preview(training(**RECIPE, mode="background", **changes), "owl", every=1000))
    return newest_job(server)


def until_done(server: Server, job: str, wait_for) -> dict:
    """Resumes it for as long as it takes."""
    while True:
        if "resume" in (facts := server.get(f"/livelora/jobs/{job}"))["actions"]:
            assert act(server, job, "resume").status == 200
        elif facts["state"] == "done" and not server.get("/queue")["queue_pending"]:
            return facts
        time.sleep(0.1)


def test_ten_clients_at_once_do_each_thing_once(tmp_path, wait_for):
    seed = int(os.environ.get("LIVELORA_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"LIVELORA_CHAOS_SEED={seed}")
    with troubled_server(tmp_path / "together") as server:
        job = start(server)
        folder = job_folder(server, job)
        wait_for(server, job, lambda facts: facts["step"] >= 2)
        clients = Clients(server, job, seed)
        clients.run()
        print(Counter((action, status) for action, status, *_ in clients.answers))
        print(Counter(error for *_, error, _ in clients.answers).most_common(20))
        assert not clients.problems
        assert {status for _, status, *_ in clients.answers} <= {200, 409}
        assert all(error.endswith(".") for _, status, error, _ in clients.answers if status == 409)
        assert max(seconds for *_, seconds in clients.answers) < LONGEST
        while (queue := server.get("/queue"))["queue_running"] or queue["queue_pending"]:
            time.sleep(0.1)
        done = until_done(server, job, wait_for)
        extended = sum((action, status) == ("extend", 200) for action, status, *_ in clients.answers)
        assert done["recipe"]["extra_steps"] == extended > 0
        assert (done["state"], done["step"], clients.written()) == ("done", RECIPE["steps"] + extended, clients.said())
        assert clients.done >= NEEDED
        left = health(server)
        assert left["idle"] and "livelora" not in left["threads"]
        assert half_written(server.base / "user") == []
    with troubled_server(tmp_path / "calm") as server:
        calm = start(server, extra_steps=extended)
        facts = wait_for(server, calm, lambda facts: facts["state"] == "done")
        assert facts["losses"] == done["losses"]
        assert same_lora(folder, job_folder(server, calm))
