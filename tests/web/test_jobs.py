"""What a person does with a job on LoRA Train's own node, with mouse and keyboard, in a real browser."""

from __future__ import annotations

import re

import pytest
from demo_page import (
    DEMO,
    MINUTE,
    TRAIN,
    answer_dialog,
    load,
    new_seed,
    press,
    queue_demo,
    start_demo,
    toast,
    wait_for_line,
)
from graphs import training
from raw import act

ONE_PICTURE = "document.querySelectorAll('.livelora .round img').length === 1"
DETAILS = re.compile("/livelora/jobs/[^/]+$")


def test_pause_and_resume(page, server):
    job = start_demo(page)
    press(page, "pause")
    line = wait_for_line(page, "^Paused")
    facts = server.get(f"/livelora/jobs/{job}")
    assert facts["state"] == "paused"
    assert line == f"Paused at step {facts['step']} of 3000. Resume to go on."
    bar = page.locator(".livelora [role=progressbar]")
    assert bar.get_attribute("aria-valuenow") == str(facts["step"])
    assert bar.locator("div").evaluate("(e) => getComputedStyle(e).opacity") == "0.4"
    assert page.get_attribute(".livelora .go", "aria-label") == "Resume training"
    press(page, "resume")
    wait_for_line(page, r"^Step \d+ of 3000")
    assert page.get_attribute(".livelora .go", "aria-label") == "Pause training"
    assert bar.locator("div").evaluate("(e) => getComputedStyle(e).opacity") == "1"
    assert page.problems == []


def test_stop_keeps_what_was_learned_and_resume_goes_on_from_there(page, server, wait_for):
    job = start_demo(page)
    press(page, "stop")
    line = wait_for_line(page, "^Stopped")
    stopped = wait_for(server, job, lambda facts: facts["state"] == "stopped")
    assert line == f"Stopped at step {stopped['step']} of 3000. Queue again to go on."
    assert stopped["snapshots"] == [stopped["step"]] and stopped["step"] > 0
    assert page.is_hidden(".livelora [data-action=stop]")
    press(page, "resume")  # its model is not in memory: the workflow is queued by the server
    wait_for_line(page, r"^Step \d+ of 3000")
    facts = server.get(f"/livelora/jobs/{job}")
    assert facts["state"] == "training" and facts["step"] >= stopped["step"]
    assert page.problems == []


def test_a_training_is_extended_until_the_step_that_one_says(page, server, wait_for):
    job = start_demo(page)
    press(page, "extend")
    assert "Train until which step? It would end at step 3000." in answer_dialog(page, "Confirm", "many")
    assert toast(page) == 'Training goes on until a step after 3000, got "many". Give a whole number above 3000.'
    assert server.get(f"/livelora/jobs/{job}")["steps"] == 3000
    press(page, "extend")
    page.get_by_role("dialog").get_by_role("textbox").fill("3050")
    page.keyboard.press("Enter")
    wait_for_line(page, r"^Step \d+ of 3050")
    assert server.get(f"/livelora/jobs/{job}")["steps"] == 3050
    assert page.problems == []


def test_a_deleted_job_is_gone_and_its_node_is_as_new(page, server, wait_for):
    job = start_demo(page)
    press(page, "stop")
    wait_for_line(page, "^Stopped")
    used = wait_for(server, job, lambda facts: "delete" in facts["actions"])["disk_bytes"]
    press(page, "delete")
    assert f"{used / 1e6:.1f} MB" in answer_dialog(page, "Cancel")
    assert server.get(f"/livelora/jobs/{job}")["state"] == "stopped"
    press(page, "delete")
    answer_dialog(page, "Delete")
    wait_for_line(page, r"^Not trained yet\.$")
    assert job not in [facts["job"] for facts in server.get("/livelora/jobs")]
    assert page.locator(".livelora .head button:visible").count() == 0
    assert page.evaluate(f"() => {{ {TRAIN} return 'livelora_job' in node.properties; }}") is False
    page.wait_for_function("!document.querySelector('.livelora .round img')")
    assert page.problems == []


def test_a_picture_that_is_drawn_while_the_server_answers_is_not_lost(page, server, wait_for):
    held = []
    page.route(DETAILS, lambda route: held.append((route, route.fetch())))
    job = start_demo(page)  # its node has asked by then
    page.wait_for_function(ONE_PICTURE, timeout=MINUTE)
    page.route(DETAILS, lambda route: route.continue_())
    for route, answer in held:
        route.fulfill(json={**answer.json(), "samples": []})  # as it was before the picture
    assert page.evaluate(f"() => new Promise((done) => setTimeout(() => done({ONE_PICTURE}), 1000))")
    assert held and len(server.get(f"/livelora/jobs/{job}")["samples"]) == 1
    page.unroute(DETAILS)
    assert page.problems == []


def test_what_is_discarded_leaves_no_pictures(page, server, wait_for):
    job = start_demo(page)
    page.wait_for_function(ONE_PICTURE, timeout=MINUTE)
    press(page, "discard")
    answer_dialog(page, "Confirm")
    wait_for_line(page, "what was learned was discarded")
    page.wait_for_function("!document.querySelector('.livelora .round img')", timeout=MINUTE)
    facts = server.get(f"/livelora/jobs/{job}")
    assert (facts["state"], facts["step"], facts["samples"]) == ("stopped", 0, [])
    assert page.problems == []


def test_pictures_and_states_can_be_had_at_once(page, server, wait_for):
    job = start_demo(page)
    press(page, "sample")
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 2", timeout=MINUTE)
    press(page, "save")
    assert len(wait_for(server, job, lambda facts: facts["snapshots"])["snapshots"]) == 1


def test_a_job_that_waits_says_for_how_many_and_can_be_put_in_front(page, server):
    for seed in (new_seed(), new_seed()):
        server.run(training(seed, steps=3000, mode="background"))
    queue_demo(page, steps=4)
    wait_for_line(page, "^Waiting: 2 jobs before it$")
    press(page, "move")
    wait_for_line(page, "^Waiting: 1 job before it$")
    page.click(".livelora .more")
    assert page.is_visible(".livelora [data-action=extend]") and page.is_hidden(".livelora [data-action=move]")
    page.keyboard.press("Escape")
    first = next(facts for facts in server.get("/livelora/jobs") if facts["state"] in ("preparing", "training"))
    act(server, first["job"], "stop")
    wait_for_line(page, r"^Trained 4 steps\.$")
    assert page.problems == []


def test_a_refused_action_says_why(page, server, wait_for):
    job = start_demo(page)
    page.evaluate(f"() => {{ {TRAIN} node.livelora.show = () => {{}}; }}")  # as if the connection were slow
    act(server, job, "stop")
    wait_for(server, job, lambda facts: facts["state"] == "stopped")
    press(page, "pause")
    assert toast(page) == ("This job is stopped, so 'pause' is not possible. It must be queued, preparing or "
                           "training.")
    assert page.problems == []


FOCUSED = "document.activeElement.dataset.action ?? document.activeElement.className"


@pytest.mark.parametrize("scale", [0.8, 2])
def test_the_menu_is_used_by_keyboard_and_lies_on_top(page, scale):
    load(page, DEMO)
    page.evaluate(f"""(scale) => {{
      {TRAIN}
      app.canvas.ds.scale = scale;
      app.canvas.ds.offset = [400 / scale - node.pos[0], 600 / scale - node.pos[1] - node.size[1]];
      app.canvas.setDirty(true, true);
      node.livelora.show({{ ...node.livelora.shown, state: "paused", actions: ["resume", "stop", "extend", "discard",
        "delete"] }});
    }}""", scale)
    page.focus(".livelora .more")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{FOCUSED} === 'extend'")
    assert page.get_attribute(".livelora .more", "aria-expanded") == "true"
    for key, focused in [("ArrowDown", "discard"), ("End", "delete"), ("ArrowDown", "extend"), ("ArrowUp", "delete"),
                         ("Home", "extend"), ("Delete", "extend")]:
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == focused, key
    assert page.evaluate("""[...document.querySelectorAll(".livelora [role=menuitem]:not([hidden])")].every((item) => {
      const { x, y, width, height } = item.getBoundingClientRect();
      return document.elementFromPoint(x + width / 2, y + height / 2) === item && height > 15;
    })""")
    page.keyboard.press("Escape")
    page.wait_for_function(f"{FOCUSED} === 'more'")
    assert page.is_hidden(".livelora [role=menu]")
    assert page.get_attribute(".livelora .more", "aria-expanded") == "false"
    page.click(".livelora .more")
    assert page.is_visible(".livelora [role=menu]")
    page.click(".livelora .more")
    assert page.is_hidden(".livelora [role=menu]")
    page.click(".livelora .more")
    page.mouse.click(1200, 900)
    assert page.is_hidden(".livelora [role=menu]")
    assert page.evaluate("app.graph.nodes.some((n) => n.comfyClass === 'LiveLoraTrain')")
    assert page.problems == []
