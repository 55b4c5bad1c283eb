"""Two tabs on one job, and what other tabs and programs do while this one is open."""

from __future__ import annotations

import time

import pytest
from demo_page import (
    DEMO,
    MINUTE,
    TRAIN,
    add_node,
    answer_dialog,
    job_of,
    load,
    look_at_train,
    new_seed,
    press,
    queue_demo,
    start_demo,
    wait_for_line,
)
from graphs import training
from raw import act

NAMES = ("state", "message", "actions", "position", "step", "steps")


@pytest.fixture
def two(open_page):
    """Two tabs with the same training workflow, and its job."""
    pages = [open_page(), open_page()]
    job = start_demo(pages[0])
    load(pages[1], pages[0].evaluate("app.graph.serialize()"))
    look_at_train(pages[1])
    wait_for_line(pages[1], r"^Step [1-9]\d* of 3000")
    return pages, job


def press_both(pages, action: str, other: str) -> list[int]:
    """At the same moment, as far as timers go: neither tab shows any more what the other one's press has changed. What
    the server answered, by status."""
    for page, name in zip(pages, (action, other), strict=True):
        page.evaluate(f"""(name) => {{
          {TRAIN}
          const live = node.livelora, show = live.show;
          let last = live.shown;
          live.show = (facts) => {{ last = facts; }};
          const button = document.querySelector(`.livelora [data-action=${{name}}]`);
          window.press = () => {{ button.click(); live.show = show; show(last); }};
        }}""", name)
        page.evaluate("""() => {
          window.answered = new Promise((done) => {
            const { api } = window.comfyAPI.api;
            const fetchApi = api.fetchApi;
            api.fetchApi = async (route, options) => {
              const answer = await fetchApi.call(api, route, options);
              if (route.startsWith("/livelora/") && options?.method === "POST") done(answer.status);
              return answer;
            };
          });
        }""")
    at = 1000 * time.time() + 500
    for page in pages:
        page.evaluate("(at) => { setTimeout(window.press, at - Date.now()); }", at)
    return sorted(page.evaluate("window.answered") for page in pages)


def agree(pages, server, job: str) -> dict:
    """Waits until every tab shows what the server says, and gives it."""
    end = time.monotonic() + 60
    while True:
        facts = server.get(f"/livelora/jobs/{job}")
        shown = [page.evaluate(f"() => {{ {TRAIN} return node.livelora.shown; }}") for page in pages]
        if all(here[name] == facts[name] for here in shown for name in NAMES):
            return facts
        assert time.monotonic() < end, (shown, facts)
        pages[0].wait_for_timeout(200)


def test_two_tabs_that_act_at_once_end_up_with_what_the_server_says(two, server, wait_for):
    pages, job = two
    rounds = [("pause", "pause", [200, 409], ["paused"]), ("resume", "resume", [200, 409], ["training"]),
              # If the job has paused already when 'stop' comes, both are possible, one after the other.
              ("stop", "pause", None, ["paused", "stopped"]), ("resume", "resume", [200, 409], ["training"]),
              ("stop", "stop", [200, 409], ["stopped"])]
    for first, second, answers, states in rounds:
        answered = press_both(pages, first, second)
        assert answered == answers if answers else answered in ([200, 409], [200, 200])
        wait_for(server, job, lambda facts, states=states: facts["state"] in states)
        if states == ["training"]:
            for page in pages:
                wait_for_line(page, r"^Step [1-9]\d* of 3000")
        else:
            assert agree(pages, server, job)["state"] in states
    press(pages[1], "delete")
    answer_dialog(pages[1], "Delete")
    for page in pages:
        wait_for_line(page, r"^Not trained yet\.$")
        assert page.problems == []


def test_a_tab_sees_what_another_does_with_a_paused_job(two, server, wait_for):
    pages, job = two
    press(pages[0], "pause")
    wait_for_line(pages[0], "^Paused")
    agree(pages, server, job)
    press(pages[1], "extend")
    answer_dialog(pages[1], "Confirm", "3007")
    wait_for(server, job, lambda facts: facts["steps"] == 3007)  # both tabs agree on 3000 until the request is there
    assert agree(pages, server, job)["steps"] == 3007


def test_a_job_belongs_to_the_workflow_that_it_began_from(page, server):
    """Not to the one that is open by then, which has nodes of the same ids."""
    first = server.queue(training(new_seed(), steps=60))  # the next one waits for it
    queue_demo(page, steps=2)
    load(page, DEMO)
    server.result(first)
    while any(server.get("/queue").values()):
        page.wait_for_timeout(100)
    page.wait_for_timeout(500)  # its last events come
    assert job_of(page) is None and wait_for_line(page, ".") == "Not trained yet."
    page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    wait_for_line(page, r"^Trained 2 steps\.$")
    assert job_of(page) == server.get("/livelora/jobs")[-1]["job"]
    page.evaluate("app.extensionManager.command.execute('Workspace.NextOpenedWorkflow')")
    wait_for_line(page, r"^Not trained yet\.$")
    assert page.problems == []


@pytest.mark.parametrize("kind", ["LiveLoraLive", "LiveLoraGrid"])
def test_a_new_job_can_be_chosen_without_a_reload(page, server, wait_for, kind):
    chosen = f"app.graph.nodes.find((n) => n.comfyClass === '{kind}').widgets.find((w) => w.name === 'job')"
    add_node(page, kind)
    server.run(training(new_seed(), steps=1))
    newest = server.get("/livelora/jobs")[-1]["job"]
    page.wait_for_function(f"(job) => {chosen}.options.values[1] === job", arg=newest, timeout=MINUTE)
    offered = page.evaluate(f"{chosen}.options.values")
    assert offered == ["newest", *[facts["job"] for facts in reversed(server.get("/livelora/jobs"))]]
    if page.evaluate("app.extensionManager.setting.get('Comfy.VueNodes.Enabled')"):
        page.locator("[data-node-id] [role=combobox]").first.click()
        page.get_by_role("option").nth(1).click(timeout=MINUTE)
        assert page.evaluate(f"{chosen}.value") == newest
    act(server, newest, "delete")
    page.wait_for_function(f"(job) => !{chosen}.options.values.includes(job)", arg=newest, timeout=MINUTE)
    assert page.problems == []
