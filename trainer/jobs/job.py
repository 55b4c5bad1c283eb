"""A training job: what it is, what state it is in, and what a person can do with it."""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from ..lora.file import Lora
from ..recipe.choices import Sharing
from ..recipe.config import TrainConfig
from ..training.preparation import Prepared
from ..training.task import Task
from .folder import JobFolder, Which
from .history import MOST_LOSSES, Record
from .states import ACTIONS, Refused, State, Wish, why_not
from .worker import TrainQueue
from .workflow import Graph

if TYPE_CHECKING:
    from ..training.trainer import Trainer
    from .run import Run

log = logging.getLogger(__name__)

Listener = Callable[[str, dict[str, Any]], None]


class Job:
    """One training, on disk for good and in memory while this process lives. Its state in memory and on disk change
    together, under its lock."""

    def __init__(self, folder: JobFolder, facts: dict[str, Any], queue: TrainQueue,
                 listeners: Sequence[Listener] = ()) -> None:
        """`facts`: what `job.json` holds. Raises ValueError if its recipe is not one of this version."""
        self.id, self.folder, self.lock = folder.path.name, folder, threading.RLock()
        self.state: State = facts["state"]
        self.message: str = facts["message"]
        self.config = TrainConfig(**facts["recipe"])
        self.sharing: Sharing = facts["sharing"]
        self.fingerprints: dict[str, str] = facts["fingerprints"]
        self.listeners: list[Listener] = list(listeners)
        self.graph: Graph | None = folder.read_graph()
        self.record = Record(folder)
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
        self.run: Run | None = None
        self.trainer: Trainer | None = None
        self.unwritten: Lora | None = None
        """The finished LoRA, if the disk did not take it."""
        self.cut_short = 0
        """How often, in this process, it ended before its time."""
        self._facts, self._queue = facts, queue
        self.asked: set[str] = set()
        """What shall be done once, after the step under way."""

    # What others ask of a job

    def lora(self, which: Which | int) -> Lora | None:
        """The LoRA as it is now, the one with the lowest held-out loss if one was measured, or that of a step in
        `snapshots`; None before the first step. The caller holds the lease, or the job has ended."""
        if isinstance(which, int):
            return self.folder.read_lora(which)
        if which == "best" and (best := self.folder.read_lora("best")):
            return best
        run, trainer = self.run, self.trainer  # the training thread may let go of them at any time
        if run and trainer and trainer.steps_done:
            return run.lora(trainer)
        if self.state in ("done", "stopped") and (kept := self.unwritten or self.folder.read_lora("last")):
            return kept
        return self.folder.newest_lora()

    def version(self, which: Which | int) -> tuple:
        """Changes when `lora` would give another LoRA."""
        best = self.record.held_out.best if which == "best" else None
        return self.id, which, best[0] if best else self.record.step

    def reached(self, config: TrainConfig) -> bool:
        """Whether it is done, and not to be extended by this recipe."""
        done = self.state == "done" and (self.record.step >= config.total_steps or config == self.config)
        return done and self.lora("last") is not None

    @property
    def actions(self) -> list[str]:
        """What can be done with it now."""
        return [name for name in ACTIONS if not why_not(self, name)]

    def status(self) -> dict[str, Any]:
        """What a person sees of it, as plain values."""
        with self.lock:
            facts = self.record.facts(self.config.total_steps)
            left = facts.pop("seconds_left")
            return {"job": self.id, "name": self._facts["name"], "state": self.state,
                    "message": "Its workflow waits in ComfyUI's queue." if self.awaited else self.message,
                    "actions": self.actions, "position": self._queue.position(self), "sharing": self.sharing,
                    "created": self._facts["created"], **facts, "eta": left if self.state == "training" else None}

    def details(self) -> dict[str, Any]:
        """`status`, and what takes longer to find out."""
        return {**self.status(), "losses": self.record.losses[-MOST_LOSSES:], "samples": self.folder.samples(),
                "snapshots": self.folder.snapshots(), "disk_bytes": self.folder.bytes_used(),
                "recipe": self.config.as_dict(), "dataset": self._facts["dataset"], "images": self._facts["images"],
                "preview": bool(self.task and self.task.preview)}

    # What a person does with it. Each raises Refused if it does not go with the state

    def check(self, action: str) -> None:
        """Raises Refused if the action does not go with the state."""
        if reason := why_not(self, action):
            raise Refused(reason)

    def pause(self) -> None:
        """After the step under way its state is saved, and others can train."""
        self._wish_for("pause")

    def stop(self) -> None:
        """Ends after the step under way. What it learned is kept, and it can go on from there."""
        self._wish_for("stop")

    def discard(self) -> None:
        """Ends after the step under way and forgets what it learned."""
        self._wish_for("discard")

    def save(self) -> None:
        """Writes a state after the step under way."""
        self._ask("save")

    def sample(self) -> None:
        """Draws the previews after the step under way."""
        self._ask("sample")

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

    def begin(self, task: Task | None = None, graph: Graph | None = None) -> None:
        """Puts it in the queue, with a new task or the one it has."""
        with self.lock:
            if task:
                self.task, self.prepared, self.config = task, None, task.config
            if graph:
                self._take_graph(graph)
            self.awaited, self.interrupted = "", False
            self.ended.clear()
            self.enter("queued")
            self._queue.put(self)

    def attend(self, config: TrainConfig) -> None:
        """Its workflow was queued again while it is active: it goes on, further if the recipe asks for that."""
        with self.lock:
            if config.total_steps > self.config.total_steps and not why_not(self, "extend"):
                self.lengthen(config)

    def not_coming(self, message: str) -> None:
        """The prompt that was to bring the model back did not."""
        with self.lock:
            self.awaited, self.message = "", message or self.message
            self._tell()

    def interrupt(self) -> None:
        """The program's stop button was pressed by somebody who meant this job."""
        with self.lock:
            self.interrupted = True
            if not why_not(self, "stop"):
                self._wish_for("stop")

    def close(self) -> None:
        """The program ends: pauses, and what waits for it goes no further."""
        with self.lock:
            self.closing = True
            if not why_not(self, "pause"):
                self._wish_for("pause")

    # What the training thread asks of it

    def takes(self, name: str) -> bool:
        """Whether this was asked for; it is then no longer."""
        with self.lock:
            return name in self.asked and not self.asked.remove(name)

    def enter(self, state: State, message: str = "") -> None:
        """Changes the state, here and on disk."""
        with self.lock:
            self.state, self.message = state, message
            if state not in ("preparing", "training"):
                self.wish = None
                self.asked.clear()
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
            stopped = f"Stopped at step {self.record.step}, "
            try:
                self.folder.discard()
                self.folder.create()
                message = stopped + "and what was learned was discarded. Resume to start over."
            except OSError as err:
                message = stopped + f"but not all that was learned could be removed ({err}). Delete the job."
            self.record, self.unwritten = Record(self.folder), None
            self.rest("stopped", message)

    def where(self, what: str, then: str) -> str:
        """A sentence on how far it came."""
        if self.closing:
            what, then = "ComfyUI was closed", "Resume to go on."
        step, total = self.record.step, self.config.total_steps
        return f"{what} {f'at step {step} of {total}' if step else 'before training began'}. {then}"

    def write(self) -> None:
        """Replaces `job.json`."""
        self._facts |= {"state": self.state, "message": self.message, "step": self.record.step,
                        "recipe": self.config.as_dict(), "sharing": self.sharing,
                        "changed": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
        with self.record.nothing_lost("The job's state could not be written"):
            self.folder.write_job(self._facts)

    def _wish_for(self, wish: Wish) -> None:
        with self.lock:
            self.check(wish)
            if self.state == "paused" or (self.state == "queued" and self._queue.remove(self)):
                self._end_now(wish)
            else:
                self.wish, self.message = wish, f"About to {wish}, after this step."
                self.notify("progress", self.status())

    def _end_now(self, wish: Wish) -> None:
        """Outside the training thread."""
        if wish == "pause":
            self.rest("paused", self.where("Paused", "Resume to go on."))
        elif wish == "discard":
            self.forget()
        else:
            with self.record.nothing_lost("The LoRA could not be written to the job's folder"):
                self.folder.keep_lora(self.unwritten)
            self.rest("stopped", self.where("Stopped", "Queue again to go on."))

    def _ask(self, name: str) -> None:
        with self.lock:
            self.check(name)
            self.asked.add(name)
            self._tell()

    def _tell(self) -> None:
        self.write()
        self.notify("progress", self.status())

    def _take_graph(self, graph: Graph) -> None:
        self.graph = graph
        with self.record.nothing_lost("The workflow could not be written to the job's folder"):
            self.folder.write_graph(graph)

    def notify(self, event: str, facts: dict[str, Any]) -> None:
        """Tells all listeners. What goes wrong with them is no matter of the training's."""
        for listener in list(self.listeners):
            try:
                listener(event, {"job": self.id, **facts})
            except Exception:
                log.exception("A listener to LoRA training %s failed", self.id)
