"""A real browser on a real ComfyUI, for the browser tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfyui import Server
from playwright.sync_api import BrowserContext, Page, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
         "msedge")
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.EnableTooltips": False,
}


@contextmanager
def browser() -> Iterator[BrowserContext]:
    """This machine's browser. It can reach this machine alone, and its tabs share what they have loaded.

    Raises FileNotFoundError if there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise FileNotFoundError(f"No browser was found ({', '.join(NAMES)}). Install Chromium.")
    with sync_playwright() as playwright:
        # Not by a route of Playwright's: with one, a browser keeps nothing that it has loaded.
        running = playwright.chromium.launch(executable_path=path, args=[
            "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
        yield running.new_context(reduced_motion="reduce")  # drawing what moves takes a third of its time
        running.close()


def new_tab(running: BrowserContext, server: Server, width: int, height: int) -> Page:
    """A tab of that size."""
    tab = running.new_page()
    tab.set_viewport_size({"width": width, "height": height})
    tab.set_default_timeout(120_000)  # this machine may be busy
    if server.user:
        tab.add_init_script(f"localStorage['Comfy.userId'] = {json.dumps(server.user)}")
    return tab


def change_settings(server: Server, settings: dict[str, Any]) -> None:
    """ComfyUI's settings, beside those that keep its greetings away. A tab that is opened then has them."""
    for name, value in {**SETTINGS, **settings}.items():
        server.post("/settings", {name: value})


def open_comfyui(tab: Page, server: Server) -> None:
    """Opens the server's page and waits until it hears events, and until the workflow that it begins with is there,
    which would else come over the one that is loaded next."""
    tab.goto(server.url)
    wait_until_open(tab)


def wait_until_open(tab: Page) -> None:
    """After a load or a reload."""
    tab.wait_for_function("""window.app?.vueAppReady && app.isGraphReady && comfyAPI.api.api.clientId
        && app.extensionManager.workflow.activeWorkflow""")
