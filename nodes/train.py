"""LoRA Train: trains on the wired model, in a background thread."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..trainer.comfy import loras
from ..trainer.comfy.families import FAMILIES, USUAL, names
from ..trainer.comfy.host import ComfyHost, with_lora
from ..trainer.comfy.paths import lora_names, lora_path
from ..trainer.comfy.turns import nothing_yet, wait
from ..trainer.data.cache import Cache
from ..trainer.disk.packages import check_all
from ..trainer.jobs.folder import Which
from ..trainer.jobs.job import Job
from ..trainer.jobs.lease import Sharing
from ..trainer.jobs.saving import SaveAs
from ..trainer.jobs.workflow import Graph
from ..trainer.lora.file import load
from ..trainer.lora.reading import read
from ..trainer.recipe.config import TrainConfig, renewed
from ..trainer.training.optim import packages_for
from ..trainer.training.task import Task
from . import recipe, routes
from .choices import check, check_left_out, checked
from .jobs import EVERYBODY
from .requeue import JOB, SAVES
from .save import SaveLora
from .types import CATEGORY, LoraDataset, LoraModel, LoraPreview, LossMap, refusal

SAVE = SaveLora.define_schema().node_id
SAVE_INPUTS = ("name", "dtype", "format", "embed_workflow")


class Train(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraTrain",
            display_name="LoRA Train",
            category=CATEGORY,
            description="Trains a LoRA on the model that is wired in, without a second copy of it. The job goes on "
                        "where it stopped if the workflow is queued again, also after a crash.",
            search_aliases=["train lora", "fine-tune", "dreambooth", *(f"{family.name} lora" for family in FAMILIES)],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=f"The {names()} model to train on. It stays as it is, always."),
                io.Clip.Input("clip", tooltip="The model's text encoders, for the captions."),
                io.Vae.Input("vae", tooltip="The model's VAE, for the images."),
                LoraDataset.Input("dataset", tooltip="From LoRA Dataset Loader or LoRA Captioner."),
                io.DynamicCombo.Input("preset", options=[
                    io.DynamicCombo.Option(name, recipe.everyday(preset)) for name, preset in USUAL.presets.items()
                ], tooltip="What you want to teach. It fills in the three values below; change them as you like."),
                recipe.seed(),
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
                io.Combo.Input("result", options=list(get_args(Which)), optional=True, advanced=True,
                               extra_dict=recipe.in_group("Adapter"), tooltip=(
                    "Which LoRA is handed on: the last one, or the one with the lowest held-out loss. Both are kept.")),
                io.Combo.Input("start_from", options=["none", *lora_names()], optional=True, advanced=True,
                               extra_dict=recipe.in_group("Adapter"), tooltip=(
                    "A LoRA file to go on from, yours or someone else's, in any of the usual formats. It brings its "
                    "own ranks and layers.")),
                *recipe.rare(newer=False),
                io.Combo.Input("sharing", options=list(get_args(Sharing)), optional=True, advanced=True,
                               extra_dict=recipe.in_group("Sharing"), tooltip=(
                    "Who goes first while this trains and prompts are queued. prompts first: training waits until the "
                    "queue is empty. fair share: it gets as much time as each prompt took. training first: prompts "
                    "wait until it is done or paused.")),
                *recipe.rare(newer=True),
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
    def validate_inputs(cls, gradient_checkpointing="auto", *, preset=None) -> bool | str:
        """Refuses, before anything runs, a preset that is no option, a training of nobody, and one whose jobs another
        ComfyUI has.

        ComfyUI reports an error at each parameter that is not keyword-only, and no longer checks the values of those,
        so there is one: `gradient_checkpointing`, because 0.1.0 had True and False for it. A graph without it is
        refused when the node runs."""
        def check() -> None:
            check_left_out(cls, "preset", preset)
            recipe.check_setting("gradient_checkpointing", gradient_checkpointing)
            EVERYBODY.book_of_prompt()

        return refusal(check)

    @classmethod
    def fingerprint_inputs(cls, mode, **_) -> float | int:
        """Returns a value that changes when the node must run again. In the background there is always something new. A
        finished LoRA stays what it is; one that was cut short does not."""
        return float("nan") if mode != "wait" else EVERYBODY.book_of_prompt().cut_short

    @classmethod
    @checked
    def execute(cls, model, clip, vae, dataset, preset, seed, mode, preview=None, validation=None, regularization=None,
                result: Which = "last", start_from="none", sharing: Sharing = "prompts first",
                **rare) -> io.NodeOutput:
        everyday = {name: value for name, value in preset.items() if name != "preset"}
        config = TrainConfig(**renewed({"seed": seed, **everyday, **rare}))
        check_all(packages_for(config))
        pictures, preview_node = preview or (None, None)
        start = None if start_from == "none" else _start(start_from)
        task = Task.of(ComfyHost(model, clip, vae), config, dataset, validation=validation, preview=pictures,
                       regularization=regularization, start=start, cache=Cache(EVERYBODY.scratch() / "encoded"))
        if result == "best" and not task.validation:
            raise ValueError("result is 'best', but there are no held-out images to tell which LoRA that is. Set "
                             "held_out to 0.1, or wire in a validation dataset, or set result to 'last'.")
        about = cls.hidden.extra_pnginfo or {}
        saves = _saves(cls.hidden.prompt, cls.hidden.unique_id, result, about)
        book = EVERYBODY.book_of_prompt()
        if mode == "wait" and (problems := routes.left_out(cls.hidden.unique_id)) and not book.has_trained(task):
            raise ValueError(f"What follows LoRA Train cannot run, so nothing is trained. {problems}. Correct that, or "
                             "mute the nodes that you do not need, or run LoRA Train alone: select it, and press the "
                             "blue ▷ in the bar above it.")
        EVERYBODY.turns.begin()
        graph = Graph.of(cls.hidden.prompt, cls.hidden.unique_id, about.get("workflow"))
        job = book.submit(task, graph, sharing, expected=about.get(JOB, ""), saves=saves)
        routes.announce(book, job, mode, about.get("workflow"), cls.hidden.unique_id, preview_node)
        if mode == "wait":
            wait(job, book, EVERYBODY.lease, cls.hidden.unique_id)
        if job.state == "failed":
            raise RuntimeError(_failed(job))
        return cls._outputs(model, job, result)

    @classmethod
    def _outputs(cls, model, job: Job, result: Which) -> io.NodeOutput:
        """Returns the outputs with the newest or the best LoRA. Before the first step there is none, and nodes that
        depend on it are skipped."""
        lora = job.lora(result)
        found = list(job.history.losses)
        losses = {"loss": found} if len(found) > 1 else nothing_yet()  # a graph needs two points
        told = job.message or f"{job.state}: step {job.history.step} of {job.config.total_steps}"
        shown = {"text": (told,), "job": (job.id,)}
        if lora is None:
            return io.NodeOutput(model, nothing_yet(), losses, job.id, ui=shown)
        lora.job = job.id
        return io.NodeOutput(with_lora(model, lora), lora, losses, job.id, ui=shown)


def _saves(prompt: dict[str, Any], node: str, result: Which, about: dict[str, Any]) -> tuple[SaveAs, ...] | None:
    """Returns how the Save LoRA nodes behind this node save its LoRA, so that the job can do so by itself; None if the
    prompt does not tell, because it only brings a job's model back. Raises ValueError if one of them cannot."""
    if SAVES in about:
        return tuple(SaveAs(**entry) for entry in about[SAVES])
    if JOB in about:
        return None
    saves = []
    for name, entry in prompt.items():
        inputs = {key: value for key, value in entry["inputs"].items() if key in SAVE_INPUTS}
        linked = any(isinstance(value, list) for value in inputs.values())  # what it will be is not known yet
        behind = entry["class_type"] == SAVE and entry["inputs"].get("lora") == [node, 1]
        if behind and "name" in inputs and not linked:
            try:
                check(SaveLora, inputs)
                loras.check(inputs["name"])
            except ValueError as err:
                raise ValueError(f"Save LoRA (node {name}) could not save what is trained, so nothing is trained. "
                                 f"{err}") from err
            saves.append(SaveAs(**inputs, which=result))
    return tuple(saves)


def _start(name: str) -> dict[str, Tensor]:
    """Returns a LoRA file with our names. Raises ValueError, with the file's name, if it is not one."""
    file = load(lora_path(name))
    try:
        return read(file, FAMILIES)
    except ValueError as err:
        raise ValueError(f"'{name}' cannot be started from. {err}") from err


def _failed(job: Job) -> str:
    if not job.history.step:
        return f"LoRA training failed before its first step. {job.message}"
    return (f"LoRA training failed at step {job.history.step}. {job.message}\nWhat was learned until the last saved "
            f"state is kept in {job.folder.path}; queue again to go on from there.")
