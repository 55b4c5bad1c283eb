"""Defines a training job: what it is, what state it is in, and what it can be told."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..lora.file import Lora
from ..model.memory import Plan
from ..recipe.config import TrainConfig, renewed
from ..training.preparation import Prepared
from ..training.task import Task
from .card import Card
from .folder import JobFolder, Which
from .history import History
from .lease import Sharing
from .saving import SaveAs, Saving, Shelf
from .states import ACTIONS, COMING, DURING_TRAINING, REQUEUED, Refused, State, Wish, any_of
from .workflow import Graph

log = logging.getLogger(__name__)

Listener = Callable[["Job", str, dict[str, Any]], None]
"""A function that is called with the job, what happened to it, and the facts of that."""


class Job:
    """Stands for one training, on disk for good and in memory while this process lives. Its state changes in memory and
    on disk together, under its lock. It knows nothing of the queue, which the book has."""

    def __init__(self, folder: JobFolder, facts: dict[str, Any], listeners: Sequence[Listener] = (),
                 shelf: Shelf | None = None) -> None:
        """`facts` is what `job.json` holds. Raises KeyError, TypeError or ValueError if this version cannot use it."""
        self.id, self.folder, self.lock = folder.path.name, folder, threading.RLock()
        self.card = Card(folder, facts)
        self.state: State = facts["state"]
        self.message: str = facts["message"]
        self.config = TrainConfig(**renewed(facts["recipe"]))
        self.sharing: Sharing = facts["sharing"]
        self.fingerprints: dict[str, str] = facts["fingerprints"]
        self.saving = Saving(folder, facts, shelf, self._tell)
        self.listeners: list[Listener] = list(listeners)
        self.graph: Graph | None = folder.read_graph()
        self.history = History(folder)
        self.ended = threading.Event()
        """Is set while the job neither trains nor waits for its turn."""
        self.ended.set()
        self.wish: Wish | None = None
        """What is to happen to the job after the step under way; None if it just goes on."""
        self.awaited = self.not_queued = ""
        """The id of the prompt that will bring the job's model back, or COMING, or empty; and why the last did not."""
        self.waited_for = self.interrupted = self.closing = False
        """Whether a prompt waits for this job, so that the program's stop button means it; whether that button, and not
        the job's own, ended it; whether the program is ending."""
        self.plan: Plan | None = None  # how its memory is used, once it has trained in this process
        self.task: Task | None = None
        """The job's task, which holds the model. It is kept only while the job may go on at once."""
        self.prepared: Prepared | None = None
        self.unwritten: Lora | None = None
        """The finished LoRA, while the disk has not taken it."""
        self.cut_short = 0
        """How often the job ended before its time in this process."""
        self._source: Callable[[], Lora | None] | None = None
        self._asked: set[str] = set()  # the actions that are to be done once, after the step under way

    def lora(self, which: Which | int) -> Lora | None:
        """Returns the LoRA as it is now, the one with the lowest held-out loss if that was measured, or that of a step
        in `snapshots`; None before the first step. The caller holds the lease, or the job has ended."""
        if isinstance(which, int):
            return self.folder.read_lora(which)
        if which == "best" and (best := self.folder.read_lora("best")):
            return best
        source = self._source  # the training thread may let go of it at any time
        if source and (newest := source()):
            return newest
        if self.state in ("done", "stopped") and (kept := self.unwritten or self.folder.read_lora("last")):
            return kept
        return self.folder.newest_lora()

    def why_not(self, action: str) -> str:
        """Returns a sentence that says why the action is not possible now; empty if it is possible."""
        possible = ACTIONS[action]
        if self.state not in possible:
            return f"This job is {self.state}, so '{action}' is not possible. It must be {any_of(possible)}."
        if self.wish and action in DURING_TRAINING:
            return f"This job is about to {self.wish}, after the step under way. Ask again when it has."
        if action in self._asked:
            return f"'{action}' was asked for already, and comes after the step under way."
        if action == "export" and not self.history.step:
            return "This job has learned nothing yet, so there is no LoRA to save. Wait for its first step."
        if action == "sample" and not (self.task and self.task.preview):
            return "This job has no preview prompts. Wire LoRA Sample Preview into LoRA Train and queue it again."
        if self.awaited and action in ("resume", "extend", "delete"):
            return "This job's workflow waits in ComfyUI's queue already, to go on. Wait for it, or cancel it there."
        if action in REQUEUED and not self.graph and (action == "duplicate" or not self.task):
            return "The workflow that this job came from is not known. Queue it again by hand."
        return ""

    def check(self, action: str) -> None:
        """Raises Refused if the action is not possible now. So does each method for what a person wants."""
        if reason := self.why_not(action):
            raise Refused(reason)

    def want(self, wish: Wish) -> None:
        """Notes what is to happen to the training after the step under way."""
        with self.lock:
            self.check(wish)
            self.wish, self.message = wish, f"About to {wish}, after this step."
            self.notify("progress")

    def end(self, wish: Wish) -> None:
        """Pauses, stops or discards the job at once. The job must not be in the training thread."""
        with self.lock:
            if wish == "pause":
                self.rest("paused", self.where("Paused", "Resume to go on."))
            elif wish == "discard":
                self.forget()
            else:
                self.keep_lora()
                self.rest("stopped", self.where("Stopped", "Queue again to go on."))

    def ask(self, name: str) -> None:
        """Asks for a state ("save"), a LoRA file ("export") or the previews ("sample") after the step under way."""
        with self.lock:
            self.check(name)
            self._asked.add(name)
            self._tell()

    def share(self, sharing: Sharing) -> None:
        """Changes who goes first when prompts and this job both want the GPU."""
        with self.lock:
            self.sharing = sharing
            self._tell()

    def lengthen(self, config: TrainConfig) -> None:
        """Takes a recipe with more `extra_steps`. A job that trains follows it after the step under way."""
        with self.lock:
            self.check("extend")
            self.config = config
            if self.graph:
                self._take_graph(self.graph.changed({"extra_steps": config.extra_steps}))
            if self.task:
                self.task = self.task.extended(config)
            if self.state in ("preparing", "training"):
                self.wish = "extend"
            self._tell()

    def queue(self, task: Task | None = None, graph: Graph | None = None) -> None:
        """Takes a new task, or keeps the one it has, and enters the state "queued"."""
        with self.lock:
            if task:
                self.task, self.prepared, self.config = task, None, task.config
            if graph:
                self._take_graph(graph)
            self.awaited, self.interrupted = "", False
            self.ended.clear()
            self.enter("queued")

    def was_queued(self, sharing: Sharing, saves: tuple[SaveAs, ...] | None = None) -> None:
        """Notes that a prompt with this job's workflow runs. `saves` is None if the prompt does not tell."""
        with self.lock:
            self.sharing, self.awaited, self.not_queued = sharing, "", ""
            self.saving.wanted = self.saving.wanted if saves is None else saves

    def await_prompt(self, prompt_id: str = COMING) -> None:
        """Notes that a prompt will bring the model back; its id, once it is queued, unless it has come by then."""
        with self.lock:
            self.awaited, self.not_queued = prompt_id if prompt_id == COMING or self.awaited else "", ""
            self.notify("progress")

    def not_coming(self, message: str, prompt_id: str = "") -> None:
        """Notes why no prompt brings the model back, until one is queued; with `prompt_id`, only if it is awaited."""
        with self.lock:
            if prompt_id in ("", self.awaited):
                self.awaited, self.not_queued = "", message
                self.notify("progress")

    @contextlib.contextmanager
    def waited_on(self) -> Iterator[None]:
        """Notes, while inside, that a prompt waits for the job."""
        self.waited_for = True
        try:
            yield
        finally:
            self.waited_for = False

    def interrupt(self) -> None:
        """Notes that somebody who meant this job pressed the program's stop button."""
        self.interrupted = True

    def close(self) -> None:
        """Notes that the program ends, so that what waits for this job goes no further."""
        self.closing = True

    # What the training thread asks of it

    def start(self) -> Task:
        """Begins the job's turn. Returns its task, with every extension that was asked for until now."""
        with self.lock:  # an extension comes before this, and is in the task, or after it, and is a wish
            assert self.task is not None, "a job in the queue has a task"
            if self.wish == "extend":
                self.wish = None
            self.enter("preparing")
            return self.task

    def lend(self, source: Callable[[], Lora | None] | None) -> None:
        """Takes a `source` that returns the LoRA as it is while the job trains; None when it no longer trains."""
        self._source = source

    def keep(self, prepared: Prepared) -> None:
        """Keeps what was prepared, for the time when the job goes on."""
        self.prepared = prepared

    def keep_lora(self, lora: Lora | None = None) -> None:
        """Writes the finished LoRA, or else that of the newest state, to the job's folder, and saves it for others."""
        self.unwritten = newest = lora or self.unwritten
        with self.history.tolerating("LoRA"):
            self.folder.keep_lora(newest)
            self.unwritten = None
        if not self.interrupted:  # that ended the whole workflow
            self.saving.at_end(newest, self.graph, self.history)

    def takes(self, name: str) -> bool:
        """Returns whether this was asked for, and forgets that it was."""
        with self.lock:
            return name in self._asked and not self._asked.remove(name)

    def progress(self, message: str | None = None) -> None:
        """Tells all listeners how far the job is. `message` tells a person what is being done."""
        with self.lock:
            self.message = self.message if message is None else message
            if self.card.behind:
                self.write()
            self.notify("progress")

    def enter(self, state: State, message: str = "") -> None:
        """Changes the state, in memory and on disk."""
        with self.lock:
            self.state, self.message, self.not_queued = state, message, ""
            if state not in ("preparing", "training"):
                self.wish = None
                self._asked.clear()
            log.info("LoRA training %s: %s %s", self.id, state, message)
            self._tell()

    def rest(self, state: State, message: str) -> None:
        """Enters a state in which the job neither trains nor waits. A paused one keeps its model, to go on at once."""
        with self.lock:  # whoever sees the new state may queue it again
            self.enter(state, message)
            if state != "paused":
                self.task, self.prepared, self.plan = None, None, self.plan and self.plan.settled()
            self.cut_short += state != "done"
            self.ended.set()

    def forget(self) -> None:
        """Removes what was learned, for good, and stops the job."""
        with self.lock:
            stopped = f"Stopped at step {self.history.step}, "
            try:
                self.folder.discard()
                self.folder.create()
                message = stopped + "and what was learned was discarded. Resume to start over."
            except OSError as err:
                message = stopped + f"but not all that was learned could be removed ({err}). Delete the job."
            self.history, self.unwritten = History(self.folder), None
            self.saving.forget()
            self.rest("stopped", message)

    def where(self, what: str, then: str) -> str:
        """Returns what happened, how far the job came, and what to do then, in words."""
        what, then = ("ComfyUI was closed", "Resume to go on.") if self.closing else (what, then)
        step, total = self.history.step, self.config.total_steps
        return f"{what} {f'at step {step} of {total}' if step else 'before training began'}. {then}"

    def write(self) -> None:
        """Replaces `job.json`. Raises OSError if there is none yet and it cannot be written."""
        with self.lock:
            self.card.write(state=self.state, message=self.message, step=self.history.step,
                            recipe=self.config.as_dict(), sharing=self.sharing, **self.saving.as_facts())

    def _tell(self) -> None:
        self.write()
        self.notify("progress")

    def _take_graph(self, graph: Graph) -> None:
        self.graph = graph
        with self.history.tolerating("workflow"):
            self.folder.write_graph(graph)

    def notify(self, event: str, **facts: Any) -> None:
        """Tells all listeners: "progress" when anything about the job has changed, "sample" with the facts of a new
        picture, "deleted" when it is gone. A listener that fails is logged and does not disturb the training."""
        for listener in list(self.listeners):
            try:
                listener(self, event, facts)
            except Exception:
                log.exception("A listener to LoRA training %s failed", self.id)
