"""Trainings on a real server, and what to wait for."""

from __future__ import annotations

from pathlib import Path

from client import newest_job
from comfyui import Server
from graphs import training, with_preview


def folder(server: Server, job: str, user: str = "default") -> Path:
    """Of a job, on disk."""
    return server.base / "user" / user / "livelora" / "jobs" / job


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
