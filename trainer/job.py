"""A training job: its states and its thread."""

from __future__ import annotations

import contextlib
import datetime
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import state
from .config import TrainConfig
from .export import Lora, metadata
from .folder import JobFolder, Which
from .host import Interrupted
from .lease import Lease
from .loop import NotFinite, StepResult, Trainer
from .optim import packages_for
from .packages import load_all
from .record import Record
from .task import Preparation, Prepared, Preview, Task
from .validation import HeldOut

log = logging.getLogger(__name__)

State = Literal["queued", "preparing", "training", "finishing", "done", "stopped", "failed"]
Listener = Callable[[str, dict[str, Any]], None]


class Stopped(Exception):
    """The job was told to stop."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a run is looked at while it trains."""

    preview: Preview | None
    prepared: Prepared
    held_out: HeldOut


class Job:
    """One run. It trains under the lease, a step at a time, and tells its listeners how it goes."""

    def __init__(self, folder: JobFolder, task: Task, lease: Lease, fingerprint: str) -> None:
        self.id, self.folder, self.fingerprint = folder.path.name, folder, fingerprint
        self.config, self.dataset = task.config, task.dataset
        self.state: State = "queued"
        self.message = ""
        self.record = Record(folder)
        self.listeners: list[Listener] = []
        self.ended = threading.Event()
        self.waited_for = False
        """Whether a prompt waits for this job. The program's stop button then means it."""
        self.interrupted = False
        """Whether the program's stop button ended this job, and not its own."""
        self._lease, self._stop = lease, threading.Event()
        self._task: Task | None = task
        """Let go of when the job ends: it holds the model."""
        self._trainer: Trainer | None = None
        self._unwritten: Lora | None = None
        """The finished LoRA, if the disk did not take it."""
        self._stale = True
        """Whether the model may have been moved or patched since our last step."""

    # What others ask of a job

    def stop(self) -> None:
        """Ends the job after the step under way. What it learned is kept, and it can go on from there."""
        self._stop.set()

    def lora(self, which: Which) -> Lora | None:
        """The LoRA as it is now, or the one with the lowest held-out loss if one was measured; None before the first
        step. The caller holds the lease, or the job has ended."""
        if which == "best" and (best := self.folder.read_lora("best")):
            return best
        trainer = self._trainer
        if trainer is not None and trainer.steps_done:
            return self._as_lora(trainer)
        return self._unwritten or self.folder.read_lora("last")

    def reached(self, config: TrainConfig) -> bool:
        """Whether it is done, and not to be extended by this recipe."""
        return self.state == "done" and (self.record.step >= config.total_steps or config == self.config)

    def status(self) -> dict[str, Any]:
        """What a person sees of it, as plain values."""
        facts = self.record.facts(self.config.total_steps)
        left = facts.pop("seconds_left")
        return {"job": self.id, "state": self.state, "message": self.message, **facts,
                "eta": left if self.state == "training" else None}

    # The thread

    def run(self) -> None:
        """Trains from the newest state to the end. Never raises: a failure becomes the job's state."""
        task = self._task
        assert task is not None, "a job runs once"
        try:
            self._enter("preparing")
            self._tell("Loading libraries")
            load_all(packages_for(self.config))
            self._train(task, Preparation(task, self._lease.step, self._tell, self._on_interrupt).run())
        except (Stopped, Interrupted):
            self._enter("stopped", "Stopped before training began. Queue again to start over.")
        except Exception as err:
            log.exception("LoRA training failed")
            self._enter("failed", f"{type(err).__name__}: {err}")
        finally:
            self._trainer = self._task = None
            self.ended.set()

    def restore(self) -> bool:
        """Instead of running: takes up the result of an earlier process. False if that run did not reach its end."""
        facts = self.folder.read_job()
        extended = facts is not None and facts["recipe"] != self.config.as_dict()
        if not facts or facts["state"] != "done" or (extended and facts["step"] < self.config.total_steps):
            return False
        if self.folder.read_lora("last") is None:
            return False
        self.record.read()
        self.state, self.message, self._task = "done", facts["message"], None
        self.ended.set()
        return True

    def _train(self, task: Task, prepared: Prepared) -> None:
        with self._lease.step():
            trainer = Trainer(task.host, task.config, prepared.train, task.start)
            done = state.load_newest(self.folder.states, trainer)
        self.record.read(up_to=done)
        self._trainer = trainer
        self._enter("training", f"Going on from step {done}." if done else "")
        look = Look(task.preview, prepared, HeldOut(prepared.held_out))
        if not done:
            self._look(trainer, look)
        try:
            while trainer.steps_done < self.config.total_steps and not self._stop.is_set() and not self._stalled:
                self.record.add_step(*self._step(trainer))
                self._notify("progress", self.status())
                self._look(trainer, look)
                if trainer.steps_done % self.config.save_every == 0:
                    self._save(trainer)
        except NotFinite:
            raise
        except Exception:
            trainer.discard_step()
            self._save(trainer)
            raise
        self._finish(trainer)

    @contextlib.contextmanager
    def _turn(self, trainer: Trainer) -> Iterator[None]:
        """The lease, with the model on its device and nothing but its own patches on it."""
        with self._lease.step() as disturbed:
            if disturbed or self._stale:
                trainer.host.load(trainer.room)
                self._stale = False
            yield

    def _step(self, trainer: Trainer) -> tuple[StepResult, float]:
        with self._turn(trainer):
            began = time.perf_counter()
            return trainer.step(), time.perf_counter() - began

    def _look(self, trainer: Trainer, look: Look) -> None:
        """Held-out loss and preview pictures, when they are due: at the start, every so often, and at the end."""
        step, last = trainer.steps_done, trainer.steps_done == self.config.total_steps
        if look.held_out.batches and (step % self.config.validate_every == 0 or last):
            self._validate(trainer, look.held_out)
        if look.preview and (step % look.preview.every == 0 or last or self._stalled):
            self._sample(trainer, look.preview, look.prepared)

    def _validate(self, trainer: Trainer, held_out: HeldOut) -> None:
        if self.record.held_out.base is None and (base := self._measure(trainer, held_out, base=True)) is not None:
            self.record.add_base(base)
        loss = self._measure(trainer, held_out)
        if loss is not None and self.record.add_held_out(loss):
            with self._turn(trainer):
                lora = self._as_lora(trainer)
            with self.record.nothing_lost("The best LoRA could not be written to the job's folder"):
                self.folder.write_lora(lora, "best")
        self._notify("progress", self.status())

    def _measure(self, trainer: Trainer, held_out: HeldOut, *, base: bool = False) -> float | None:
        """The mean held-out loss; None if the job was told to stop meanwhile."""
        losses: list[float] = []
        for batch in held_out.batches:
            if self._stop.is_set():
                return None
            with self._turn(trainer):
                losses += held_out.losses(trainer, batch, base=base)
        return statistics.fmean(losses)

    @property
    def _stalled(self) -> bool:
        """Whether the held-out loss has found no new best for as long as the recipe waits."""
        patience = self.config.early_stop_patience
        return 0 < patience <= self.record.held_out.since_best

    def _sample(self, trainer: Trainer, preview: Preview, prepared: Prepared) -> None:
        """A round of previews. One that fails is reported; training goes on."""
        step, self._stale = trainer.steps_done, True
        try:
            with self._lease.step():
                draw = trainer.host.sampler(trainer.lora())
            for index, prompt in enumerate(preview.prompts):
                if self._stop.is_set():
                    return
                with self._lease.step():
                    image = draw(prepared.texts[prompt], prepared.texts[preview.negative], preview.settings)
                name = self.folder.write_sample(step, index, image, prompt)
                self._notify("sample", {"step": step, "index": index, "prompt": prompt, "file": name})
        except Interrupted as err:
            self._on_interrupt(err)
        except Exception as err:
            log.exception("A preview failed")
            self.record.warn(f"The preview at step {step} failed ({err}). Training goes on.")

    def _save(self, trainer: Trainer) -> None:
        with self.record.nothing_lost("The state could not be saved"):
            state.save(self.folder.states, trainer)
            self._write_job()

    def _finish(self, trainer: Trainer) -> None:
        step, total = trainer.steps_done, self.config.total_steps
        self._enter("finishing")
        self._save(trainer)
        if step:
            with self._turn(trainer):
                self._unwritten = self._as_lora(trainer)
            with self.record.nothing_lost("The LoRA could not be written to the job's folder"):
                self.folder.write_lora(self._unwritten, "last")
                self._unwritten = None
        best = self.record.held_out.best
        if step >= total:
            self._enter("done", f"Trained {step} steps.")
        elif self._stalled and best:
            self._enter("done", f"Stopped early at step {step}: no held-out loss below {best[1]:.4f} since step "
                                f"{best[0]}.")
        else:
            self._enter("stopped", f"Stopped at step {step} of {total}. Queue again to go on.")

    # Telling

    def _as_lora(self, trainer: Trainer) -> Lora:
        about = metadata(self.config, self.dataset, trainer.host.family, trainer.steps_done,
                         self.folder.newest_sample())
        return Lora(trainer.lora(), about)

    def _on_interrupt(self, err: Interrupted) -> None:
        """The program's stop button: meant for us if a prompt waits for us, else for a prompt that waits for the
        lease."""
        if self.waited_for:
            self.interrupted = True
            self.stop()
            if self.state == "preparing":
                raise err
        elif self._lease.prompt_is_waiting and self._task:
            self._task.host.hand_back_interrupt()

    def _tell(self, message: str) -> None:
        if self._stop.is_set():
            raise Stopped
        self.message = message
        self._notify("progress", self.status())

    def _enter(self, state: State, message: str = "") -> None:
        self.state, self.message = state, message
        with self.record.nothing_lost("The job's state could not be written"):
            self._write_job()
        log.info("LoRA training %s: %s %s", self.id, state, message)
        self._notify("progress", self.status())

    def _write_job(self) -> None:
        self.folder.write_job({
            "id": self.id, "fingerprint": self.fingerprint, "state": self.state, "message": self.message,
            "step": self.record.step, "changed": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "recipe": self.config.as_dict(), "dataset": str(self.dataset.folder),
            "images": len(self.dataset.items),
        })

    def _notify(self, event: str, facts: dict[str, Any]) -> None:
        for listener in list(self.listeners):
            listener(event, {"job": self.id, **facts})
