"""A training job: its states and its thread."""

from __future__ import annotations

import contextlib
import datetime
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import state
from .export import Lora, metadata
from .folder import JobFolder
from .host import Interrupted
from .lease import Lease
from .loop import NotFinite, StepResult, Trainer
from .packages import load_all
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
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.warnings: list[str] = []
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
        self._seconds: deque[float] = deque(maxlen=20)

    # What others ask of a job

    def stop(self) -> None:
        """Ends the job after the step under way. What it learned is kept, and it can go on from there."""
        self._stop.set()

    def newest_lora(self) -> Lora | None:
        """The LoRA as it is now; None before the first step. The caller holds the lease, or the job has ended."""
        trainer = self._trainer
        if trainer is not None and trainer.steps_done:
            return self._as_lora(trainer)
        return self._unwritten or self.folder.read_lora()

    def status(self) -> dict[str, Any]:
        """What a person sees of it, as plain values."""
        config, step = self.config, len(self.losses)
        training = self.state == "training" and self._seconds
        return {
            "job": self.id, "state": self.state, "message": self.message, "step": step, "steps": config.steps,
            "loss": statistics.fmean(self.losses[-20:]) if self.losses else None, "validation": self.validation,
            "eta": round((config.steps - step) * statistics.median(self._seconds)) if training else None,
            "warnings": self.warnings,
        }

    # The thread

    def run(self) -> None:
        """Trains from the newest state to the end. Never raises: a failure becomes the job's state."""
        task = self._task
        assert task is not None, "a job runs once"
        try:
            self._enter("preparing")
            self._tell("Loading libraries")
            load_all()
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
        if not facts or facts["state"] != "done" or self.folder.read_lora() is None:
            return False
        self._read_metrics(self.folder.metrics())
        self.state, self.message, self._task = "done", facts["message"], None
        self.ended.set()
        return True

    def _train(self, task: Task, prepared: Prepared) -> None:
        with self._lease.step():
            trainer = Trainer(task.host, task.config, prepared.train)
            done = state.load_newest(self.folder.states, trainer)
        self._read_metrics(self.folder.rewind_metrics(done))
        self._trainer = trainer
        self._enter("training", f"Going on from step {done}." if done else "")
        look = Look(task.preview, prepared, HeldOut(prepared.held_out))
        if not done:
            self._look(trainer, look)
        try:
            while trainer.steps_done < self.config.steps and not self._stop.is_set():
                self._record(*self._step(trainer))
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

    def _read_metrics(self, lines: list[dict[str, Any]]) -> None:
        self.losses = [line["loss"] for line in lines if "loss" in line]
        self.validation = [(line["step"], line["validation"]) for line in lines if "validation" in line]

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

    def _record(self, result: StepResult, seconds: float) -> None:
        self.losses.append(result.loss)
        self._seconds.append(seconds)
        with self._nothing_lost("The step could not be recorded"):
            self.folder.append_metrics({"step": len(self.losses), "loss": result.loss, "grad_norm": result.grad_norm,
                                        "learning_rate": result.learning_rate, "seconds": round(seconds, 4)})
        self._notify("progress", self.status())

    def _look(self, trainer: Trainer, look: Look) -> None:
        """Held-out loss and preview pictures, when they are due: at the start, every so often, and at the end."""
        step, last = trainer.steps_done, trainer.steps_done == self.config.steps
        if look.held_out.batches and (step % self.config.validate_every == 0 or last):
            self._validate(trainer, look.held_out)
        if look.preview and (step % look.preview.every == 0 or last):
            self._sample(trainer, look.preview, look.prepared)

    def _validate(self, trainer: Trainer, held_out: HeldOut) -> None:
        losses: list[float] = []
        for batch in held_out.batches:
            if self._stop.is_set():
                return
            with self._turn(trainer):
                losses += held_out.losses(trainer, batch)
        self.validation.append((trainer.steps_done, statistics.fmean(losses)))
        with self._nothing_lost("The held-out loss could not be recorded"):
            self.folder.append_metrics({"step": trainer.steps_done, "validation": self.validation[-1][1]})
        self._notify("progress", self.status())

    def _sample(self, trainer: Trainer, preview: Preview, prepared: Prepared) -> None:
        """A round of previews. One that fails is reported; training goes on."""
        step, self._stale = trainer.steps_done, True
        try:
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
            self._warn(f"The preview at step {step} failed ({err}). Training goes on.")

    def _save(self, trainer: Trainer) -> None:
        with self._nothing_lost("The state could not be saved"):
            state.save(self.folder.states, trainer)
            self._write_job()

    def _finish(self, trainer: Trainer) -> None:
        complete = trainer.steps_done >= self.config.steps
        self._enter("finishing")
        self._save(trainer)
        if trainer.steps_done:
            self._unwritten = self._as_lora(trainer)
            with self._nothing_lost("The LoRA could not be written to the job's folder"):
                self.folder.write_lora(self._unwritten)
                self._unwritten = None
        if complete:
            self._enter("done", f"Trained {trainer.steps_done} steps.")
        else:
            self._enter("stopped", f"Stopped at step {trainer.steps_done} of {self.config.steps}. Queue again to go "
                                   "on.")

    # Telling

    def _as_lora(self, trainer: Trainer) -> Lora:
        return Lora(trainer.lora(), metadata(self.config, self.dataset, trainer.host.family, trainer.steps_done))

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
        with self._nothing_lost("The job's state could not be written"):
            self._write_job()
        log.info("LoRA training %s: %s %s", self.id, state, message)
        self._notify("progress", self.status())

    def _write_job(self) -> None:
        self.folder.write_job({
            "id": self.id, "fingerprint": self.fingerprint, "state": self.state, "message": self.message,
            "step": len(self.losses), "changed": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "recipe": self.config.as_dict(), "dataset": str(self.dataset.folder),
            "images": len(self.dataset.items),
        })

    @contextlib.contextmanager
    def _nothing_lost(self, what: str) -> Iterator[None]:
        """A disk that is full or read-only must not end a training: it is reported, and tried again next time."""
        try:
            yield
        except OSError as err:
            self._warn(f"{what}: {err}. Training goes on; make room on the disk.")

    def _warn(self, message: str) -> None:
        log.warning("%s", message)
        if message not in self.warnings:
            self.warnings.append(message)

    def _notify(self, event: str, facts: dict[str, Any]) -> None:
        for listener in list(self.listeners):
            listener(event, {"job": self.id, **facts})
