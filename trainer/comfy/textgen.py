"""Captions pictures with a wired CLIP that can see, by ComfyUI's text generation, as its Generate Text node does."""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor

from ..captioning.clean import plain
from ..captioning.engine import Describe

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95, "min_p": 0.05,
            "repetition_penalty": 1.05, "presence_penalty": 0.0}
"""How answers are drawn: the defaults of ComfyUI's Generate Text."""
QUESTION = {"skip_template": False, "min_length": 1, "thinking": False}
"""How questions are made into tokens: the defaults of ComfyUI's Generate Text. Tokenizers ignore options that they
do not know, in every version since 0.20.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextModel:
    """Describes pictures with a text encoder that can see and answer, such as Qwen3-VL, Qwen3.5 or Gemma."""

    clip: comfy.sd.CLIP
    prompt: str
    max_length: int = 256
    """The longest answer, in tokens."""
    max_side: int = 512

    @property
    def name(self) -> str:
        return f"ComfyUI text model {type(self.clip.cond_stage_model).__name__}"

    @property
    def settings(self) -> tuple[str | float, ...]:
        return self.clip.patcher.model_size(), self.prompt, self.max_length

    @contextlib.contextmanager
    def opened(self) -> Iterator[Describe]:
        """Yields the function that describes pictures. The model is unloaded at the end. Raises ValueError for a text
        encoder that cannot see or cannot answer."""
        check_sees(self.clip)
        sampling = accepted(self.clip.generate, SAMPLING)

        def describe(picture: Tensor, seed: int) -> str:
            with torch.inference_mode():
                tokens = ask(self.clip, self.prompt, picture)
                answer = self.clip.generate(tokens, max_length=self.max_length, seed=seed, **sampling)
                return plain(self.clip.decode(answer))

        try:
            yield describe
        finally:
            unload(self.clip)


def accepted(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that a function takes in this version of ComfyUI, without those that it does not take."""
    known = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    return {name: value for name, value in options.items() if takes_all or name in known}


def ask(clip: comfy.sd.CLIP, prompt: str, picture: Tensor) -> Any:
    """Returns the tokens of a question about a picture (h, w, 3)."""
    image = picture[None]
    options = accepted(clip.tokenize, QUESTION)
    tokens = clip.tokenize(prompt, image=image, **options)
    if not _shows_picture(tokens):  # the tokenizer of Qwen-Image's Qwen2.5-VL takes only a list
        tokens = clip.tokenize(prompt, images=[image], **options)
    return tokens


def check_sees(clip: comfy.sd.CLIP) -> None:
    """Raises ValueError for a text encoder that cannot see or cannot answer. Generates nothing, loads nothing."""
    encoder = clip.cond_stage_model
    lacks = []
    if not any(hasattr(module, "generate") and hasattr(module, "logits") for module in encoder.modules()):
        lacks.append("write text")
    try:
        sees = _shows_picture(ask(clip, "What is this?", torch.zeros(64, 64, 3)))
    except (TypeError, ValueError):  # a tokenizer that takes no pictures at all
        sees = False
    if not sees:
        lacks.append("see pictures")
    if lacks:
        raise ValueError(f"clip: this text encoder ({type(encoder).__name__}) cannot {' and cannot '.join(lacks)}. "
                         "Load a vision-language one with Load CLIP, for example Qwen3-VL, Qwen3.5 or Gemma, and wire "
                         "it in here.")


def _shows_picture(tokens: Any) -> bool:
    """Returns whether a tokenizer has put a picture among the tokens."""
    if isinstance(tokens, dict):
        return tokens.get("type") == "image" or any(_shows_picture(part) for part in tokens.values())
    return isinstance(tokens, (list, tuple)) and any(_shows_picture(part) for part in tokens)


def unload(clip: comfy.sd.CLIP) -> None:
    """Takes a text encoder out of the GPU's memory. Other models stay."""
    others = [loaded for loaded in mm.current_loaded_models
              if loaded.model is None or not loaded.model.is_clone(clip.patcher)]
    mm.free_memory(1e30, clip.patcher.load_device, keep_loaded=others)


def device() -> torch.device:
    """Returns the device on which ComfyUI would put a model."""
    return mm.get_torch_device()


@contextlib.contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """Makes ComfyUI unload what is in the way of a model whose weights are in a folder. At the end, gives back the
    memory that this model took."""
    if device().type != "cpu":
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        mm.free_memory(1.3 * size + mm.minimum_inference_memory(), device())
    try:
        yield
    finally:
        gc.collect()
        mm.soft_empty_cache()
