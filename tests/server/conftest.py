from __future__ import annotations

import time

import numpy as np
import pytest
from client import pixels
from comfyui import Server
from graphs import drawing


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One ComfyUI for all tests that leave it as they found it."""
    with Server(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path):
    """A ComfyUI of one's own, to be killed."""
    with Server(tmp_path) as running:
        yield running


@pytest.fixture
def draw():
    """Draws a prompt through the graph and gives its pixels. The prefix makes every drawing a new one: no cache."""
    count = iter(range(1000))

    def draw(server: Server, prompt: str = "red apple", **options) -> np.ndarray:
        return pixels(server, server.run(drawing(prompt, prefix=f"drawn{time.time_ns()}{next(count)}", **options)))

    return draw
