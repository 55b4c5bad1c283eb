"""A real browser on a real ComfyUI. Without a browser these tests are skipped, unless CI asks for them."""

from __future__ import annotations

import os

import browser as on_this_machine
import pytest
from comfyui import Server


@pytest.fixture(scope="session")
def browser():
    try:
        with on_this_machine.browser() as running:
            yield running
    except FileNotFoundError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["canvas", "nodes 2.0"])
def page(request, browser, server):
    """ComfyUI in a tab, with nodes drawn on the canvas or as page elements; its errors are collected."""
    tab = on_this_machine.new_tab(browser, server, 1500, 1100, {
        "Comfy.VueNodes.Enabled": request.param, "Comfy.Validation.Workflows": True})
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text) if "livelora" in message.text.lower()
           and message.type == "error" else None)
    on_this_machine.open_comfyui(tab, server)
    yield tab
    tab.close()
