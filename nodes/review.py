"""LoRA Caption Review: writes captions to a table and reads them back, searches and replaces, and drops images that are
not accepted."""

from __future__ import annotations

import os

from comfy_api.latest import io

from ..trainer.comfy.paths import table_path
from ..trainer.data import review
from ..trainer.disk.text import counted
from .choices import checked
from .dataset import check_own_files
from .types import CATEGORY, LoraDataset, refusal, told

SHOWN = 20


class CaptionReview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraReview",
            display_name="LoRA Caption Review",
            category=CATEGORY,
            description="Shows the captions of a dataset and edits them in bulk: search and replace, or a table that "
                        "you edit in a spreadsheet and read back. Nothing is written to disk unless you ask for it.",
            search_aliases=["edit captions", "search and replace captions", "caption table", "csv"],
            is_output_node=True,
            inputs=[
                LoraDataset.Input("dataset", tooltip="From LoRA Dataset Loader or LoRA Captioner."),
                io.Combo.Input("action", options=["show", "write table", "read table"], tooltip=(
                    "show: edit with find and replace only. write table: put file names and captions into the table, "
                    "to be edited in a spreadsheet or text editor. read table: take the captions from it.")),
                io.String.Input("table", default="", tooltip=(
                    "A .csv (spreadsheets) or .jsonl file to write or read: an absolute path, or a name under "
                    "ComfyUI's input folder, such as captions.csv. Its columns are file_name, caption and accepted.")),
                io.String.Input("find", default="", tooltip=(
                    "Text to replace in every caption, after the table was read; upper and lower case count. Empty: "
                    "nothing is replaced.")),
                io.String.Input("replace", default="", tooltip="What to put in its place. Empty: it is taken out."),
                io.Boolean.Input("regular_expression", default=False, advanced=True, tooltip=(
                    "On: find is a Python regular expression, and \\1 in replace is its first group. Keep it simple: "
                    "one that never ends cannot be interrupted.")),
                io.Combo.Input("use", options=["all", "accepted only"], advanced=True, tooltip=(
                    "all: train every image. accepted only: train those whose row in the table says yes in the column "
                    "accepted; needs read table.")),
                io.Boolean.Input("write_files", default=False, tooltip=(
                    "Off: the new captions are used for this training and shown, your text files stay as they are. On: "
                    "captions that differ from the files beside the images are written; what was there before is kept "
                    "once as .bak.")),
            ],
            outputs=[
                LoraDataset.Output("dataset", display_name="dataset", tooltip="The images with the new captions."),
                io.String.Output("table_text", display_name="table", tooltip="The captions as CSV text."),
                io.String.Output("report", display_name="report", tooltip="The captions before and after, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, table) -> bool | str:
        """Refuses, before anything runs, a path that cannot be a table. ComfyUI repeats an error for each parameter of
        this method, so it has only one. The rest is checked in `execute`, before anything is written."""
        return not (table and table.strip()) or refusal(table_path, table)

    @classmethod
    def fingerprint_inputs(cls, table, action, **_) -> list:
        """Returns a value that changes when a table that is read changes."""
        if action != "read table" or not table or not table.strip():  # None: linked, ComfyUI has not computed it yet
            return []
        path = table_path(table)
        return [path.stat().st_size, path.stat().st_mtime_ns] if os.path.isfile(path) else []

    @classmethod
    @checked
    def execute(cls, dataset, action, table, find, replace, regular_expression, use, write_files) -> io.NodeOutput:
        if action != "show" and not table.strip():
            raise ValueError(f"action is '{action}', and table is empty. Name a table, such as captions.csv.")
        if use == "accepted only" and action != "read table":
            raise ValueError("use is 'accepted only', but only a table says which images are accepted, and action is "
                             f"'{action}'. Set action to 'read table', or use to 'all'.")
        if write_files:
            check_own_files(dataset)
        taken = review.Taken(dataset)
        if action == "read table":
            taken = review.read_table(table_path(table), dataset)
        edited = review.search_and_replace(taken.dataset, find, replace, regular_expression)
        changes = review.changes(dataset, edited)
        lines, warnings = [f"{counted(len(changes), 'caption')} changed"], [*taken.notes]
        result = edited
        if use == "accepted only" and taken.accepted is not None:
            result = review.only_accepted(edited, taken.accepted, table_path(table).name)
            warnings += result.skipped[len(dataset.skipped):]
        if action == "write table":
            review.write_table(table_path(table), edited)
            lines.append(f"The table is in {table_path(table)}")
        if write_files:
            lines.append(f"{counted(review.write_captions(result), 'caption')} written beside their images")
        more = [f"and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
        report = "\n".join([*lines, *warnings, *changes[:SHOWN], *more])
        text = review.as_text(review.rows(edited, taken.accepted))
        return io.NodeOutput(result, text, report, ui=told(report, warnings))
