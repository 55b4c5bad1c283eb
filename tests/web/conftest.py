"""A real browser on a real ComfyUI. Without a browser these tests are skipped, unless CI asks for them."""

from __future__ import annotations

import os

import browser as on_this_machine
import pytest
from comfyui import Server
from playwright.sync_api import Page
from raw import act

RESTS = ("paused", "stopped", "failed", "done")


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
def open_page(request, browser, server):
    """Opens ComfyUI in one tab or more, with nodes drawn on the canvas or as page elements; errors are collected."""
    tabs = []

    def open_page(server: Server = server) -> Page:
        tab = on_this_machine.new_tab(browser, server, 1500, 1100, {
            "Comfy.VueNodes.Enabled": request.param, "Comfy.Validation.Workflows": True})
        tabs.append(tab)
        tab.problems = []
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("console", lambda message: tab.problems.append(message.text) if "livelora" in message.text.lower()
               and message.type == "error" else None)
        on_this_machine.open_comfyui(tab, server)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture(autouse=True)
def nothing_trains_on(server, wait_for):
    """The next test shall not wait for this one's jobs."""
    yield

    def rests(facts: dict) -> bool:
        if "stop" in facts["actions"]:  # not just after 'extend': that waits for the step under way
            act(server, facts["job"], "stop")
        return facts["state"] in RESTS

    for facts in server.get("/livelora/jobs"):
        wait_for(server, facts["job"], rests)
