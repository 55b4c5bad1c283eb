"""ComfyUI's own text generation, with a tiny text encoder that can see and has random weights."""

from __future__ import annotations

import comfy.model_management as mm
import pytest
import torch
from comfy_extras.nodes_textgen import TextGenerate
from livelora.trainer.captioning.clean import plain
from livelora.trainer.comfy.textgen import TextModel, accepted, check_sees
from seer import make_clip


@pytest.fixture(scope="module")
def seer():
    return make_clip()


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(seed))


def words(clip, prompt: str = "Describe it.", seed: int = 0, look: int = 0) -> str:
    with TextModel(clip=clip, prompt=prompt, max_length=12).opened() as ask:
        return ask(picture(look), seed)


def is_loaded(clip) -> bool:
    return any(loaded.model is not None and loaded.model.is_clone(clip.patcher) for loaded in mm.current_loaded_models)


def test_it_says_what_generate_text_says(seer):
    """The node of ComfyUI itself, with the defaults of its widgets."""
    sampling = {"sampling_mode": "on", "temperature": 0.7, "top_k": 64, "top_p": 0.95, "min_p": 0.05,
                "repetition_penalty": 1.05, "seed": 7}
    with torch.inference_mode():
        made = TextGenerate.execute(seer, "Describe it.", 12, sampling, image=picture()[None])
    assert words(seer, seed=7) == plain(made.args[0])
    assert made.args[0].strip()


def test_the_picture_the_prompt_and_the_seed_decide_the_words(seer):
    first = words(seer, seed=3)
    assert words(seer, seed=3) == first
    assert first not in (words(seer, seed=4), words(seer, seed=3, look=1), words(seer, "What else?", seed=3))


def test_it_is_unloaded_afterwards(seer):
    with TextModel(clip=seer, prompt="Describe it.", max_length=2).opened() as ask:
        ask(picture(), 0)
        assert is_loaded(seer)
    assert not is_loaded(seer)


def test_it_is_unloaded_and_nothing_else(seer, clip):
    clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))
    assert is_loaded(clip)
    words(seer)
    assert is_loaded(clip)


def test_it_is_unloaded_if_it_fails(seer):
    with pytest.raises(ZeroDivisionError), TextModel(clip=seer, prompt="?", max_length=2).opened() as ask:
        ask(picture(), 0)
        raise ZeroDivisionError
    assert not is_loaded(seer)


def test_text_encoders_that_cannot_see_are_refused_before_anything_is_loaded(clip):
    """FLUX.1's own."""
    mm.unload_all_models()
    with pytest.raises(ValueError, match=r"clip: this text encoder \(FluxClipModel_?\) cannot write text and cannot "
                                         "see pictures. Load a vision-language one"):
        words(clip)
    assert not mm.current_loaded_models


def test_a_text_encoder_that_can_see_is_known_without_generating(seer):
    mm.unload_all_models()
    check_sees(seer)
    assert not mm.current_loaded_models


def test_options_that_a_version_does_not_know_are_left_out():
    assert accepted(lambda tokens, seed=0: None, {"seed": 1, "presence_penalty": 0.0}) == {"seed": 1}
    assert accepted(lambda text, **more: None, {"thinking": False}) == {"thinking": False}
