"""Live LoRA: gives the model with the LoRA of a job, while the job trains or afterwards."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.comfy.host import with_lora
from ..trainer.jobs.folder import Which
from ..trainer.jobs.job import Job
from ..trainer.lora.file import Lora
from ..trainer.lora.tensors import check_fits
from ..trainer.samples.comparison import MOST_STRENGTH
from .choices import check_left_out, checked
from .job_input import check_job, chosen, job_input, version
from .jobs import EVERYBODY
from .recipe import most
from .types import CATEGORY, refusal, told


class Live(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraLive",
            display_name="Live LoRA",
            category=CATEGORY,
            description="The model with the LoRA of a job as it is now, without a file: draw with it while it trains. "
                        "Queue again and there is a newer one.",
            search_aliases=["live lora", "load lora from job", "lora snapshot", "test lora while training"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the job trains on. It stays as it is."),
                job_input(),
                io.DynamicCombo.Input("which", options=[
                    io.DynamicCombo.Option("newest", []),
                    io.DynamicCombo.Option("best", []),
                    io.DynamicCombo.Option("step", [
                        io.Int.Input("step", default=100, min=1, max=most("steps") + most("extra_steps"), tooltip=(
                            "A step whose state is still on disk. LoRA Train's save_every and keep_states say which "
                            "those are; the node lists them.")),
                    ]),
                ], tooltip=(
                    "Which LoRA of the job. newest: the one after the last step. best: the one with the lowest "
                    "held-out loss, if that is measured. step: the one after a step that you choose.")),
                io.Float.Input("strength", default=1.0, min=-MOST_STRENGTH, max=MOST_STRENGTH, step=0.01, tooltip=(
                    "How strongly the LoRA goes in, as in Load LoRA. 0 leaves the model as it is. ComfyUI squares it "
                    "for OFT: 0.5 acts as 0.25.")),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip=(
                    "The model with the LoRA. Until the job's first step is done, the model without one.")),
                io.String.Output("info", display_name="info", tooltip="Which job and which step it is, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, job, *, which=None) -> bool | str:
        """Refuses, before anything runs, a job that is not here: the workflow may come from another machine. ComfyUI
        hands over an empty dynamic combo as well, or nothing if its value is no option, and repeats an error for each
        parameter that is not keyword-only."""
        told = refusal(check_left_out, cls, "which", which)
        return check_job(job) if told is True else told

    @classmethod
    def fingerprint_inputs(cls, job, which, **_) -> Any:
        """Returns a value that changes when there is a newer LoRA. It always changes if the job is linked, because
        nothing is known of it yet."""
        return float("nan") if job is None else version(chosen(job), _wanted(which))

    @classmethod
    @checked
    def execute(cls, model, job, which, strength) -> io.NodeOutput:
        EVERYBODY.turns.begin()
        found, wanted = chosen(job), _wanted(which)
        lora = found.lora(wanted)
        if lora is None and wanted not in ("last", "best"):
            raise ValueError(_no_such_step(found, wanted))
        info = _info(found, wanted, lora)
        if lora is not None:
            check_fits(lora, model.model.diffusion_model)
        if lora is not None and strength:
            model = with_lora(model, lora, strength)
        return io.NodeOutput(model, info, ui=told(info))


def _wanted(which: dict[str, Any]) -> Which | int:
    """Returns what the dynamic combo says, as `Job.lora` takes it."""
    names: dict[str, Which] = {"newest": "last", "best": "best"}
    return names.get(which["which"]) or which["step"]


def _info(job: Job, wanted: Which | int, lora: Lora | None) -> str:
    if lora is None:
        return f"{job.id}: no LoRA yet ({job.state}), the model is as it was"
    info = f"{job.id}: step {lora.metadata['ss_steps']} of {job.config.total_steps}"
    if wanted == "best" and job.history.held_out.best is None:
        info += ", the newest: without held-out images there is no best one"
    return info


def _no_such_step(job: Job, step: int) -> str:
    kept = ", ".join(map(str, job.folder.snapshots()))
    advice = f"Choose one of {kept}, or 'newest'." if kept else "Choose 'newest': it has saved no state yet."
    return f"Job {job.id} has no LoRA of step {step}. {advice}"
