"""Captions by template, written without losing what was there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livelora.trainer.data import captions

WORDS = st.text(alphabet="abc xyz", min_size=0, max_size=12).map(lambda s: " ".join(s.split()))


@pytest.mark.parametrize(("template", "trigger", "caption", "expected"), [
    ("{trigger}, {caption}", "ohwx", "a cat", "ohwx, a cat"),
    ("{trigger}, {caption}", "ohwx", "ohwx, a cat", "ohwx, a cat"),
    ("{trigger}, {caption}", "ohwx", "ohwx", "ohwx"),
    ("{trigger}, {caption}", "", "a cat", "a cat"),
    ("{trigger}, {caption}", "ohwx", "ohwxperson on a beach", "ohwx, ohwxperson on a beach"),
    ("photo of {trigger}, {caption}, on white", "ohwx", "", "photo of ohwx, on white"),
    ("{name}", "ohwx", "", "red apple 3"),
    ("{caption} in the style of {trigger}", "ohwx", "a  cat", "a cat in the style of ohwx"),
])
def test_templates(template, trigger, caption, expected):
    assert captions.apply_template(template, trigger=trigger, caption=caption, name="red-apple_3") == expected


@given(WORDS, st.sampled_from(["ohwx", "sks"]))
def test_applying_twice_is_applying_once(caption, trigger):
    once = captions.apply_template("{trigger}, {caption}", trigger=trigger, caption=caption, name="n")
    assert captions.apply_template("{trigger}, {caption}", trigger=trigger, caption=once, name="n") == once


@pytest.mark.parametrize(("template", "message"), [
    ("{triger}, {caption}", "unknown placeholders: {triger}. Known are {trigger}, {caption}, {name}."),
    ("  ", "The template is empty."),
])
def test_bad_templates_are_refused(template, message):
    with pytest.raises(ValueError) as caught:
        captions.check_template(template)
    assert message in str(caught.value)


def test_writing_keeps_the_first_version(tmp_path):
    image, caption = tmp_path / "a.png", tmp_path / "a.txt"
    caption.write_text("mine")
    captions.write(image, "first edit")
    captions.write(image, "second edit")
    assert captions.read(image) == "second edit"
    assert (tmp_path / "a.txt.bak").read_text() == "mine"
    captions.write(tmp_path / "new.png", "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "a.txt.bak", "new.txt"]
