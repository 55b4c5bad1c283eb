"""LoRA Sample Grid: puts pictures of a job side by side, by step or by strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..trainer.comfy.host import ComfyHost
from ..trainer.comfy.progress import show_progress
from ..trainer.data.pictures.pixels import to_tensor
from ..trainer.jobs.job import Job
from ..trainer.lora.tensors import check_fits
from ..trainer.model.host import Interrupted
from ..trainer.samples import comparison
from ..trainer.samples.comparison import Table
from ..trainer.samples.grid import compose
from ..trainer.training.task import Sample
from .choices import check_left_out, checked
from .job_input import check_job, chosen, job_input, version
from .jobs import EVERYBODY
from .types import CATEGORY, LoraPreview, refusal

FOR_DRAWING = ("model", "clip", "vae", "preview")


class Grid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraGrid",
            display_name="LoRA Sample Grid",
            category=CATEGORY,
            description="One picture that compares: a row for each prompt, a column for each step at which a job drew "
                        "its samples, or for each strength of its LoRA, drawn now.",
            search_aliases=["xy plot", "compare steps", "compare strengths", "contact sheet", "lora grid"],
            inputs=[
                job_input(),
                io.DynamicCombo.Input("columns", options=[
                    io.DynamicCombo.Option("steps", [
                        io.Int.Input("most", default=8, min=1, max=100, tooltip=(
                            "The most columns to show. They are chosen evenly, with the first and the last step among "
                            "them.")),
                    ]),
                    io.DynamicCombo.Option("strengths", [
                        io.String.Input("strengths", default="0, 0.5, 0.75, 1", tooltip=(
                            "Numbers with commas between, a column each. 0 is the base model. ComfyUI squares them "
                            "for OFT: 0.5 acts as 0.25.")),
                    ]),
                ], tooltip=(
                    "steps: the samples that the job drew while training; nothing is drawn anew. strengths: drawn now "
                    "with the job's newest LoRA; needs the four inputs below.")),
                io.Model.Input("model", optional=True, lazy=True, tooltip=(
                    "For strengths: the model that the job trains on.")),
                io.Clip.Input("clip", optional=True, lazy=True, tooltip="For strengths: its text encoders."),
                io.Vae.Input("vae", optional=True, lazy=True, tooltip="For strengths: its VAE."),
                LoraPreview.Input("preview", optional=True, lazy=True, tooltip=(
                    "For strengths: what to draw and how, from LoRA Sample Preview. The preview that the training had "
                    "gives the same pictures again.")),
                io.Boolean.Input("labels", default=True, tooltip=(
                    "Prompts at the left and steps or strengths above. Off: the pictures alone.")),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip=(
                    "The grid, for Save Image or Preview Image. Each picture in it is as it was, pixel for pixel.")),
            ],
        )

    @classmethod
    def validate_inputs(cls, job, *, columns=None) -> bool | str:
        """Refuses, before anything runs, a job that is not here: the workflow may come from another machine. ComfyUI
        hands over an empty dynamic combo as well, or nothing if its value is no option, and repeats an error for each
        parameter that is not keyword-only."""
        told = refusal(check_left_out, cls, "columns", columns)
        return check_job(job) if told is True else told

    @classmethod
    def fingerprint_inputs(cls, job, columns, **_) -> Any:
        """Returns a value that changes when there are other samples or a newer LoRA. It always changes if the job is
        linked, because nothing is known of it yet."""
        if job is None:
            return float("nan")
        found = chosen(job)
        if columns["columns"] == "strengths":
            return version(found, "last")
        newest = found.folder.newest_sample()
        return [found.id, found.folder.samples(), newest and newest.stat().st_mtime_ns]

    @classmethod
    def check_lazy_status(cls, columns, **given) -> list[str]:
        """Asks for the model only if strengths are drawn and everything for that is wired. Raises ValueError if it is
        not. ComfyUI gives each value of a dynamic combo with its name, and leaves out what is not wired."""
        if columns["columns"][0] != "strengths":
            return []
        problems = [f"{name} is not connected" for name in FOR_DRAWING if name not in given]
        if problems:
            raise ValueError("LoRA Sample Grid draws strengths with the model, clip, vae and preview of LoRA Train: "
                             f"{', '.join(problems)}. Connect them, or set columns to 'steps'.")
        comparison.parse_strengths(columns["strengths"][0])
        return list(FOR_DRAWING)

    @classmethod
    @checked
    def execute(cls, job, columns, model: Any = None, clip: Any = None, vae: Any = None, preview: Any = None,
                labels=True) -> io.NodeOutput:
        found = chosen(job)
        if columns["columns"] == "steps":
            table = comparison.saved(found.folder, columns["most"])
        else:
            strengths = comparison.parse_strengths(columns["strengths"])
            table = _drawn(found, ComfyHost(model, clip, vae), model, preview[0].samples, strengths)
        page = compose(table.cells, table.rows, table.columns, labels)
        return io.NodeOutput(to_tensor(page)[None])


def _drawn(job: Job, host: ComfyHost, model: Any, samples: Sequence[Sample], strengths: list[float]) -> Table:
    """Draws the samples at each strength. Raises ValueError if the job has no LoRA yet or it does not fit the model,
    and ComfyUI's own exception if its stop button was pressed."""
    EVERYBODY.turns.begin()
    lora = job.lora("last")
    if lora is None:
        raise ValueError(f"Job {job.id} has no LoRA yet ({job.state}). Queue again after its first step.")
    check_fits(lora, model.model.diffusion_model)
    samples = [sample.about(lora.metadata.get("modelspec.trigger_phrase", "")) for sample in samples]
    try:
        return comparison.drawn(host, lora, samples, strengths, show_progress)
    except Interrupted:
        host.hand_back_interrupt()
        show_progress(0, 1)  # raises what ComfyUI knows as its stop button
        raise
