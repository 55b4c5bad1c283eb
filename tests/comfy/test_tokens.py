"""Tokens are counted as transformers' own tokenizers count them on ComfyUI's vocabularies."""

from __future__ import annotations

from pathlib import Path

import comfy.text_encoders
import pytest
from livelora.trainer.comfy.tokens import counter
from transformers import CLIPTokenizer, T5TokenizerFast

VOCABULARIES = Path(comfy.text_encoders.__path__[0])
CAPTIONS = ["", "cat", "a photo of ohwx_person, smiling", "Straßenbahn, naïve café", "one two three four five " * 40,
            "red " * 76, "supercalifragilisticexpialidocious " * 20, "line one\nline two", "100% 3.14 #hash"]


@pytest.fixture(scope="module")
def expected():
    clip_l = CLIPTokenizer.from_pretrained(VOCABULARIES.parent / "sd1_tokenizer")
    t5 = T5TokenizerFast.from_pretrained(VOCABULARIES / "t5_tokenizer")
    return lambda text: max(len(t(text, add_special_tokens=False)["input_ids"]) for t in (clip_l, t5))


@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_longer_of_clip_l_and_t5_counts(clip, expected, caption):
    count, most = counter(clip)
    assert (count(caption), most) == (expected(caption), 512)


def test_known_lengths(clip):
    """By hand: `cat` is a word of both vocabularies; T5's </s> and CLIP's start and end do not count."""
    count, _ = counter(clip)
    assert (count(""), count("cat"), count("cat cat cat")) == (0, 1, 3)


def test_weights_do_not_count(clip):
    count, _ = counter(clip)
    assert count("(cat:1.3)") == 1
