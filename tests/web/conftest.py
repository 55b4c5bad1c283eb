"""A real browser on a real ComfyUI. Without a browser these tests are skipped, unless CI asks for them."""

from __future__ import annotations

import os
import shutil

import pytest
from comfyui import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.EnableTooltips": False, "Comfy.Validation.Workflows": True,
}


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = f"no browser found ({', '.join(BROWSERS)}); install Chromium to run the browser tests"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["canvas", "nodes 2.0"])
def page(request, browser, server):
    """ComfyUI in a tab, with nodes drawn on the canvas or as page elements; its errors are collected."""
    for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": request.param}.items():
        server.post("/settings", {name: value})
    tab = browser.new_page(viewport={"width": 1500, "height": 1100})
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text) if "livelora" in message.text.lower()
           and message.type == "error" else None)
    tab.route("**/*", lambda route: route.continue_() if "//127.0.0.1" in route.request.url else route.abort())
    tab.goto(server.url)
    tab.wait_for_function("window.app?.vueAppReady && app.isGraphReady", timeout=120_000)
    yield tab
    tab.close()
