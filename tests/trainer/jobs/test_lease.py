"""The lease: one at a time, prompts first, and it tells whether a prompt was in between."""

from __future__ import annotations

import threading
import time

from livelora.trainer.jobs.lease import Lease

SOON = 5.0


def test_turns_tell_whether_a_prompt_was_in_between():
    """Also one that still goes on: what it does until its end counts as well."""
    lease, turns = Lease(), []

    def step() -> None:
        with lease.step():
            turns.append(lease.prompt_turns())

    step()
    step()
    lease.take_for_prompt()
    turns.append(lease.prompt_turns())
    lease.give_back()
    step()
    step()
    first, undisturbed, within, disturbed, again = turns
    assert first == undisturbed != within and disturbed not in (first, within) and disturbed == again


def test_a_waiting_prompt_goes_before_the_next_step():
    lease, order, inside = Lease(), [], threading.Event()

    def train() -> None:
        for number in range(3):
            with lease.step():
                order.append(f"step {number}")
                inside.set()
                while not (number or lease.prompt_is_waiting):
                    time.sleep(0.001)

    def prompt() -> None:
        inside.wait(SOON)
        lease.take_for_prompt()
        order.append("prompt")
        lease.give_back()

    threads = [threading.Thread(target=train), threading.Thread(target=prompt)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert order == ["step 0", "prompt", "step 1", "step 2"]


def test_a_prompt_and_a_step_never_overlap():
    lease, busy, overlaps = Lease(), threading.Lock(), []

    def work() -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(True)
            return
        time.sleep(0.0005)
        busy.release()

    def train() -> None:
        for _ in range(100):
            with lease.step():
                work()

    def prompts() -> None:
        for _ in range(100):
            lease.take_for_prompt()
            work()
            lease.give_back()

    threads = [threading.Thread(target=t) for t in (train, prompts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not overlaps and not any(t.is_alive() for t in threads)


def test_a_prompt_that_waits_lends_its_lease():
    lease, trained = Lease(), threading.Event()
    lease.take_for_prompt()

    def train() -> None:
        with lease.step():
            trained.set()

    thread = threading.Thread(target=train)
    thread.start()
    assert not trained.wait(0.1)
    with lease.lent():
        assert trained.wait(SOON)
    thread.join(SOON)
    assert not lease.prompt_is_waiting


def test_an_error_in_a_step_gives_the_lease_back():
    lease = Lease()
    try:
        with lease.step():
            raise RuntimeError
    except RuntimeError:
        pass
    lease.take_for_prompt()


def steps(lease: Lease, order: list[str], count: int, seconds: float = 0.02) -> threading.Thread:
    """A training thread that takes so many steps."""
    def work() -> None:
        for _ in range(count):
            with lease.step():
                order.append("step")
                time.sleep(seconds)
            time.sleep(0.001)  # what a training does outside the lease

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until_two(order: list[str]) -> None:
    """Steps were taken."""
    while len(order) < 2:
        time.sleep(0.005)


def test_training_waits_until_no_prompt_is_queued():
    lease, order, queued = Lease(), [], [True]
    lease.prompts_queued = lambda: bool(queued)
    thread = steps(lease, order, 2)
    for _ in range(3):
        lease.take_for_prompt()
        order.append("prompt")
        lease.give_back()
        time.sleep(0.1)  # time enough for a step to slip in between
    queued.clear()
    thread.join(SOON)
    assert order == ["prompt"] * 3 + ["step"] * 2


def test_in_a_fair_share_training_gets_as_much_time_as_the_prompt_took():
    lease, durations = Lease(), []
    lease.prompts_queued = lambda: True

    def train() -> None:
        for _ in range(100):
            with lease.step():
                began = time.monotonic()
                time.sleep(0.02)
                durations.append(time.monotonic() - began)

    with lease.training(lambda: "fair share"):
        lease.take_for_prompt()
        began = time.monotonic()
        time.sleep(0.2)
        took = time.monotonic() - began
        lease.give_back()
        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        lease.take_for_prompt()
        shared = list(durations)
    lease.prompts_queued = lambda: False
    lease.give_back()
    thread.join(30)
    assert sum(shared[:-1]) < 1.2 * took and 0.8 * took < sum(shared), (took, shared)


def test_when_training_goes_first_a_prompt_waits_until_no_job_trains():
    lease, order = Lease(), []

    def prompt() -> None:
        lease.take_for_prompt()
        order.append("prompt")
        lease.give_back()

    thread = threading.Thread(target=prompt)
    with lease.training(lambda: "training first"):
        thread.start()
        steps(lease, order, 5).join(SOON)
        assert order == ["step"] * 5 and not lease.prompt_is_next()
    thread.join(SOON)
    assert order[-1] == "prompt" and lease.idle


def test_a_prompt_that_is_interrupted_waits_for_no_more_than_the_step_under_way():
    lease, order, interrupted = Lease(), [], threading.Event()

    def prompt() -> None:
        lease.take_for_prompt(interrupted.is_set)
        order.append("prompt")
        lease.give_back()

    thread = threading.Thread(target=prompt)
    with lease.training(lambda: "training first"):
        training = steps(lease, order, 200, seconds=0.01)
        thread.start()
        until_two(order)
        interrupted.set()
        thread.join(SOON)
        before = order.index("prompt")
        training.join(30)
    assert 2 <= before < 150 and order.count("step") == 200


def test_a_prompt_that_waited_for_a_job_is_next_whatever_the_rule():
    lease, order = Lease(), []
    lease.take_for_prompt()
    with lease.training(lambda: "training first"):
        with lease.lent():
            training = steps(lease, order, 200, seconds=0.01)
            until_two(order)
        order.append("prompt")
        lease.give_back()
        training.join(30)
    assert 1 <= order.index("prompt") < 150 and order.count("step") == 200


def test_a_lease_that_nobody_wants_is_idle():
    lease = Lease()
    assert lease.idle
    with lease.step():
        assert not lease.idle
    with lease.training(lambda: "fair share"):
        assert not lease.idle
    assert lease.idle


def test_who_unloads_models_waits_for_the_step_under_way_whatever_the_rule_and_not_for_itself():
    lease, order = Lease(), []

    def unload() -> None:
        with lease.briefly(), lease.briefly():
            order.append("unloaded")

    with lease.training(lambda: "training first"):
        training = steps(lease, order, 100, seconds=0.01)
        until_two(order)
        thread = threading.Thread(target=unload)
        thread.start()
        thread.join(SOON)
        training.join(30)
    assert 1 <= order.index("unloaded") < 90 and order.count("step") == 100
    with lease.step(), lease.briefly():  # as ComfyUI does where a step of ours runs out of memory
        pass
    assert not lease._held
    lease.take_for_prompt()
    with lease.briefly():
        assert lease._held
    assert lease._held  # still the prompt's
    lease.give_back()
    assert lease.idle
