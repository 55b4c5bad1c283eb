"""What a new user looks for is found: the nodes by a search, the templates by their name, and they can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfyui import ROOT
from demo_page import MINUTE, load

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def test_a_search_for_train_lora_finds_ours_beside_cores(page):
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.keyboard.type("train lora")
    results = page.locator("[role=option], .comfy-vue-node-search-container li")
    results.filter(has_text="LoRA Train").first.wait_for(timeout=MINUTE)
    first = [text.splitlines()[0] for text in results.all_inner_texts()[:2]]
    assert any(text.startswith("LoRA Train") for text in first), first
    page.keyboard.press("Escape")


def test_the_templates_stand_below_our_name_and_are_numbered(page):
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog")
    # Not by the mouse: reaching it takes a busy machine long, as the page loads a hundred pictures meanwhile.
    dialog.get_by_text("LiveLoRA", exact=True).first.dispatch_event("click", timeout=MINUTE)
    for path in EXAMPLES:
        dialog.get_by_text(path.stem).first.wait_for(timeout=MINUTE)
    page.keyboard.press("Escape")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_a_note_has_no_code(path: Path):
    """Nodes 2.0 shows it blue on blue."""
    notes = [n["widgets_values"][0] for n in json.loads(path.read_text(encoding="utf-8"))["nodes"]
             if n["type"] == "MarkdownNote"]
    assert notes and not [note for note in notes if "`" in note]


def test_a_box_that_is_empty_is_no_slab(page):
    load(page, EXAMPLES[0])
    page.wait_for_selector(".livelora-box > .livelora", state="attached", timeout=MINUTE)
    colors = page.eval_on_selector_all(
        ".livelora-box, .livelora-box > .livelora",
        "all => all.filter((e) => !e.innerText.trim()).map((e) => getComputedStyle(e).backgroundColor)")
    assert {*colors} == {"rgba(0, 0, 0, 0)"}
