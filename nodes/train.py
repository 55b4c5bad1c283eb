"""LoRA Train: trains on the wired model, in a background thread."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..trainer.comfy.host import ComfyHost, with_lora
from ..trainer.comfy.paths import lora_names, lora_path
from ..trainer.comfy.turns import nothing_yet, wait
from ..trainer.data.cache import Cache
from ..trainer.disk.packages import check_all
from ..trainer.jobs.folder import Which
from ..trainer.jobs.job import Job
from ..trainer.jobs.workflow import Graph
from ..trainer.lora import file as export
from ..trainer.lora import formats
from ..trainer.recipe import choices
from ..trainer.recipe.config import PRESETS, Preset, TrainConfig
from ..trainer.training.optim import packages_for
from ..trainer.training.task import Task
from . import routes
from .jobs import LEASE, TURNS, jobs_of_prompt, scratch
from .recipe import rare
from .types import CATEGORY, LoraDataset, LoraModel, LoraPreview, LossMap


def _everyday(preset: Preset) -> list[io.Input]:
    """The inputs of a preset, filled in by it."""
    return [
        io.Int.Input("steps", default=preset.steps, min=1, max=100000, tooltip=(
            "Optimizer steps. More learn more, then overfit: watch the previews, and the held-out loss if you give a "
            "validation set.")),
        io.Int.Input("rank", default=preset.rank, min=1, max=512, tooltip=(
            "How much the LoRA can hold. Characters need 16, styles 24 to 32, broad concepts up to 64; more makes a "
            "bigger file that overfits sooner.")),
        io.Float.Input("learning_rate", default=preset.learning_rate, min=-1, max=1, step=1e-6, round=False, tooltip=(
            "How far each step goes. 0.0001 suits FLUX.1. Halve it if the pictures burn or break, double it if nothing "
            "is learned after some hundred steps.")),
    ]


class Train(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraTrain",
            display_name="LoRA Train",
            category=CATEGORY,
            description="Trains a LoRA on the model that is wired in, without a second copy of it. The job goes on "
                        "where it stopped if the workflow is queued again, also after a crash.",
            search_aliases=["train lora", "fine-tune", "dreambooth", "flux lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The FLUX.1 model to train on. It stays as it is, always."),
                io.Clip.Input("clip", tooltip="The model's text encoders, for the captions."),
                io.Vae.Input("vae", tooltip="The model's VAE, for the images."),
                LoraDataset.Input("dataset", tooltip="From LoRA Dataset Loader or LoRA Captioner."),
                io.DynamicCombo.Input("preset", options=[
                    io.DynamicCombo.Option(name, _everyday(preset)) for name, preset in PRESETS.items()
                ], tooltip="What you want to teach. It fills in the three values below; change them as you like."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, tooltip=(
                    "Decides everything that is random. The same seed trains the same LoRA; another one is another "
                    "job.")),
                io.Combo.Input("mode", options=["wait", "background"], tooltip=(
                    "wait: the graph goes on when training is over. background: the node returns at once with the LoRA "
                    "as it is; other prompts run between steps, and queueing this workflow again gives the newest "
                    "LoRA.")),
                LoraPreview.Input("preview", optional=True, tooltip=(
                    "From LoRA Sample Preview: pictures while training.")),
                LoraDataset.Input("validation", optional=True, tooltip=(
                    "Images of the same kind that are never trained on. Their loss tells when to stop: it falls while "
                    "the LoRA learns and rises when it overfits. Or set held_out.")),
                LoraDataset.Input("regularization", optional=True, tooltip=(
                    "Pictures of the class without your subject, for prior preservation: as many are trained as you "
                    "have images, so that the LoRA does not turn every cat into yours.")),
                io.Combo.Input("result", options=["last", "best"], optional=True, advanced=True, tooltip=(
                    "Which LoRA is handed on: the last one, or the one with the lowest held-out loss. Both are kept.")),
                io.Combo.Input("start_from", options=["none", *lora_names()], optional=True, advanced=True, tooltip=(
                    "A LoRA file to go on from, yours or someone else's, in any of the usual formats. It brings its "
                    "own ranks and layers.")),
                *rare(),
                io.Combo.Input("sharing", options=list(get_args(choices.Sharing)), optional=True, advanced=True,
                               tooltip=(
                    "Who goes first while this trains and prompts are queued. prompts first: training waits until the "
                    "queue is empty. fair share: it gets as much time as each prompt took. training first: prompts "
                    "wait until it is done or paused.")),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the LoRA at strength 1."),
                LoraModel.Output("lora", display_name="lora", tooltip="The LoRA, for Save LoRA."),
                LossMap.Output("loss_map", display_name="loss_map", tooltip=(
                    "The loss of every step, for Plot Loss Graph.")),
                io.AnyType.Output("job", display_name="job", tooltip=(
                    "The job's id, for Live LoRA and LoRA Sample Grid; the name of its folder in "
                    "user/default/livelora/jobs.")),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, mode, **_) -> float | int:
        """In the background there is always something new. A finished LoRA stays what it is; one cut short does not."""
        return float("nan") if mode != "wait" else jobs_of_prompt().cut_short

    @classmethod
    def execute(cls, model, clip, vae, dataset, preset, seed, mode, preview=None, validation=None, regularization=None,
                result: Which = "last", start_from="none", sharing: choices.Sharing = "prompts first",
                **recipe) -> io.NodeOutput:
        everyday = {name: value for name, value in preset.items() if name != "preset"}
        config = TrainConfig(seed=seed, **everyday, **recipe)
        check_all(packages_for(config))
        pictures, preview_node = preview or (None, None)
        start = None if start_from == "none" else formats.read(export.load(lora_path(start_from)))
        task = Task(ComfyHost(model, clip, vae), config, dataset, validation, pictures, regularization, start,
                    Cache(scratch() / "encoded"))
        if result == "best" and not task.validation:
            raise ValueError("result is 'best', but there are no held-out images to tell which LoRA that is. Set "
                             "held_out to 0.1, or wire in a validation dataset, or set result to 'last'.")
        TURNS.begin()
        about = cls.hidden.extra_pnginfo or {}
        graph = Graph.of(cls.hidden.prompt, cls.hidden.unique_id, about.get("workflow"))
        job = jobs_of_prompt().submit(task, graph, sharing, expected=about.get("livelora_job", ""))
        routes.announce(job, train_node=cls.hidden.unique_id, preview_node=preview_node)
        if mode == "wait":
            wait(job, LEASE, cls.hidden.unique_id)
        if job.state == "failed":
            raise RuntimeError(f"LoRA training failed at step {job.record.step}. {job.message}\nWhat was learned until "
                               f"the last saved state is kept in {job.folder.path}; queue again to go on from there.")
        return cls._outputs(model, job, result)

    @classmethod
    def _outputs(cls, model, job: Job, result: Which) -> io.NodeOutput:
        """The newest or the best LoRA. Before the first step there is none: what depends on it is passed over."""
        lora = job.lora(result)
        record = job.record
        losses = {"loss": list(record.losses)} if len(record.losses) > 1 else nothing_yet()  # a graph needs two points
        status = job.status()
        shown = {"text": (status["message"] or f"{status['state']}: step {status['step']} of {status['steps']}",)}
        if lora is None:
            return io.NodeOutput(model, nothing_yet(), losses, job.id, ui=shown)
        return io.NodeOutput(with_lora(model, lora), lora, losses, job.id, ui=shown)
