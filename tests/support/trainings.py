"""Trainings on a real server, and what to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

from client import newest_job
from comfyui import Server
from graphs import training, with_preview


def wait_for(server: Server, job: str, condition: Callable[[dict], bool], seconds: float = 600) -> dict:
    """Waits until a job says something, and gives all that it says then."""
    end = time.monotonic() + seconds
    while not condition(facts := server.get(f"/livelora/jobs/{job}")):
        if time.monotonic() > end:
            raise TimeoutError(f"job {job} is {facts['state']} at step {facts['step']}: {facts['message']}")
        time.sleep(0.1)
    return facts


def start(server: Server, seed: int, steps: int = 400, **changes) -> str:
    """A job in the background."""
    server.run(with_preview(training(seed, steps=steps, mode="background", **changes), "owl", every=1000))
    return newest_job(server)


def is_at(step: int):
    """For `wait_for`."""
    return lambda facts: facts["state"] == "training" and facts["step"] >= step


def is_in(state: str):
    """For `wait_for`."""
    return lambda facts: facts["state"] == state


def may(action: str):
    """For `wait_for`."""
    return lambda facts: action in facts["actions"]
