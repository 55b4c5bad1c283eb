"""The jobs and steps that Live LoRA offers, as a person reads and chooses them."""

from __future__ import annotations

import re

import browser as on_this_machine
import pytest
from client import newest_job
from demo_page import MINUTE, add_node, new_seed
from graphs import training, with_save

LIVE = "const live = app.graph.nodes.find((n) => n.comfyClass === 'LiveLoraLive');"
PICKER = "live.widgets.find((w) => w.name === 'job')"
VALUES = f"() => {{ {LIVE} return Object.fromEntries(live.widgets.map((w) => [w.name, w.value])); }}"


@pytest.fixture(scope="module")
def job(server):
    """Six steps, of which two are kept."""
    server.run(with_save(training(new_seed(), steps=6, save_every=3, keep_states=2), "flatmoji"))
    return newest_job(server)


def open_menu(page, elements: bool) -> None:
    """The picker's list, with the mouse."""
    if elements:
        page.get_by_role("combobox", name="job").click(timeout=MINUTE)
        return
    x, y = page.evaluate(f"""() => {{
      {LIVE}
      app.canvas.draw(true, true);
      const [x, y] = app.canvas.ds.convertOffsetToCanvas([live.pos[0] + 150, live.pos[1] + {PICKER}.last_y + 10]);
      const box = app.canvas.canvas.getBoundingClientRect();
      return [box.left + x, box.top + y];
    }}""")
    page.wait_for_timeout(300)
    page.mouse.click(x, y)


def test_a_job_is_known_by_its_name_time_and_step_and_its_value_is_its_id(page, rendering, job):
    add_node(page, "LiveLoraLive")
    page.wait_for_function(f"(job) => {{ {LIVE} return {PICKER}.options.values.includes(job); }}", arg=job,
                           timeout=MINUTE)
    open_menu(page, rendering[0])
    entries = page.locator("[role=option]" if rendering[0] else ".litemenu-entry")
    named = re.compile(r"^flatmoji · \d\d:\d\d · step 6 of 6 · done$")
    entries.filter(has_text=named).first.click(timeout=MINUTE)
    page.wait_for_function(f"(job) => {{ {LIVE} return {PICKER}.value === job; }}", arg=job, timeout=MINUTE)
    if rendering[0]:
        assert named.match(page.get_by_role("combobox", name="job").inner_text())
    else:
        assert named.match(page.evaluate(f"() => {{ {LIVE} return {PICKER}._displayValue; }}"))

    page.wait_for_function("document.querySelector('.livelora.steps').innerText.includes('6')", timeout=MINUTE)
    assert page.inner_text(".livelora.steps").split("\n") == ["Steps kept:", "3", "6"]
    page.click(".livelora.steps button >> text=3")
    page.wait_for_function(f"({VALUES})()['which.step'] === 3", timeout=MINUTE)
    sent = page.evaluate("app.graphToPrompt().then((prompt) => Object.values(prompt.output)[0].inputs)")
    assert sent == {"job": job, "which": "step", "which.step": 3, "strength": 1}
    assert page.problems == []


def test_steps_are_listed_beside_another_picker_and_after_the_job_is_gone(page, job):
    page.reload()  # a page that knows no job yet
    on_this_machine.wait_until_open(page)
    for kind in ("LiveLoraLive", "LiveLoraGrid"):
        add_node(page, kind)
    told = "document.querySelector('.livelora.steps').innerText"
    page.wait_for_function(f"{told}.startsWith('Steps kept:')", timeout=MINUTE)
    page.evaluate(f"() => {{ {LIVE} {PICKER}.value = 'flower_1'; {PICKER}.callback('flower_1'); }}")
    page.wait_for_function(f"{told} === 'This training is gone.'")
