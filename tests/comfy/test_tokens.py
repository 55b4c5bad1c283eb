"""Tokens are counted as transformers' own tokenizers count them on ComfyUI's vocabularies."""

from __future__ import annotations

from pathlib import Path

import comfy.text_encoders
import pytest
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.trainer.comfy.text import encode_text
from livelora.trainer.comfy.tokens import COUNTED, check_length, counter
from livelora.trainer.data.captions.brackets import escape
from livelora.trainer.data.report.caption_findings import has_weights
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


@given(piece=st.text("a 猫ß.é\n", min_size=1, max_size=40), times=st.integers(1, 2000))
@settings(max_examples=20)
def test_texts_of_more_than_four_times_the_tokens_are_refused(clip, expected, piece, times):
    text = (piece * times)[:COUNTED]
    if expected(text) <= 2048:
        check_length(clip, text)
    else:
        with pytest.raises(ValueError, match=f"A text of at least {expected(text)} tokens is far too long"):
            check_length(clip, text)


@pytest.mark.parametrize("text", ["x " * 4000, "x " * 500_000, "猫" * 300_000])
def test_a_text_that_is_far_too_long_costs_neither_memory_nor_time(clip, monkeypatch, text):
    """ComfyUI's tokenizer takes time, and T5 memory, that grows with the square of its length."""
    lengths, really = [], clip.tokenize
    monkeypatch.setattr(clip, "tokenize", lambda text, **options: lengths.append(len(text)) or really(text, **options))
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", None)
    with pytest.raises(ValueError, match="at most 2048 are encoded. Shorten it"):
        encode_text(clip, text)
    assert max(lengths) <= COUNTED


@given(st.sampled_from(["x ", "cat", "characteristics ", "\u200b", "猫 ", "line\n"]),
       st.integers(0, COUNTED), st.sampled_from(["red ", " 猫", "of"]), st.integers(0, 2 * COUNTED))
@settings(max_examples=20)
def test_a_long_text_is_counted_piece_by_piece(clip, expected, first, length, then, more):
    """Until it is known to be far too long. A word that is cut in two may have a token more or less."""
    text = (first * length)[:length] + " " + (then * more)[:more]
    count, most = counter(clip)
    assert min(count(text), 4 * most) == pytest.approx(min(expected(text), 4 * most), abs=2)


@given(st.sampled_from(["()", "characteristics ", "\u200b", "(a", "\\(", " "]), st.integers(1, 2 * COUNTED))
@settings(max_examples=20)
def test_nothing_before_a_long_text_hides_its_length(clip, before, length):
    with pytest.raises(ValueError, match="far too long|too many brackets"):
        check_length(clip, (before * length)[:length] + " x" * 2049)


def test_more_brackets_than_comfyui_can_read_are_refused(clip):
    with pytest.raises(ValueError, match="too many brackets inside each other"):
        encode_text(clip, "(" * 2000 + "cat" + ")" * 2000)


@given(st.text("(a):1\\\\ ", max_size=12))
def test_the_report_finds_the_captions_that_comfyui_reads_with_weights(caption):
    text = escape_important(caption)
    parts = token_weights(text, 1.0)
    assert has_weights(caption) == ("".join(part for part, _ in parts) != text)


@given(st.text("(a):1 ", max_size=12))
def test_words_of_a_captioner_are_read_without_weights_and_as_they_are(words):
    escaped = escape(words)
    assert not has_weights(escaped) and escape(escaped) == escaped
    assert "".join(unescape_important(part) for part, _ in token_weights(escape_important(escaped), 1.0)) == words
