"""The lease: one at a time, prompts first, and it knows whether a prompt was in between."""

from __future__ import annotations

import threading
import time

from livelora.trainer.lease import Lease

SOON = 5.0


def test_a_step_after_a_prompt_is_told_so():
    lease = Lease()
    with lease.step() as first:
        pass
    with lease.step() as undisturbed:
        pass
    lease.take_for_prompt()
    lease.give_back()
    with lease.step() as disturbed:
        pass
    assert first and not undisturbed and disturbed


def test_a_waiting_prompt_goes_before_the_next_step():
    lease, order, inside = Lease(), [], threading.Event()

    def train() -> None:
        for number in range(3):
            with lease.step():
                order.append(f"step {number}")
                inside.set()
                time.sleep(0.05)

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
    with threading.Lock():
        assert not lease.prompt_is_waiting


def test_an_error_in_a_step_gives_the_lease_back():
    lease = Lease()
    try:
        with lease.step():
            raise RuntimeError
    except RuntimeError:
        pass
    lease.take_for_prompt()
