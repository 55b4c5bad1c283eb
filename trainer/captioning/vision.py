"""Captions pictures with a vision-language model from a folder on this machine. The classes are transformers' own, and
the weights are safetensors.

Nothing is downloaded, and no code or pickle that comes with a model is run."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.pictures.pixels import to_image
from ..disk.packages import require
from ..recipe.seeds import seeded
from .clean import plain
from .engine import Describe

FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>")
CAPTIONERS = ("blip", "blip-2", "git", "instructblip")
"""The kinds of models that caption without being asked. A question is optional, and is put to them as it is."""
LOCAL = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionFolder:
    """Describes pictures with a model in a folder, as it is downloaded from a hub: config.json, safetensors, processor
    and tokenizer files."""

    path: Path
    prompt: str
    """What the model is asked. Florence-2 takes only one of its tasks, and describes at length if none is given."""
    device: torch.device
    max_length: int = 256
    """The longest answer, in tokens."""
    max_side: int = 512
    own_prompt: bool = False
    """Whether a person wrote `prompt`. If so, CAPTIONERS are asked it, and Florence-2 refuses it unless it is a task.
    If not, CAPTIONERS are asked nothing."""

    @property
    def name(self) -> str:
        return f"Model {self.path.name}"

    @property
    def settings(self) -> tuple[str | float, ...]:
        return str(self.path), self.prompt, self.max_length

    @contextlib.contextmanager
    def opened(self) -> Iterator[Describe]:
        """Loads the model and yields the function that describes pictures. Raises ValueError for a folder that is no
        such model or a prompt that it cannot follow, and RuntimeError if transformers is missing or too old."""
        kind = model_type(self.path)
        self._check_prompt(kind)
        check_known(self.path, kind)
        processor = require("transformers").AutoProcessor.from_pretrained(self.path, **LOCAL)
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16  # CPUs are slow with half precision
        model = load(self.path, kind, dtype).to(self.device).eval()
        ask = self._ask_florence if kind == "florence2" else self._ask

        def describe(picture: Tensor, seed: int) -> str:
            image = to_image(picture)
            with torch.inference_mode(), seeded(self.device, seed):
                return plain(ask(model, processor, image))

        try:
            yield describe
        finally:
            model = processor = None
            gc.collect()

    def _check_prompt(self, kind: str) -> None:
        if kind == "florence2" and self.own_prompt and self.prompt not in FLORENCE_TASKS:
            raise ValueError(f"Florence-2 cannot follow instructions, and the prompt is '{self.prompt}'. Leave it "
                             f"empty, or write one of its tasks: {', '.join(FLORENCE_TASKS)}.")

    def _ask_florence(self, model: Any, processor: Any, image: Image.Image) -> str:
        task = self.prompt if self.own_prompt else "<MORE_DETAILED_CAPTION>"
        inputs = processor(text=task, images=image, return_tensors="pt").to(self.device, model.dtype)
        found = model.generate(**inputs, max_new_tokens=self.max_length)
        text = processor.batch_decode(found, skip_special_tokens=False)[0].replace("<pad>", "")
        return processor.post_process_generation(text=text, task=task, image_size=image.size)[task]

    def _ask(self, model: Any, processor: Any, image: Image.Image) -> str:
        asked = self._question(processor, model.config.model_type)
        inputs = processor(images=[image], **({"text": [asked]} if asked else {}), return_tensors="pt")
        inputs = inputs.to(self.device, model.dtype)
        found = model.generate(**inputs, max_new_tokens=self.max_length)[0]
        given = inputs["input_ids"][0] if "input_ids" in inputs else found[:0]
        if torch.equal(found[:len(given)], given):  # most give the question back, some only the answer
            found = found[len(given):]
        return processor.decode(found, skip_special_tokens=True)

    def _question(self, processor: Any, kind: str) -> str:
        """Returns the prompt in the form of this model's chats, with its mark for the picture. Raises ValueError if the
        model has no chat template, or one without a place for a picture."""
        if kind in CAPTIONERS:
            return self.prompt if self.own_prompt else ""
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"'{self.path.name}' has no chat template, so nothing says how this model ({kind}) is "
                             "asked. Get its chat_template.json or chat_template.jinja from where you got the model.")
        mark = getattr(processor, "image_token", None)
        parts = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        for content in (parts, self.prompt):  # JoyCaption's template takes a plain text and adds the mark itself
            with contextlib.suppress(TypeError):
                chat = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False,
                                                     add_generation_prompt=True, enable_thinking=False)
                if self.prompt in chat and "{'type'" not in chat and (mark is None or mark in chat):
                    return chat
        raise ValueError(f"The chat template of '{self.path.name}' has no place for a picture. Choose a model that "
                         "can see.")


def model_type(path: Path) -> str:
    """Returns the kind of model that config.json names. Raises ValueError if the folder, the file or the weights are
    not there, or if the file is damaged or names no kind."""
    try:
        if not os.path.isdir(path):
            raise ValueError(f"There is no folder '{path}'. Give the folder of a vision-language model on this "
                             "machine; nothing is downloaded.")
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError as err:
        raise ValueError(f"'{path}' has no config.json. Give the folder that holds a model's config.json, its "
                         "safetensors and its tokenizer, as it is on the hub.") from err
    except (AttributeError, json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"config.json in '{path}' is damaged ({err}). Download it again.") from err
    if not isinstance(kind, str):
        raise ValueError(f"config.json in '{path}' has no model_type. Choose a folder in transformers' format.")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"'{path}' has no .safetensors file. Weights in other formats (.bin, .pt) can hold code and "
                         "are not read; get the model in safetensors.")
    return kind


def check_known(path: Path, kind: str) -> None:
    """Raises RuntimeError if transformers has no class of its own for this kind of model."""
    transformers = require("transformers")
    known = require("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    if kind in known and hasattr(transformers, "AutoModelForImageTextToText"):
        return
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    brings = " The model brings code of its own, which is never run." if "auto_map" in config else ""
    raise RuntimeError(f"transformers {transformers.__version__} has no class for '{path.name}' (model_type {kind})."
                       f"{brings} Update it (pip install -U transformers) and restart ComfyUI, or choose another "
                       "model.")


def load(path: Path, kind: str, dtype: torch.dtype) -> Any:
    """Returns the model on the CPU. Raises ValueError if some of its weights are missing or of another shape."""
    transformers = require("transformers")
    loader = transformers.AutoModelForImageTextToText
    if kind == "florence2":
        loader = transformers.Florence2ForConditionalGeneration
    model, found = loader.from_pretrained(path, use_safetensors=True, output_loading_info=True, torch_dtype=dtype,
                                          **LOCAL)  # transformers 5 calls it dtype, and knows the old name
    lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lacking:
        raise ValueError(f"'{path.name}' does not fit transformers' class for it: {len(lacking)} weights are missing "
                         f"or of another shape, such as {lacking[0]}. Get the version of the model that is made for "
                         "transformers' own class (for Florence-2, the one of florence-community).")
    return model
