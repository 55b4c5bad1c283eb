"""LoRA Captioner: writes and edits captions by a template."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.data import captions
from .types import CATEGORY, LoraDataset

SHOWN = 20


class Captioner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraCaption",
            display_name="LoRA Captioner",
            category=CATEGORY,
            description="Writes or edits the captions of a dataset by a template: a trigger word, words before and "
                        "after, the file's name. Nothing is written to disk unless you ask for it.",
            search_aliases=["caption images", "trigger word", "edit captions"],
            inputs=[
                LoraDataset.Input("dataset", tooltip="From LoRA Dataset Loader."),
                io.String.Input("template", default="{trigger}, {caption}", tooltip=(
                    "How a caption reads. {trigger} is the dataset's trigger word, {caption} the present caption, "
                    "{name} the file's name as words. Words around them stay: 'photo of {trigger}, {caption}, on "
                    "white'.")),
                io.Combo.Input("which", options=["all", "missing only"], tooltip=(
                    "Edit every caption, or write only those that are missing or empty.")),
                io.Boolean.Input("write_files", default=False, tooltip=(
                    "Off: a dry run, the new captions are used for this training and shown, your files stay as they "
                    "are. On: the .txt files are written; what was there before is kept once as .txt.bak.")),
            ],
            outputs=[
                LoraDataset.Output("dataset", display_name="dataset", tooltip="The same images with the new captions."),
                io.String.Output("report", display_name="report", tooltip="The captions before and after, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, template) -> bool | str:
        """A template that cannot be filled is refused before anything runs."""
        try:
            if template is not None:
                captions.check_template(template)
        except ValueError as err:
            return str(err)
        return True

    @classmethod
    def execute(cls, dataset, template, which, write_files) -> io.NodeOutput:
        captions.check_template(template)
        texts, changes = [], []
        for item in dataset.items:
            present = item.caption if item.has_caption else ""
            text = item.caption
            if which == "all" or not present:
                text = captions.apply_template(template, trigger=dataset.trigger_word, caption=present,
                                               name=item.path.stem)
            texts.append(text)
            if text != present:
                changes.append(f"{item.path.name}: “{present}” → “{text}”")
                if write_files:
                    captions.write(item.path, text)
        report = "\n".join([cls._summary(len(changes), len(texts), write_files), *changes[:SHOWN]])
        return io.NodeOutput(dataset.with_captions(texts), report, ui={"text": (report,)})

    @classmethod
    def _summary(cls, changed: int, total: int, write_files: bool) -> str:
        done = "written to disk" if write_files else "changed in memory only (dry run)"
        return f"{changed} of {total} captions {done}"
