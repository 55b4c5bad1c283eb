"""Runs each file of this folder in a process of its own, which has the card (see softcard.py).

The process is forked, so that everything is imported in it when it begins. If a test ends its process, that test fails
and the next one gets a new process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.runner import runtestprotocol

HERE = Path(__file__).parent
LONGEST = 600
"""The seconds after which a test hangs."""
sys.path[:0] = [str(HERE), str(HERE.parent / "comfy")]
if not hasattr(os, "fork"):
    collect_ignore_glob = ["*"]

from wired import *  # noqa: E402, F403


class Fork:
    """A process that runs the tests of one file, one after the other."""

    def __init__(self, path: Path, session: pytest.Session) -> None:
        self.path = path
        self._line, its_end = multiprocessing.Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._line.close()
            serve(session, its_end)
        its_end.close()

    def run(self, item: int, following: int) -> list[dict[str, Any]]:
        """Runs a test and returns its reports. Tests are told by their number in the session. Raises EOFError if the
        process ends meanwhile, as it does, saying where its threads stand, when a test hangs."""
        self._line.send((item, following))
        if not self._line.poll(LONGEST):
            os.kill(self._pid, signal.SIGABRT)
            raise EOFError
        return self._line.recv()

    def end(self) -> int:
        """Waits for the end of the process and returns its exit status. Below 0 it is the signal that ended it."""
        self._line.close()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def serve(session: pytest.Session, line: Connection) -> None:
    """Runs the tests that are asked for, in a fork, and ends it."""
    status = 1
    try:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork, nor does the watch over what hangs
        session.config.pluginmanager.unregister(name="faulthandler")
        while True:
            item, following = (session.items[number] for number in line.recv())
            reports = runtestprotocol(item, log=False, nextitem=following)
            line.send([session.config.hook.pytest_report_to_serializable(config=session.config, report=report)
                       for report in reports])
    except EOFError:
        status = 0
    finally:
        os._exit(status)


running = pytest.StashKey[Fork]()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs the tests of this folder in their file's process, and leaves others to pytest."""
    if HERE not in item.path.parents:
        return None
    session = item.session
    fork = session.stash.setdefault(running, None) or Fork(item.path, session)
    session.stash[running] = fork
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    last = nextitem is None or nextitem.path != item.path
    try:
        # After the last test of all, what the session shares is not put away: the process ends anyhow.
        found = fork.run(session.items.index(item), session.items.index(nextitem or item))
        reports = [session.config.hook.pytest_report_from_serializable(config=session.config, data=data)
                   for data in found]
    except EOFError:
        reports, last = [_ended(item, fork.end())], True
    else:
        if last:
            fork.end()
    if last:
        del session.stash[running]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _ended(item: pytest.Item, status: int) -> pytest.TestReport:
    told = f"The process of the test ended with {status}."
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", told, "call")


@pytest.fixture(scope="session", autouse=True)
def on_card():
    """Gives the process the card, and ComfyUI the belief in it."""
    import comfyui_on_card
    import softcard as card

    try:
        card.load()
    except RuntimeError as err:
        pytest.fail(str(err)) if os.environ.get("CI") else pytest.skip(str(err))
    comfyui_on_card.believe()
