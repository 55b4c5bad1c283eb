"""What a person does with a job on LoRA Train's own node, with mouse and keyboard, in a real browser."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest
from demo_page import (
    DEMO,
    MINUTE,
    TOAST,
    TRAIN,
    answer_dialog,
    job_of,
    load,
    look_at_train,
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
    summary = page.inner_text(".livelora .costs")
    assert re.fullmatch(r"[\d.]+ s a step", summary)
    page.click(".livelora summary")
    assert re.fullmatch(r"\d+ % of the device's peak · (\w[-\w ]+ \d+ %(, )?){1,3}",
                        page.inner_text(".livelora .speed"))
    page.click(".livelora summary")
    assert page.inner_text(".livelora .costs") == summary
    bar = page.locator(".livelora [role=progressbar]")
    assert bar.get_attribute("aria-valuenow") == str(facts["step"])
    assert bar.locator("div").evaluate("(e) => getComputedStyle(e).opacity") == "0.4"
    assert page.get_attribute(".livelora .go", "aria-label") == "Resume training"
    press(page, "resume")
    wait_for_line(page, r"^Step \d+ of 3000")
    assert re.fullmatch(r"[\d.]+ s a step · memory \d+ MB of \d+\.\d GB", page.inner_text(".livelora summary"))
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


COLUMNS = f"""() => {{
  {TRAIN}
  const [steps, ...lines] = node.livelora.curve.chart?.data ?? [[]];
  return lines.map((line) => line.flatMap((loss, i) => loss == null ? [] : [[steps[i], loss]]));
}}"""
"""The curve's lines as points (step, loss): each step's, their mean, held out, the best, the base model's."""


def wait_for_curve(page, points: int, held_out: int = 0) -> list[list]:
    """Its lines, once the first one and that of held-out losses have that many points or more."""
    page.wait_for_function(f"""([points, heldOut]) => {{
      const [losses, , measured] = ({COLUMNS})();
      return losses?.length >= points && (measured?.length ?? 0) >= heldOut && document.querySelector(".plot canvas");
    }}""", arg=[points, held_out], timeout=MINUTE)
    return page.evaluate(COLUMNS)


def colours(page) -> list[list[int]]:
    """Those of the chart's pixels, most frequent first."""
    return page.evaluate("""() => {
      const canvas = document.querySelector(".livelora .plot canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const count = {};
      for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) {
        const name = data.slice(i, i + 3).join();
        count[name] = (count[name] ?? 0) + 1;
      }
      return Object.entries(count).sort((a, b) => b[1] - a[1]).map(([name]) => name.split(",").map(Number));
    }""")


def colour_in_legend(page, name: str) -> list[int]:
    """Of the stroke before that name, as the pixel it makes."""
    return page.evaluate("""(name) => {
      const pen = document.createElement("canvas").getContext("2d");
      pen.fillStyle = getComputedStyle(document.querySelector(`.livelora .legend .${name}`), "::before").borderTopColor;
      pen.fillRect(0, 0, 1, 1);
      return [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    }""", name)


def test_the_losses_are_a_curve_also_after_a_reload(page, server):
    queue_demo(page, steps=4, held_out=2, validate_every=2)
    wait_for_line(page, r"^Trained 4 steps\.$")
    facts = server.get(f"/livelora/jobs/{job_of(page)}")
    assert len(facts["losses"]) == 4 and len(facts["validation"]) == 3
    steps, base = [1, 2, 3, 4], facts["validation_base"]
    means = [total / step for step, total in zip(steps, accumulate(facts["losses"]), strict=True)]
    live = wait_for_curve(page, 4, held_out=3)
    assert live[0] == [list(point) for point in zip(steps, facts["losses"], strict=True)]
    assert [step for step, _ in live[1]] == steps
    assert [loss for _, loss in live[1]] == pytest.approx(means)
    assert live[2:] == [facts["validation"], [facts["best"]], [[0, base], [4, base]]]
    assert page.inner_text(".livelora .legend").split("\n") == [
        "loss", "mean of 4 steps", "held-out", f"best, step {facts['best'][0]}", "without the LoRA"]
    workflow = page.evaluate("app.graph.serialize()")
    load(page, workflow)
    assert wait_for_curve(page, 4, held_out=3) == live
    # As of a training of more steps than the server tells of.
    page.route(DETAILS, lambda route: route.fulfill(json={**facts, "losses": facts["losses"][-2:]}))
    load(page, workflow)
    assert wait_for_curve(page, 4, held_out=3) == live
    page.unroute(DETAILS)
    assert page.problems == []


def test_a_long_curve_is_thinned_out_and_has_the_themes_colours(page):
    load(page, DEMO)
    assert page.is_visible(".livelora .curve >> text=The loss curve appears here while it trains.")
    losses = [0.3 + 0.1 * ((step * 7919) % 101) / 100 for step in range(1, 5001)]
    losses[2345], losses[4321] = 0.9, 0.01
    facts = {"job": "a", "state": "training", "message": "", "actions": [], "warnings": [], "step": 5000, "steps": 6000,
             "eta": 30, "loss": 0.35, "step_loss": losses[-1], "skipped": 0, "learning_rate": 1e-4, "losses": losses,
             "validation": [[0, 0.5], [2500, 0.3], [5000, 0.4]], "validation_base": 0.5, "best": [2500, 0.3]}
    page.evaluate(f"(facts) => {{ {TRAIN} node.livelora.showAnswer(Promise.resolve(facts)); }}", facts)
    raw, mean, *_ = wait_for_curve(page, 100)
    assert 300 < len(raw) <= 602 and {tuple(point) for point in raw} <= set(enumerate(losses, 1))
    assert [2346, 0.9] in raw and [4322, 0.01] in raw and raw[-1] == [5000, losses[-1]]
    assert mean[-1] == [5000, pytest.approx(sum(losses[-250:]) / 250)]
    assert page.inner_text(".livelora .legend .mean") == "mean of 250 steps"
    for theme in ("light", "dark"):
        before = colour_in_legend(page, "mean")
        page.evaluate("(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
        page.wait_for_timeout(1500)  # it is drawn 0.4 s after the theme has changed
        assert before != colour_in_legend(page, "mean") in colours(page)[:4]
    assert page.problems == []


def test_what_is_discarded_leaves_no_pictures(page, server, wait_for):
    job = start_demo(page)
    page.wait_for_function(ONE_PICTURE, timeout=MINUTE)
    press(page, "discard")
    answer_dialog(page, "Confirm")
    wait_for_line(page, "what was learned was discarded")
    page.wait_for_function("!document.querySelector('.livelora .round img, .livelora .plot canvas')", timeout=MINUTE)
    facts = server.get(f"/livelora/jobs/{job}")
    assert (facts["state"], facts["step"], facts["samples"]) == ("stopped", 0, [])
    assert page.problems == []


def test_pictures_and_states_can_be_had_at_once(page, server, wait_for):
    job = start_demo(page)
    page.wait_for_function(ONE_PICTURE, timeout=MINUTE)
    press(page, "sample")
    page.evaluate("document.querySelector('.livelora .round button').click()")
    page.wait_for_function("document.querySelector('.livelora-viewer output').textContent === "
                           "'Before training (1 of 2)'", timeout=MINUTE)
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 2", timeout=MINUTE)
    press(page, "export")
    [file] = wait_for(server, job, lambda facts: facts["saved"])["saved"]
    page.wait_for_function("(text) => document.querySelector('.livelora .files').textContent === text",
                           arg=f"Saved as {file}", timeout=MINUTE)
    assert (server.base / "models" / "loras" / file).exists()


def test_a_background_training_says_that_it_goes_on_and_when_it_ends(page, server):
    queue_demo(page, steps=6, mode="background")
    told = toast(page)
    assert "trains in the background. ComfyUI's own message that the job is completed only means that" in told
    assert "It will be saved as" in told
    page.wait_for_function("""(toasts) => [...document.querySelectorAll(toasts)].some((toast) =>
      /“flatmoji”: Trained 6 steps\\. Saved as .*\\.safetensors\\./.test(toast.textContent))""",
                           arg=TOAST, timeout=2 * MINUTE)
    assert page.problems == []


def test_a_job_that_waits_says_for_how_many_and_can_be_put_in_front(page, server):
    for seed in (new_seed(), new_seed()):
        server.run(training(seed, steps=3000, mode="background"))
    queue_demo(page, steps=4)
    wait_for_line(page, "^Waiting: “flatmoji” trains now, 2 jobs before it$")
    assert "“flatmoji” begins when “flatmoji” is done, which trains now." in toast(page)
    press(page, "move")
    wait_for_line(page, "^Waiting: “flatmoji” trains now, 1 job before it$")
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


def test_a_finished_training_that_comfyui_does_not_run_again_is_shown(page):
    queue_demo(page, steps=2)
    wait_for_line(page, r"^Trained 2 steps\.$")
    job, again = job_of(page), page.evaluate("app.graph.serialize()")
    again["id"] = "00000000-0000-0000-0000-000000000000"  # as a template has
    for node in again["nodes"]:
        node["properties"].pop("livelora_job", None)
    load(page, again)
    look_at_train(page)
    wait_for_line(page, r"^Not trained yet\.$")
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_line(page, r"^Trained 2 steps\.$")
    assert job_of(page) == job
    page.wait_for_function("document.querySelectorAll('.livelora .round img').length === 2", timeout=MINUTE)
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


def test_undo_after_a_run_takes_back_what_a_person_did_and_keeps_the_job(page):
    queue_demo(page, steps=2)
    wait_for_line(page, r"^Trained 2 steps\.$")
    job = job_of(page)
    steps = f"(() => {{ {TRAIN} return node.widgets.find((w) => w.name === 'preset.steps').value; }})()"
    page.evaluate("window.dispatchEvent(new MouseEvent('mouseup'))")  # ComfyUI looks for changes
    page.evaluate("document.activeElement.blur()")
    for key, expected in ("Control+z", 300), ("Control+y", 2):
        while page.evaluate(steps) != expected:  # in Nodes 2.0 it is a step as well that a node has grown
            page.keyboard.press(key)
            page.wait_for_timeout(500)
        wait_for_line(page, r"^Trained 2 steps\.$")
        assert job_of(page) == job
