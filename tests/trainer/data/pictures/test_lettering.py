"""Text in pictures fits, can be read, and shows where a font lacks a letter."""

from __future__ import annotations

import pytest
from livelora.trainer.data.pictures.lettering import font_for, readable, wrapped
from PIL import ImageFont

FONT = ImageFont.load_default(13)
LINES = 3


@pytest.mark.parametrize("text", ["word " * 60, "a" * 300, "猫" * 300, "two words", "x\ny\tz"])
def test_text_is_wrapped_into_its_width(text):
    lines = wrapped(text, FONT, 100, LINES)
    assert 0 < len(lines) <= LINES and all(FONT.getlength(line) <= 100 for line in lines)
    assert lines[-1].endswith("…") == (len(text) > 20)


def test_nothing_is_lost_between_lines():
    text = "the quick brown fox jumps over the lazy dog"
    assert " ".join(wrapped(text, FONT, 90, 9)) == text
    assert "".join(wrapped("abcdefghijklmnopqrstuvwxyz", FONT, 50, 9)) == "abcdefghijklmnopqrstuvwxyz"


def test_letters_that_the_font_lacks_are_seen_to_be_there():
    """pillow's own font has ASCII: accents go, and each other character is the box that it draws for what it lacks."""
    line = readable("Café 512×512 猫\u200d🎉", FONT)
    assert line.startswith("Cafe 512x512 ")
    assert len(line) == len("Cafe 512x512 ") + 2 and FONT.getmask(line[-1]).getbbox()


def test_a_font_of_the_system_is_taken_only_for_letters_that_have_no_similar_ones(system_font):
    assert font_for("512×512 – “Straße”", 13).getname() == FONT.getname() != font_for("я", 13).getname()
    assert readable("я é", font_for("я é", 13)) == "я é"
