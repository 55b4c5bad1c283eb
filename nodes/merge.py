"""LoRA Merge and Resize: makes one LoRA of two files, or cuts one to a lower rank."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.comfy.families import FAMILIES, names
from ..trainer.comfy.paths import lora_names, lora_path
from ..trainer.comfy.progress import show_progress
from ..trainer.lora import merge
from ..trainer.lora.file import Lora
from .choices import check, checked
from .recipe import most
from .types import CATEGORY, LoraModel, refusal, told


class MergeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraMerge",
            display_name="LoRA Merge and Resize",
            category=CATEGORY,
            description=f"Adds two LoRAs of {names()} up into one, cuts a LoRA to a lower rank, or both, and tells how "
                        "much of it was kept. The model itself is not needed.",
            search_aliases=["merge loras", "combine loras", "resize lora", "lora rank", "svd"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("lora_a", options=lora_names(), tooltip=(
                    "The first LoRA file, in any of the usual formats; or a link from Save LoRA's lora_name.")),
                _strength("strength_a"),
                io.Combo.Input("lora_b", options=["none", *lora_names()], default="none", tooltip=(
                    "The LoRA that is added to it. none: only resize the first.")),
                _strength("strength_b"),
                io.Int.Input("rank", default=0, min=0, max=most("rank"), tooltip=(
                    "The highest rank of the result. 0 keeps everything: the ranks add up and the result is exact. "
                    "Lower it for a smaller file, and look at the report: what is not kept is lost.")),
            ],
            outputs=[
                LoraModel.Output("lora", display_name="lora", tooltip=(
                    "The LoRA, for Save LoRA or core's Load LoRA Model.")),
                io.String.Output("report", display_name="report", tooltip=(
                    "The ranks and how much of the change was kept, as text.")),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_b) -> bool | str:
        """Refuses, before anything runs, a file that cannot be merged: a training may be about to make the other LoRA.
        ComfyUI repeats an error for each parameter of this method, so it has only lora_b: lora_a is read before
        anything else unless it is linked."""
        return lora_b is None or refusal(_check_mergeable, lora_b)

    @classmethod
    def fingerprint_inputs(cls, lora_a, lora_b, **_) -> list[int]:
        """Returns a value that changes when a file changes. A linked name is None here."""
        return [lora_path(name).stat().st_mtime_ns for name in (lora_a, lora_b) if name not in (None, "none")]

    @classmethod
    @checked
    def execute(cls, lora_a, strength_a, lora_b, strength_b, rank) -> io.NodeOutput:
        files = [(name, strength) for name, strength in ((lora_a, strength_a), (lora_b, strength_b))
                 if name != "none" and strength]
        parts = [merge.read(lora_path(name), strength, name, FAMILIES) for name, strength in files]
        lora, changes = merge.merge(parts, rank, show_progress)
        report = merge.report(changes)
        return io.NodeOutput(Lora(lora, merge.metadata(parts, rank, changes, FAMILIES)), report, ui=told(report))


def _check_mergeable(lora_b: str) -> None:
    check(MergeLoras, {"lora_b": lora_b})
    if lora_b != "none":
        merge.read(lora_path(lora_b), 1.0, lora_b, FAMILIES)


def _strength(name: str) -> io.Input:
    return io.Float.Input(name, default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=(
        "How strongly that LoRA goes in, as in Load LoRA. Negative takes it away, 0 leaves it out."))
