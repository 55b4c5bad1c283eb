"""A training job: what it is, what state it is in, and what it can be told."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from ..lora.file import Lora
from ..recipe.config import TrainConfig
from ..training.preparation import Prepared
from ..training.task import Task
from .card import Card
from .folder import JobFolder, Which
from .history import History
from .lease import Sharing
from .states import ACTIONS, DURING_TRAINING, REQUEUED, Refused, State, Wish, any_of
from .workflow import Graph

log = logging.getLogger(__name__)

Listener = Callable[["Job", str, dict[str, Any]], None]
"""Hears the job, what happened to it, and the facts of that."""


class Job:
    """One training, on disk for good and in memory while this process lives. Its state in memory and on disk change
    together, under its lock. It knows no queue: the book has that."""

    def __init__(self, folder: JobFolder, facts: dict[str, Any], listeners: Sequence[Listener] = ()) -> None:
        """`facts`: what `job.json` holds. Raises ValueError if its recipe is not one of this version."""
        self.id, self.folder, self.lock = folder.path.name, folder, threading.RLock()
        self.card = Card(folder, facts)
        self.state: State = facts["state"]
        self.message: str = facts["message"]
        self.config = TrainConfig(**facts["recipe"])
        self.sharing: Sharing = facts["sharing"]
        self.fingerprints: dict[str, str] = facts["fingerprints"]
        self.listeners: list[Listener] = list(listeners)
        self.graph: Graph | None = folder.read_graph()
        self.history = History(folder)
        self.ended = threading.Event()
        """Set while it neither trains nor waits for its turn."""
        self.ended.set()
        self.wish: Wish | None = None
        """What shall become of it after the step under way."""
        self.awaited = ""
        """The prompt that will bring its model back, if one was asked for."""
        self.waited_for = False
        """Whether a prompt waits for this job. The program's stop button then means it."""
        self.interrupted = self.closing = False
        """Whether the program's stop button ended this job, and not its own; whether the program ends."""
        self.task: Task | None = None
        """Kept while it may go on: it holds the model."""
        self.prepared: Prepared | None = None
        self.unwritten: Lora | None = None
        """The finished LoRA, if the disk did not take it."""
        self.cut_short = 0
        """How often, in this process, it ended before its time."""
        self._source: Callable[[], Lora | None] | None = None
        self._asked: set[str] = set()
        """What shall be done once, after the step under way."""

    # What others ask of a job

    def lora(self, which: Which | int) -> Lora | None:
        """The LoRA as it is now, the one with the lowest held-out loss if one was measured, or that of a step in
        `snapshots`; None before the first step. The caller holds the lease, or the job has ended."""
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

    def version(self, which: Which | int) -> tuple:
        """Changes when `lora` would give another LoRA."""
        best = self.history.held_out.best if which == "best" else None
        return self.id, which, best[0] if best else self.history.step

    def why_not(self, action: str) -> str:
        """A sentence if the action is not possible now; else nothing."""
        possible = ACTIONS[action]
        if self.state not in possible:
            return f"This job is {self.state}, so '{action}' is not possible. It is when a job is {any_of(possible)}."
        if self.wish and action in DURING_TRAINING:
            return f"This job is about to {self.wish}, after the step under way. Ask again when it has."
        if action in self._asked:
            return f"'{action}' was asked for already, and comes after the step under way."
        if action == "sample" and not (self.task and self.task.preview):
            return "This job has no preview prompts. Wire LoRA Sample Preview into LoRA Train and queue it again."
        if self.awaited and action in ("resume", "extend", "delete"):
            return "This job's workflow waits in ComfyUI's queue already, to go on. Wait for it, or cancel it there."
        if action in REQUEUED and not self.graph and (action == "duplicate" or not self.task):
            return "The workflow that this job came from is not known. Queue it again by hand."
        return ""

    def check(self, action: str) -> None:
        """Raises Refused if the action is not possible now."""
        if reason := self.why_not(action):
            raise Refused(reason)

    # What a person wants of it. Each raises Refused if it does not go with the state

    def want(self, wish: Wish) -> None:
        """Notes what shall become of the training after the step under way."""
        with self.lock:
            self.check(wish)
            self.wish, self.message = wish, f"About to {wish}, after this step."
            self.notify("progress")

    def end(self, wish: Wish) -> None:
        """Pauses, stops or discards it at once: it is not in the training thread."""
        with self.lock:
            if wish == "pause":
                self.rest("paused", self.where("Paused", "Resume to go on."))
            elif wish == "discard":
                self.forget()
            else:
                with self.history.tolerating("LoRA"):
                    self.folder.keep_lora(self.unwritten)
                self.rest("stopped", self.where("Stopped", "Queue again to go on."))

    def ask(self, name: str) -> None:
        """Asks for a state ("save") or the previews ("sample") after the step under way."""
        with self.lock:
            self.check(name)
            self._asked.add(name)
            self._tell()

    def share(self, sharing: Sharing) -> None:
        """Changes who goes first when prompts and this job both want the GPU. Raises ValueError for no such rule."""
        if sharing not in get_args(Sharing):
            raise ValueError(f"policy must be one of {', '.join(get_args(Sharing))}, got {sharing!r}.")
        with self.lock:
            self.sharing = sharing
            self._tell()

    def lengthen(self, config: TrainConfig) -> None:
        """Takes a recipe with more `extra_steps`; a training goes on by it after the step under way."""
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
        """Takes a new task, or keeps the one it has, and waits for its turn."""
        with self.lock:
            if task:
                self.task, self.prepared, self.config = task, None, task.config
            if graph:
                self._take_graph(graph)
            self.awaited, self.interrupted = "", False
            self.ended.clear()
            self.enter("queued")

    def was_queued(self, sharing: Sharing) -> None:
        """A prompt with this job's workflow runs: what was awaited is there."""
        with self.lock:
            self.sharing, self.awaited = sharing, ""

    def await_prompt(self, prompt_id: str) -> None:
        """A prompt will bring its model back; COMING if it has no id yet."""
        with self.lock:
            self.awaited = prompt_id
            self.notify("progress")

    def not_coming(self, message: str, prompt_id: str = "") -> None:
        """The prompt that was to bring the model back did not; with `prompt_id`, only if it is still that one."""
        with self.lock:
            if prompt_id in ("", self.awaited):
                self.awaited, self.message = "", message or self.message
                self._tell()

    @contextlib.contextmanager
    def waited_on(self) -> Iterator[None]:
        """While inside, a prompt waits for it."""
        self.waited_for = True
        try:
            yield
        finally:
            self.waited_for = False

    def interrupt(self) -> None:
        """The program's stop button was pressed by somebody who meant this job."""
        self.interrupted = True

    def close(self) -> None:
        """The program ends, and what waits for this job goes no further."""
        self.closing = True

    # What the training thread asks of it

    def start(self) -> Task:
        """It is its turn. Gives its task, with every extension that was asked for until now."""
        with self.lock:  # what extends it comes before, and is in its task, or after, and is a wish
            assert self.task is not None, "a job in the queue has a task"
            if self.wish == "extend":
                self.wish = None
            self.enter("preparing")
            return self.task

    def lend(self, source: Callable[[], Lora | None] | None) -> None:
        """`source` gives the LoRA as it is while the job trains; None when it no longer does."""
        self._source = source

    def keep(self, prepared: Prepared) -> None:
        """Keeps what was prepared, for when it goes on."""
        self.prepared = prepared

    def hold(self, lora: Lora | None) -> None:
        """Keeps the finished LoRA until the disk has it."""
        self.unwritten = lora

    def takes(self, name: str) -> bool:
        """Whether this was asked for; it is then no longer."""
        with self.lock:
            return name in self._asked and not self._asked.remove(name)

    def progress(self, message: str | None = None) -> None:
        """Tells all listeners how far it is. `message`: what is being done, for a person."""
        with self.lock:
            self.message = self.message if message is None else message
            if self.card.behind:
                self.write()
            self.notify("progress")

    def enter(self, state: State, message: str = "") -> None:
        """Changes the state, here and on disk."""
        with self.lock:
            self.state, self.message = state, message
            if state not in ("preparing", "training"):
                self.wish = None
                self._asked.clear()
            log.info("LoRA training %s: %s %s", self.id, state, message)
            self._tell()

    def rest(self, state: State, message: str) -> None:
        """It neither trains nor waits any more. What is paused keeps its model, to go on at once."""
        with self.lock:  # whoever sees the new state may queue it again
            self.enter(state, message)
            if state != "paused":
                self.task = self.prepared = None
            self.cut_short += state != "done"
            self.ended.set()

    def forget(self) -> None:
        """Drops what was learned, for good."""
        with self.lock:
            stopped = f"Stopped at step {self.history.step}, "
            try:
                self.folder.discard()
                self.folder.create()
                message = stopped + "and what was learned was discarded. Resume to start over."
            except OSError as err:
                message = stopped + f"but not all that was learned could be removed ({err}). Delete the job."
            self.history, self.unwritten = History(self.folder), None
            self.rest("stopped", message)

    def where(self, what: str, then: str) -> str:
        """A sentence on how far it came."""
        what, then = ("ComfyUI was closed", "Resume to go on.") if self.closing else (what, then)
        step, total = self.history.step, self.config.total_steps
        return f"{what} {f'at step {step} of {total}' if step else 'before training began'}. {then}"

    def write(self) -> None:
        """Replaces `job.json`. Raises OSError if there is none yet and it cannot be written."""
        with self.lock:
            self.card.write(state=self.state, message=self.message, step=self.history.step,
                            recipe=self.config.as_dict(), sharing=self.sharing)

    def _tell(self) -> None:
        self.write()
        self.notify("progress")

    def _take_graph(self, graph: Graph) -> None:
        self.graph = graph
        with self.history.tolerating("workflow"):
            self.folder.write_graph(graph)

    def notify(self, event: str, **facts: Any) -> None:
        """Tells all listeners: "progress" when anything about the job has changed, "sample" with the facts of a new
        picture. What goes wrong with them is no matter of the training's."""
        for listener in list(self.listeners):
            try:
                listener(self, event, facts)
            except Exception:
                log.exception("A listener to LoRA training %s failed", self.id)
