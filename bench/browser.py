"""A real browser on a real ComfyUI, for the browser tests and the thumbnails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfyui import Server
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.EnableTooltips": False,
}


@contextmanager
def browser() -> Iterator[Browser]:
    """The browser of this machine. Raises FileNotFoundError if there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise FileNotFoundError(f"No browser was found ({', '.join(NAMES)}). Install Chromium.")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


def new_tab(running: Browser, server: Server, width: int, height: int, settings: dict[str, Any]) -> Page:
    """A tab that can reach this machine alone; `settings` are ComfyUI's, beside those that keep its greetings away."""
    for name, value in {**SETTINGS, **settings}.items():
        server.post("/settings", {name: value})
    tab = running.new_page(viewport={"width": width, "height": height})
    tab.set_default_timeout(120_000)  # this machine may be busy
    tab.route("**/*", lambda route: route.continue_() if "//127.0.0.1" in route.request.url else route.abort())
    if server.user:
        tab.add_init_script(f"localStorage['Comfy.userId'] = {json.dumps(server.user)}")
    return tab


def open_comfyui(tab: Page, server: Server) -> None:
    """Opens the server's page and waits until it hears events, and until the workflow that it begins with is there,
    which would else come over the one that is loaded next."""
    tab.goto(server.url)
    wait_until_open(tab)


def wait_until_open(tab: Page) -> None:
    """After a load or a reload."""
    tab.wait_for_function("""window.app?.vueAppReady && app.isGraphReady && comfyAPI.api.api.clientId
        && app.extensionManager.workflow.activeWorkflow""")
