"""What tests read off a server."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from comfyui import Server
from PIL import Image


def pixels(server: Server, outputs: dict, node: str = "image") -> np.ndarray:
    """The picture that a SaveImage node wrote."""
    return np.asarray(Image.open(io.BytesIO(server.image(outputs[node]["images"][0]))))


def newest_job(server: Server) -> str:
    """The id of the job that was started last."""
    return server.get("/livelora/jobs")[-1]["job"]


def job_folder(server: Server, job: str, user: str = "default") -> Path:
    """Where a job lies on disk."""
    return server.base / "user" / user / "livelora" / "jobs" / job


def sample(server: Server, job: str, name: str) -> Image.Image:
    """A preview picture of a job."""
    return Image.open(io.BytesIO(server.get(f"/livelora/jobs/{job}/samples/{name}")))
