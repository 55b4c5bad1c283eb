"""A real browser on a real ComfyUI. Without a browser these tests are skipped, unless CI asks for them."""

from __future__ import annotations

import os

import browser as on_this_machine
import pytest
from comfyui import Server
from demo_page import TOAST
from playwright.sync_api import Page
from raw import act

CLEAR = """() => {
  const last = app.graph.last_node_id;
  app.graph.clear();
  app.graph.last_node_id = last;  // Nodes 2.0 goes on with the node that was there before if another has its number
  const { toast } = app.extensionManager;
  (toast.dismissAll ?? toast.removeAll)();  // the first from frontend 1.58 on
}"""
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


@pytest.fixture(scope="session", params=[False, True], ids=["canvas", "nodes 2.0"])
def rendering(request):
    """Whether nodes are page elements, or drawn on the canvas; and the tabs that stay open for all tests of that kind,
    as loading ComfyUI's page takes longer than most of them."""
    kept: list[Page] = []
    yield request.param, kept
    for tab in kept:
        tab.close()


@pytest.fixture
def open_page(request, browser, server, rendering):
    """Opens ComfyUI in one tab or more; errors are collected.

    A tab of the test before is used again, with nothing on its canvas, unless that test failed."""
    (elements, kept), failures, opened = rendering, request.session.testsfailed, []

    def open_page(asked: Server = server) -> Page:
        on_this_machine.change_settings(asked, {"Comfy.VueNodes.Enabled": elements,
                                                "Comfy.Validation.Workflows": True})
        if asked is server and kept:
            tab = kept.pop(0)
            opened.append((asked, tab))
            tab.problems.clear()
        else:
            tab = on_this_machine.new_tab(browser, asked, 1500, 1100)
            opened.append((asked, tab))
            collect_errors(tab)
            on_this_machine.open_comfyui(tab, asked)
        tab.evaluate(CLEAR)
        tab.wait_for_function(f"!document.querySelector('{TOAST}, [role=dialog]')")
        return tab

    yield open_page
    for asked, tab in opened:
        if asked is server and request.session.testsfailed == failures:
            kept.append(tab)
        else:
            tab.close()


def collect_errors(tab: Page) -> None:
    """In `tab.problems`."""
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text) if "livelora" in message.text.lower()
           and message.type == "error" else None)


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
