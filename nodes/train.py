"""LoRA Train: trains on the wired model, in a background thread."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.comfy.model import ComfyHost, with_lora
from ..trainer.comfy.prompts import nothing_yet, wait
from ..trainer.config import PRESETS, Preset, TrainConfig
from ..trainer.job import Job
from ..trainer.packages import check_all
from ..trainer.task import Task
from . import routes
from .jobs import JOBS, LEASE, TURNS
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
        io.Float.Input("learning_rate", default=preset.learning_rate, min=1e-7, max=1, step=1e-6, round=False, tooltip=(
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
                    "the LoRA learns and rises when it overfits.")),
                *cls._rare(),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the LoRA at strength 1."),
                LoraModel.Output("lora", display_name="lora", tooltip="The LoRA, for Save LoRA."),
                LossMap.Output("loss_map", display_name="loss_map", tooltip=(
                    "The loss of every step, for Plot Loss Graph.")),
                io.String.Output("job", display_name="job", tooltip=(
                    "The job's id, the name of its folder in user/livelora/jobs.")),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def _rare(cls) -> list[io.Input]:
        """Inputs that few need to touch, by the names of `TrainConfig`."""
        return [
            io.Int.Input("batch_size", default=1, min=1, max=64, advanced=True, tooltip=(
                "Images in one step. Each takes memory; gradient_accumulation_steps has the same effect and takes "
                "time.")),
            io.Int.Input("gradient_accumulation_steps", default=1, min=1, max=256, advanced=True, tooltip=(
                "Batches that are averaged into one step. Raise it if training is restless and memory is short.")),
            io.Float.Input("alpha", default=0.0, min=0.0, max=1024.0, step=1.0, advanced=True, tooltip=(
                "The LoRA's scale is alpha / rank. 0 means alpha = rank. Half the rank learns half as fast.")),
            io.Combo.Input("target_modules", options=["all", "attention and mlp", "attention"], advanced=True, tooltip=(
                "Which layers of the transformer blocks get a LoRA. 'all' learns best, 'attention' makes the smallest "
                "file.")),
            io.Combo.Input("optimizer", options=["AdamW8bit", "AdamW"], advanced=True, tooltip=(
                "AdamW8bit keeps its state in 8 bits (bitsandbytes) and learns the same.")),
            io.Float.Input("weight_decay", default=0.01, min=0.0, max=1.0, step=0.001, advanced=True, tooltip=(
                "Pulls the LoRA's weights towards zero. Rarely worth a change.")),
            io.Combo.Input("lr_scheduler", options=["cosine", "linear", "constant"], advanced=True, tooltip=(
                "How the learning rate falls over the run. constant lets you stop whenever you like.")),
            io.Int.Input("lr_warmup_steps", default=0, min=0, max=10000, advanced=True, tooltip=(
                "Steps over which the learning rate rises from 0. Useful with high learning rates.")),
            io.Float.Input("max_grad_norm", default=1.0, min=0.0, max=100.0, step=0.1, advanced=True, tooltip=(
                "Larger gradients are scaled down to this. 0 turns it off.")),
            io.Combo.Input("timestep_sampling", options=["sigmoid", "resolution_shift"], advanced=True, tooltip=(
                "Which noise levels are trained. sigmoid: mostly the middle. resolution_shift: more noise for larger "
                "pictures, as the sampler does; good for composition and style.")),
            io.Float.Input("guidance", default=1.0, min=0.0, max=30.0, step=0.1, advanced=True, tooltip=(
                "The value of FLUX.1-dev's guidance input while training. 1 keeps its guidance intact.")),
            io.Combo.Input("adapter_dtype", options=["fp32", "bf16"], advanced=True, tooltip=(
                "Numbers the LoRA is trained in. bf16 saves memory and loses small updates.")),
            io.Boolean.Input("gradient_checkpointing", default=True, advanced=True, tooltip=(
                "Recompute activations instead of keeping them: a third more time, a fraction of the memory.")),
            io.Int.Input("save_every", default=100, min=1, max=100000, advanced=True, tooltip=(
                "Steps between states on disk. A crash costs at most this many.")),
            io.Int.Input("validate_every", default=50, min=1, max=100000, advanced=True, tooltip=(
                "Steps between two measurements of the validation images.")),
        ]

    @classmethod
    def fingerprint_inputs(cls, mode, **_) -> float | int:
        """In the background there is always something new. A finished LoRA stays what it is; one cut short does not."""
        return float("nan") if mode != "wait" else JOBS.cut_short

    @classmethod
    def execute(cls, model, clip, vae, dataset, preset, seed, mode, preview=None, validation=None,
                **rare) -> io.NodeOutput:
        everyday = {name: value for name, value in preset.items() if name != "preset"}
        config = TrainConfig(seed=seed, **everyday, **rare)
        check_all()
        pictures, preview_node = preview or (None, None)
        task = Task(ComfyHost(model, clip, vae), config, dataset, validation, pictures)
        TURNS.begin()
        job = JOBS.submit(task)
        routes.announce(job, train_node=cls.hidden.unique_id, preview_node=preview_node)
        if mode == "wait":
            wait(job, LEASE, cls.hidden.unique_id)
        if job.state == "failed":
            raise RuntimeError(f"LoRA training failed at step {len(job.losses)}. {job.message}\nWhat was learned until "
                               f"the last saved state is kept in {job.folder.path}; queue again to go on from there.")
        return cls._outputs(model, job)

    @classmethod
    def _outputs(cls, model, job: Job) -> io.NodeOutput:
        """The newest LoRA. Before the first step there is none: what depends on it is passed over this time."""
        lora = job.newest_lora()
        losses = {"loss": list(job.losses)} if len(job.losses) > 1 else nothing_yet()  # a graph needs two points
        status = job.status()
        shown = {"text": (status["message"] or f"{status['state']}: step {status['step']} of {status['steps']}",)}
        if lora is None:
            return io.NodeOutput(model, nothing_yet(), losses, job.id, ui=shown)
        return io.NodeOutput(with_lora(model, lora), lora, losses, job.id, ui=shown)
