"""LoRA Captioner: writes captions with a model that sees, and edits them by a template."""

from __future__ import annotations

import contextlib
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.captioning import clean, presets
from ..trainer.captioning.engine import Engine
from ..trainer.captioning.session import Captioned, Plan, Scope, caption
from ..trainer.captioning.tagger import Tagger
from ..trainer.captioning.vision import VisionFolder
from ..trainer.comfy import textgen
from ..trainer.comfy.families import USUAL
from ..trainer.comfy.paths import absolute_path
from ..trainer.comfy.progress import show_progress
from ..trainer.data.captions import files as captions
from ..trainer.data.naming import name_some
from ..trainer.disk.text import counted
from .choices import checked
from .dataset import check_own_files
from .jobs import EVERYBODY
from .types import CATEGORY, LoraDataset, refusal, told

SHOWN = 20
TEMPLATE, TEXT_MODEL, FOLDER, TAGGER = "template", "ComfyUI text model", "vision-language folder", "tagger"


class Captioner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LiveLoraCaption",
            display_name="LoRA Captioner",
            category=CATEGORY,
            description="Writes the captions of a dataset with a model that looks at the images, or edits the captions "
                        "that are there with a template. Nothing is written to disk unless you ask for it.",
            search_aliases=["caption images", "trigger word", "edit captions", "tagger", "WD14", "JoyCaption",
                            "Florence-2"],
            is_output_node=True,
            inputs=[
                LoraDataset.Input("dataset", tooltip="From LoRA Dataset Loader."),
                io.String.Input("template", default="{trigger}, {caption}", tooltip=(
                    "How a caption reads. {trigger} is the dataset's trigger word, {caption} what the engine writes "
                    "(with the engine 'template': the present caption), {name} the file's name as words. Words around "
                    "them stay: 'photo of {trigger}, {caption}, on white'.")),
                io.Combo.Input("which", options=list(get_args(Scope)), tooltip=(
                    "all: write every caption anew. missing only: write those that are missing or empty. append: put "
                    "what the engine writes behind the captions that are there.")),
                io.Boolean.Input("write_files", default=False, tooltip=(
                    "Off: a dry run, the new captions are used for this training and shown, your files stay as they "
                    "are. On: the .txt files are written, each as soon as it is done; what was there before is kept "
                    "once as .txt.bak.")),
                io.DynamicCombo.Input("engine", optional=True, options=_engines(), tooltip=(
                    "What writes the captions. ComfyUI text model: a CLIP that can see, such as Qwen3-VL, Qwen3.5 or "
                    "Gemma; the best choice if you have one. vision-language folder: JoyCaption, Florence-2, Qwen-VL "
                    "and others from a folder. tagger: tags, for models that were trained on them. template: nothing "
                    "looks at the images, the captions that are there are edited.")),
                io.String.Input("banned", default="", optional=True, advanced=True, tooltip=(
                    "Words and phrases to take out, between commas: watermark, signature, blurry")),
                io.String.Input("replace", default="", multiline=True, optional=True, advanced=True, tooltip=(
                    "Words and phrases to replace, a pair on each line: a man → ohwx man")),
            ],
            outputs=[
                LoraDataset.Output("dataset", display_name="dataset", tooltip="The same images with the new captions."),
                io.String.Output("report", display_name="report", tooltip="The captions before and after, as text."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, template, engine=None) -> bool | str:
        """Refuses, before anything runs, a template that cannot be filled. ComfyUI hands over dynamic inputs unasked,
        so `engine` is a parameter too."""
        return template is None or refusal(captions.check_template, template)

    @classmethod
    @checked
    def execute(cls, dataset, template, which, write_files, engine=None, banned="", replace="") -> io.NodeOutput:
        chosen: dict[str, Any] = engine or {"engine": TEMPLATE}
        plan = Plan(template=template, which=which, write_files=write_files, banned=clean.word_list(banned),
                    replaced=clean.replacements(replace), seed=chosen.get("seed", 0))
        made = _engine(chosen)
        if write_files:
            check_own_files(dataset)
        with textgen.room_for(made.path) if isinstance(made, VisionFolder) else contextlib.nullcontext():
            done = caption(dataset, plan, made, EVERYBODY.scratch(), show_progress)
        warnings = _warnings(done)
        report = "\n".join([_summary(done, write_files), *warnings, *_changes(done)])
        return io.NodeOutput(done.dataset, report, ui=told(report, warnings))


def _engines() -> list[io.DynamicCombo.Option]:
    folder = io.String.Input("folder", default="", tooltip=(
        "The model's folder on this machine, with config.json, .safetensors and tokenizer files. Nothing is "
        "downloaded."))
    return [
        io.DynamicCombo.Option(TEXT_MODEL, [
            io.Clip.Input("clip", tooltip="A text encoder that can see, from Load CLIP. Not the one that you train "
                                          "with."),
            *_asking()]),
        io.DynamicCombo.Option(FOLDER, [folder, *_asking()]),
        io.DynamicCombo.Option(TAGGER, [
            io.String.Input("file", default="", tooltip=(
                "The tagger's .onnx file on this machine, with its selected_tags.csv beside it. Needs: pip install "
                "onnxruntime")),
            io.Float.Input("threshold", default=0.35, min=0.0, max=1.0, step=0.01, tooltip=(
                "How sure the tagger must be of a tag. Lower gives more tags, and more wrong ones.")),
            io.Float.Input("character_threshold", default=0.85, min=0.0, max=1.0, step=0.01, tooltip=(
                "How sure the tagger must be of the name of a known character. 1 leaves these names out.")),
        ]),
        io.DynamicCombo.Option(TEMPLATE, []),
    ]


def _asking() -> list[io.Input]:
    """Returns the inputs of engines whose model is asked for a caption."""
    return [
        io.Combo.Input("preset", options=list(presets.PROMPTS), tooltip=(
            "What is described: everything except what your trigger word stands for. general leaves nothing out. "
            "Florence-2 always describes all.")),
        io.String.Input("prompt", default="", multiline=True, tooltip=(
            "Ask for something else than the preset does. For Florence-2 one of its tasks, such as "
            "<DETAILED_CAPTION>.")),
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, tooltip=(
            "Another seed gives other words, where the model draws them by chance.")),
        io.Int.Input("max_length", default=256, min=16, max=4096, advanced=True, tooltip=(
            f"Where an answer is cut off, in tokens. {USUAL.name} reads {USUAL.caption_tokens} of them.")),
        io.Int.Input("max_side", default=512, min=64, max=4096, step=16, advanced=True, tooltip=(
            "The longer side of an image, in pixels, that the model sees at most. More shows finer detail, and takes "
            "more time and memory.")),
    ]


def _engine(chosen: dict[str, Any]) -> Engine | None:
    """Returns the chosen engine; None for the template. Raises ValueError if the choice lacks its file or folder."""
    kind = chosen["engine"]
    if kind == TEMPLATE:
        return None
    if kind == TAGGER:
        return Tagger(path=absolute_path(chosen["file"], "file", "a tagger's .onnx file"), general=chosen["threshold"],
                      character=chosen["character_threshold"])
    prompt = chosen["prompt"].strip()
    asking = {"prompt": prompt or presets.PROMPTS[chosen["preset"]], "max_length": chosen["max_length"],
              "max_side": chosen["max_side"]}
    if kind == TEXT_MODEL:
        return textgen.TextModel(clip=chosen["clip"], **asking)
    return VisionFolder(path=absolute_path(chosen["folder"], "folder", "a vision-language model's folder"),
                        device=textgen.device(), own_prompt=bool(prompt), **asking)


def _summary(done: Captioned, write_files: bool) -> str:
    how = "written to disk" if write_files else "changed in memory only (dry run)"
    unique = len({item.path for item in done.dataset.items})
    return f"{len(done.changes)} of {counted(unique, 'caption')} {how}"


def _warnings(done: Captioned) -> list[str]:
    lines = []
    if missing := done.dataset.uncaptioned:
        lines.append(f"{counted(len(missing), 'image')} still without a caption: "
                     f"{name_some([item.path.name for item in missing])}")
    if done.problems:
        lines += [f"No new caption for {counted(len(done.problems), 'image')}; queue again with another seed to try "
                  "once more:",
                  *done.problems[:SHOWN]]
    return lines


def _changes(done: Captioned) -> list[str]:
    return [f"{name}: “{before}” → “{after}”" for name, before, after in done.changes[:SHOWN]]
