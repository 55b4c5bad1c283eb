"""Thirty rounds of what goes wrong on people's machines, at random moments of three trainings. Nothing is lost.

LIVELORA_CHAOS_SEED repeats a run, as far as its moments can be repeated."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("one process sets another's limits", allow_module_level=True)

from client import job_folder, newest_job
from comfyui import Failed, Server
from graphs import drawing, training, with_preview
from raw import act
from trouble import failing, full_disk, half_written, health, read_only, same_lora, troubled_server

ROUNDS = 30
RECIPES = ({"seed": 900, "save_every": 4, "ema_decay": 0.9},
           {"seed": 901, "save_every": 3, "held_out": 4.0, "validate_every": 6},
           {"seed": 902, "save_every": 5, "optimizer": "AdamW", "lr_warmup_steps": 5})
COMMON = {"steps": 100, "rank": 16, "batch_size": 2}
FULL = 2**20
"""Bytes: less than a state of rank 16, more than the server's log, its database and the other files of a job."""
HARMLESS = {f"asyncio_{i}" for i in range(32)} | {"tqdm_monitor"}
"""Threads of asyncio's executor and of the progress bars that ComfyUI prints."""
RESTING = ("paused", "stopped", "failed")


def graph(recipe: dict, mode: str) -> dict:
    return with_preview(training(**COMMON, **recipe, mode=mode), "owl\nred apple", every=8, width=64, height=64,
                        sampler_steps=2)


class Chaos:
    """A server with jobs, and what is done to it."""

    def __init__(self, server: Server, draw: random.Random) -> None:
        self.server, self.draw, self.count = server, draw, 0
        self.kinds: dict[str, Callable[[], object]] = {
            "kill": self.kill, "interrupt": self.interrupt, "free": self.free, "raise": self.fail,
            "delete a sample": self.delete_sample, "full disk": self.fill_disk, "read-only folder": self.lock_folder,
            "truncated state": self.truncate}
        self.jobs: dict[str, dict] = {}
        for recipe in RECIPES:
            server.run(graph(recipe, "background"))
            self.jobs[newest_job(server)] = recipe

    # The rounds

    def plan(self) -> list[str]:
        """Each kind twice, the others by chance."""
        kinds = [*self.kinds, *self.kinds]
        kinds += self.draw.choices(list(self.kinds), k=ROUNDS - len(kinds))
        self.draw.shuffle(kinds)
        return kinds

    def round(self, kind: str) -> bool:
        """True if a job was active when it happened."""
        self.wake()
        self.advance(self.draw.randint(0, 5))
        time.sleep(self.draw.random() * 0.4)
        facts = self.facts()
        print(f"{time.monotonic():.1f} {kind}:", *(f"{f['state']} {f['step']}" for f in facts), flush=True)
        self.kinds[kind]()
        assert self.server.process.poll() is None
        return any(f["state"] not in (*RESTING, "done") for f in facts)

    def facts(self) -> list[dict]:
        return [self.server.get(f"/livelora/jobs/{job}") for job in self.jobs]

    def wake(self) -> None:
        """Whatever rests goes on, in any order."""
        for facts in self.draw.sample(self.facts(), len(self.jobs)):
            if facts["state"] not in RESTING:
                continue
            assert facts["message"], facts
            if self.draw.random() < 0.5:
                self.server.queue(graph(self.jobs[facts["job"]], "background"))
            else:
                self.ask(facts["job"], "resume")

    def ask(self, job: str, action: str) -> bool:
        """False if it was refused, with a reason."""
        answer = act(self.server, job, action)
        assert answer.status == 200 or (answer.status == 409 and answer.error), answer
        return answer.status == 200

    def advance(self, steps: int, seconds: float = 300) -> None:
        """Waits until so many steps were trained, or nothing trains any more."""
        start, end = sum(f["step"] for f in self.facts()), time.monotonic() + seconds
        while time.monotonic() < end:
            facts = self.facts()
            active = any(f["state"] not in (*RESTING, "done") for f in facts)
            if sum(f["step"] for f in facts) >= start + steps or not (active or self.is_busy()):
                return
            time.sleep(0.1)
        raise TimeoutError(f"{steps} steps from {start} took more than {seconds} s: {facts}")

    def is_busy(self) -> bool:
        queue = self.server.get("/queue")
        return bool(queue["queue_running"] or queue["queue_pending"])

    def result(self, prompt: str) -> str:
        """How a prompt ended."""
        try:
            self.server.result(prompt, seconds=300)
            return "done"
        except Failed as err:
            return err.message

    # The kinds

    def kill(self) -> None:
        self.server.stop(signal.SIGKILL)
        self.server.start()

    def interrupt(self) -> None:
        """A picture, or a prompt that waits for a job."""
        self.count += 1
        if self.draw.random() < 0.5:
            prompt = self.server.queue(drawing("owl", seed=self.count))
        else:
            prompt = self.server.queue(graph(self.draw.choice(RECIPES), "wait"))
        time.sleep(self.draw.random())
        while not self.server.get(f"/history/{prompt}"):  # ComfyUI forgets one that comes before a prompt has begun
            self.server.post("/interrupt")
            time.sleep(0.5)
        how = self.result(prompt)
        assert how == "done" or how.startswith("interrupted"), how

    def free(self) -> None:
        self.server.post("/free", {"unload_models": True, "free_memory": self.draw.random() < 0.5})

    def fail(self) -> None:
        self.count += 1
        error = self.draw.choice(["ValueError", "OutOfMemoryError"])
        how = self.result(self.server.queue(failing(error, self.count)))
        assert "wanted this prompt to fail" in how or "GPU is full" in how

    def delete_sample(self) -> None:
        pictures = [p for job in self.jobs for p in (job_folder(self.server, job) / "samples").glob("step*.png")]
        if pictures:
            self.draw.choice(pictures).unlink()

    def fill_disk(self) -> None:
        with full_disk(self.server, FULL):
            self.train_on()

    def lock_folder(self) -> None:
        job = self.draw.choice([f["job"] for f in self.facts() if f["state"] == "training"] or list(self.jobs))
        with read_only(job_folder(self.server, job)) as how:
            print(f"  {job} {how}")
            self.train_on()

    def train_on(self) -> None:
        """What cannot be written is no reason to end a training."""
        self.advance(self.draw.randint(3, 6))
        self.maybe_pause()
        assert "failed" not in [f["state"] for f in self.facts()]

    def truncate(self) -> None:
        """A file of the newest state, which is then read again, sooner or later."""
        going = {f["job"]: job_folder(self.server, f["job"]) for f in self.facts() if f["state"] != "done"}
        found = {job: max((folder / "state").glob("step_*"), default=None) for job, folder in going.items()}
        if newest := {job: folder for job, folder in found.items() if folder}:
            job = self.draw.choice([*newest])
            path = self.draw.choice(sorted(p for p in newest[job].iterdir() if p.stat().st_size > 100))
            print(f"  {path.relative_to(self.server.base)}")
            content = path.read_bytes()
            os.truncate(path, len(content) // 2)
            if self.server.get(f"/livelora/jobs/{job}")["state"] == "done":
                path.write_bytes(content)  # it came to its end just before, so nobody reads it again
        if self.draw.random() < 0.5:
            self.kill()
        else:
            self.maybe_pause()

    def maybe_pause(self) -> None:
        """Pausing writes a state, and going on reads one."""
        job = self.draw.choice(list(self.jobs))
        if self.draw.random() < 0.7 and self.ask(job, "pause"):
            self.wait(job, (*RESTING, "done"))

    def wait(self, job: str, states: tuple[str, ...], seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while (facts := self.server.get(f"/livelora/jobs/{job}"))["state"] not in states:
            assert time.monotonic() < end, facts
            time.sleep(0.05)

    def finish(self) -> None:
        """Everybody stops making trouble."""
        for _ in range(5):
            self.wake()
            self.advance(10**9, seconds=600)
        for job in self.jobs:
            self.wait(job, (*RESTING, "done"))
        if not all((job_folder(self.server, job) / "lora.safetensors").exists() for job in self.jobs):
            self.server.stop()  # the disk was full when a job was done: it is told so, and after a restart it is paused
            self.server.start()
            for _ in range(2):
                self.wake()
                self.advance(10**9, seconds=600)
            for job in self.jobs:
                self.wait(job, ("done",))


def test_thirty_rounds_of_chaos_lose_nothing(tmp_path):
    seed = int(os.environ.get("LIVELORA_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"LIVELORA_CHAOS_SEED={seed}")
    calm = []
    with Server(tmp_path / "calm") as server:
        for recipe in RECIPES:
            server.run(graph(recipe, "wait"))
            job = newest_job(server)
            calm.append((job_folder(server, job), server.get(f"/livelora/jobs/{job}")["losses"]))
    with troubled_server(tmp_path / "chaos") as server:
        before = server.get("/troublemaker/health")
        chaos = Chaos(server, random.Random(seed))
        in_action = sum([chaos.round(kind) for kind in chaos.plan()])
        chaos.finish()
        for facts, (undisturbed, losses) in zip(chaos.facts(), calm, strict=True):
            assert (facts["state"], facts["message"]) == ("done", f"Trained {COMMON['steps']} steps."), facts
            assert same_lora(job_folder(server, facts["job"]), undisturbed)
            assert facts["losses"] == losses
        after = health(server)
        log = server.log()
    assert half_written(server.base / "user") == []
    assert before["idle"] and after["idle"] and not after["in_training"]
    assert set(after["threads"]) - set(before["threads"]) <= HARMLESS, after
    assert "AssertionError" not in log
    assert in_action >= ROUNDS - 5, "the jobs were done too early for this many rounds: give them more steps"
