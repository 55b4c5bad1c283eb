"""Trains a job once, in the training thread: from its newest state until it is done or a person wants otherwise.

A run holds the lease for one step, one picture or one encoding at a time, and never between them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ..disk.packages import load_all
from ..disk.text import counted
from ..lora.file import Lora
from ..lora.kinds import KINDS
from ..model.host import GiveWay, Interrupted, Sampler
from ..model.memory import Plan
from ..model.shortage import once_more
from ..training import state
from ..training.metadata import metadata
from ..training.optim import packages_for
from ..training.preparation import Preparation, Prepared
from ..training.task import Sample, Task
from ..training.trainer import NotFinite, StepResult, Trainer
from ..training.validation import HeldOut
from .job import Job
from .lease import Lease, Withdrawn

log = logging.getLogger(__name__)

GIVES_WAY = 3
"""How many times a picture is left for a prompt and begun again. After that it is finished, because prompts that keep
coming would otherwise hold up the training as well."""


class Run:
    """Trains one job. An error during training is raised after the state is saved. NotFinite saves no state."""

    def __init__(self, job: Job, task: Task, lease: Lease) -> None:
        self._job, self._task, self._lease = job, task, lease
        self._history, self._folder, self._config = job.history, job.folder, task.config
        self._reads_weights = KINDS[task.config.adapter].reads_weights

    def go(self) -> None:
        """Prepares what is not prepared yet, trains, and leaves the job as it was wished."""
        try:
            trainer = self._prepare()
        except (Withdrawn, Interrupted):
            self._end(None)
            return
        self._job.lend(lambda: self._lora(trainer) if trainer.steps_done else None)
        self._train(trainer)
        self._end(trainer)

    def _prepare(self) -> Trainer:
        job, task = self._job, self._task
        self._tell("Loading libraries")
        load_all(packages_for(self._config))
        self._prepared: Prepared = job.prepared or Preparation(task, self._hold, self._tell, self._on_interrupt).run()
        job.keep(self._prepared)
        self._held_out = HeldOut(self._prepared.held_out, self._config.batch_size)
        return self._new_trainer()

    # Training

    def _new_trainer(self) -> Trainer:
        """Returns a trainer that goes on where the newest state left off."""
        with self._hold():
            trainer = once_more(partial(Trainer, self._task.host, self._config, self._prepared.train, self._task.start,
                                        self._lease.prompt_turns, self._less_memory), self._task.host.clear)
            for name in state.load_newest(self._folder.states, trainer):
                self._history.warn(f"The state {name} could not be read. The one before it was taken, and the steps in "
                                  "between are trained again.")
        self._folder.check_room(state.room(self._folder.states, trainer), "This training")
        self._history.read(up_to=trainer.steps_done)
        self._job.plan = trainer.plan
        return trainer

    def _less_memory(self, sentence: str, plan: Plan) -> None:
        self._history.warn(sentence)
        self._job.plan = plan

    def _train(self, trainer: Trainer) -> None:
        job, done = self._job, trainer.steps_done
        job.enter("training", f"Going on from step {done}." if done else "")
        try:
            self._look(trainer, beginning=True)
            while trainer.steps_done < self._config.total_steps and not job.wish and not self._stalled:
                self._history.add_step(*self._step(trainer))
                job.progress()
                self._look(trainer)
                if job.takes("export"):
                    self._export(trainer)
                if job.takes("save") or trainer.steps_done % self._config.save_every == 0:
                    self._save(trainer)
        except Withdrawn:
            return
        except NotFinite:
            raise
        except Exception:
            trainer.discard_step()
            self._save(trainer)
            raise

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        """Holds the lease for work that is of no use once the job is to end. Raises Withdrawn if it is to end."""
        if self._job.wish:
            raise Withdrawn
        with contextlib.ExitStack() as held:
            with self._history.spending("waiting"):
                held.enter_context(self._lease.step(self._shall_end))
            yield

    def _shall_end(self) -> bool:
        return self._job.wish is not None

    def _step(self, trainer: Trainer) -> tuple[StepResult, float]:
        with self._hold():
            with self._history.spending("loading"):  # before the clock starts, because it is no part of the step
                trainer.carefully(trainer.model.bring)
            began = time.perf_counter()
            return trainer.step(), time.perf_counter() - began

    def _save(self, trainer: Trainer) -> None:
        with self._history.spending("saving"), self._history.tolerating("state"):
            self._folder.check_room(state.size(trainer), "A state")
            state.save(self._folder.states, trainer, self._lora_now(trainer), self._config.keep_states)
            self._job.write()

    def _lora_now(self, trainer: Trainer) -> Lora | None:
        """Returns the LoRA as it is now, or None if it depends on the model's weights, a prompt holds them, and the job
        is to end."""
        if not self._reads_weights:
            return self._lora(trainer)
        with contextlib.suppress(Withdrawn), self._lease.step(self._shall_end):
            return self._lora(trainer)
        return None

    def _lora(self, trainer: Trainer) -> Lora:
        """Returns the LoRA as it is now, with the metadata of its file. If the LoRA depends on the model's weights, the
        caller holds the lease."""
        tensors = trainer.model.run(trainer.lora) if self._reads_weights else trainer.lora()
        host = self._task.host
        return Lora(tensors, metadata(self._config, self._task.dataset, host.family, host.architecture,
                                      trainer.steps_done, self._folder.newest_sample()))

    def _end(self, trainer: Trainer | None) -> None:
        """Leaves the job in the state that was wished, or done. `trainer` is None if training has not begun."""
        job, step, total = self._job, self._history.step, self._config.total_steps
        complete = trainer is not None and (step >= total or self._stalled)
        with job.lock:  # from here on nothing else can be wished
            wish = job.wish
            if wish in (None, "pause", "stop") and (complete or wish != "pause"):
                job.enter("finishing")
        if wish != "discard" and trainer and step and step not in self._folder.snapshots():
            self._save(trainer)
        if wish == "extend":
            return
        if wish == "discard":
            job.forget()
        elif complete and trainer:
            job.keep_lora(self._lora_now(trainer))
            job.rest("done", self._why_done())
        elif wish == "pause":
            job.rest("paused", job.where("Paused", "Resume to go on."))
        else:
            if step:
                job.keep_lora(self._lora_now(trainer) if trainer else None)
            job.rest("stopped", job.where("Stopped", "Queue again to go on."))

    def _export(self, trainer: Trainer) -> None:
        """Saves the LoRA as it is now where others look for it, because a person asked for it."""
        if lora := self._lora_now(trainer):
            try:
                self._job.saving.now(lora, self._job.graph)
            except (ValueError, OSError) as err:
                self._history.warn(f"The LoRA of step {trainer.steps_done} is not in models/loras. {err}")

    def _why_done(self) -> str:
        step, best = self._history.step, self._history.held_out.best
        if step < self._config.total_steps and best:
            return f"Stopped early at step {step}: no held-out loss below {best[1]:.4f} since step {best[0]}."
        return f"Trained {counted(step, 'step')}."

    # Looking

    def _look(self, trainer: Trainer, *, beginning: bool = False) -> None:
        """Measures the held-out loss and draws previews when they are due: at the start, every so often, at the end and
        on demand. With `beginning`, before this run's first step, it does only what an earlier run left out."""
        step, last, preview = trainer.steps_done, trainer.steps_done == self._config.total_steps, self._task.preview
        if self._held_out.parts and (step % self._config.validate_every == 0 or last):
            if not (beginning and any(at == step for at, _ in self._history.held_out.points)):
                self._validate(trainer)
        wanted = self._job.takes("sample")
        if preview and (step % preview.every == 0 or last or self._stalled or wanted):
            drawn = {i for i in range(len(preview.samples)) if beginning and self._folder.has_sample(step, i)}
            self._sample(trainer, {i: s for i, s in enumerate(preview.samples) if wanted or i not in drawn})

    @property
    def _stalled(self) -> bool:
        """Returns whether the held-out loss has had no new best for as long as the recipe waits. A job that was
        extended never stalls, because whoever extends a job wants all of its steps."""
        patience = 0 if self._config.extra_steps else self._config.early_stop_patience
        return 0 < patience <= self._history.held_out.since_best

    def _validate(self, trainer: Trainer) -> None:
        if self._history.held_out.base is None:
            self._history.add_base(self._measure(trainer, base=True))
        loss = self._measure(trainer)
        with self._hold():  # before the loss is recorded: if the job is to end, it is measured again another time
            lora = self._lora(trainer)
        if self._history.add_held_out(loss):
            with self._history.tolerating("best LoRA"):
                self._folder.write_lora(lora, "best")
        self._job.progress()

    def _measure(self, trainer: Trainer, *, base: bool = False) -> float:
        """Returns the mean held-out loss; with `base`, that of the model without the adapter."""
        losses: list[float] = []
        for part in self._held_out.parts:
            with self._hold(), self._history.spending("held-out"):
                losses += trainer.carefully(partial(trainer.model.run, partial(
                    self._held_out.losses, trainer, part, base=base)))
        return statistics.fmean(losses)

    def _sample(self, trainer: Trainer, samples: dict[int, Sample]) -> None:
        """Draws a round of previews. If one fails, a warning says so and training goes on."""
        lora, step, samplers = self._lora_now(trainer), trainer.steps_done, {}
        if lora is None:
            raise Withdrawn
        for index, sample in samples.items():
            try:
                image = self._draw(partial(trainer.host.sampler, lora), sample, samplers)
                name = self._folder.write_sample(step, index, image, self._texts(step, sample))
                self._job.notify("sample", step=step, index=index, prompt=sample.prompt, file=name)
            except Interrupted as err:
                self._on_interrupt(err)
                return
            except Withdrawn:
                raise
            except Exception as err:
                log.exception("A preview failed")
                self._history.warn(f"The preview at step {step} failed ({err}). Training goes on.")

    def _draw(self, make: Callable[[float], Sampler], sample: Sample, samplers: dict[float, Sampler]) -> Tensor:
        """Draws a picture, with one sampler for each strength. Drawing gives way to prompts and then begins again."""
        texts, strength, begun = self._prepared.texts, sample.settings.strength, 0
        while True:
            begun += 1
            give_way: Callable[[], bool] = self._lease.prompt_is_next if begun <= GIVES_WAY else lambda: False
            with self._hold(), self._history.spending("previews"), contextlib.suppress(GiveWay):
                if strength not in samplers:
                    samplers[strength] = make(strength)
                draw = partial(samplers[strength], texts[sample.prompt], texts[sample.negative], sample.settings,
                               give_way)
                return once_more(draw, self._task.host.clear)

    def _texts(self, step: int, sample: Sample) -> dict[str, Any]:
        """Returns the texts that a picture carries. The workflow is one of them, so that dropping the picture on the
        canvas brings the graph back, and with it this job."""
        about = {"job": self._job.id, "step": step, "prompt": sample.prompt, "negative": sample.negative,
                 **dataclasses.asdict(sample.settings)}
        graph = self._job.graph
        found = {"livelora": about, "prompt": graph and graph.prompt, "workflow": graph and graph.showing(self._job.id)}
        return {name: value for name, value in found.items() if value}

    # What a person does meanwhile

    def _on_interrupt(self, err: Interrupted) -> None:
        """Handles the program's stop button. It is meant for this job if a prompt waits for the job, otherwise for a
        prompt that waits for the lease."""
        if self._job.waited_for:
            with self._job.lock:
                self._job.interrupt()
                if not self._job.why_not("stop"):
                    self._job.want("stop")
            if self._job.state == "preparing":
                raise err
        elif self._lease.prompt_is_waiting:
            self._task.host.hand_back_interrupt()

    def _tell(self, message: str) -> None:
        if self._job.wish:
            raise Withdrawn
        self._job.progress(message)
