"""Expected texts are written by hand."""

from __future__ import annotations

import pytest
from livelora.trainer.captioning import clean


@pytest.mark.parametrize(("answer", "caption"), [
    ("A cat on a sofa.", "A cat on a sofa."),
    ("<think>The user wants a caption.\nIt is a cat.</think>\n\nA cat on a sofa.", "A cat on a sofa."),
    ("I see a cat.\n</think>\nA cat on a sofa.", "A cat on a sofa."),
    ("<think>It is a cat, and it", ""),
    ("A cat on a sofa.<think>Is that", "A cat on a sofa."),
    ("Here is a caption: A cat.", "A cat."),
    ("Here's a detailed caption for the image:\n\nA cat.", "A cat."),
    ("Sure! Here is the description:\n\"A cat.\"", "A cat."),
    ("**Caption:** A cat.", "A cat."),
    ("Caption: “A cat.”", "A cat."),
    ("'A cat.'", "A cat."),
    ("\"Hello\" says the sign, \"Bye\"", "\"Hello\" says the sign, \"Bye\""),
    ("## A cat\n\n- on a *red* sofa\n- in `bright` light", "A cat on a red sofa in bright light"),
    ("```\nA cat.\n```", "A cat."),
    ("[A cat](https://example.org) sits.", "A cat sits."),
    ("A cat, ohwx_cat_2, 2*3*4.", "A cat, ohwx_cat_2, 2*3*4."),
    ("Here is a cat: it sleeps.", "Here is a cat: it sleeps."),
    ("A sign with the description: closed.", "A sign with the description: closed."),
])
def test_an_answer_becomes_one_plain_line(answer, caption):
    assert clean.plain(answer) == caption


@pytest.mark.parametrize(("text", "banned", "replaced", "edited"), [
    ("cat, watermark, sofa", ("watermark",), (), "cat, sofa"),
    ("cat, Watermark", ("watermark",), (), "cat"),
    ("a watermarked cat", ("watermark",), (), "a watermarked cat"),
    ("A blurry cat, with a low quality look.", ("blurry", "low quality"), (), "A cat, with a look."),
    ("A cat with a watermark.", ("with a watermark",), (), "A cat."),
    ("a man and the Man", (), (("a man", "ohwx man"), ("the man", "ohwx man")), "ohwx man and ohwx man"),
    ("cat,, dog", (), (), "cat,, dog"),
    ("c++, cat", ("c++",), (), "cat"),
    ("(a cat)", (), (("a cat", r"\1"),), r"(\1)"),
    (r"1girl, miku \(vocaloid\), solo", ("miku (vocaloid)",), (), "1girl, solo"),
    ("1girl, Miku (vocaloid), solo", (r"miku \(vocaloid\)",), (), "1girl, solo"),
    (r"a \(b\)", (), (("(b)", "c"),), "a c"),
])
def test_words_are_replaced_and_taken_out_whole(text, banned, replaced, edited):
    assert clean.edit(text, banned, replaced) == edited


def test_pairs_are_read_with_any_arrow():
    assert clean.replacements("a man → ohwx man\n\n woman  ->\tgirl \nugly => ") == (
        ("a man", "ohwx man"), ("woman", "girl"), ("ugly", ""))


@pytest.mark.parametrize("line", ["a man", "a → b → c", "→ b"])
def test_a_line_that_is_no_pair_is_named(line):
    with pytest.raises(ValueError, match=r"does not read like: old → new"):
        clean.replacements(line)


def test_half_a_character_is_told_in_whole_ones():
    with pytest.raises(ValueError, match=r"replace has half of a character in it.*'a\\ud83d'"):
        clean.replacements("a\ud83d")


def test_a_line_of_spaces_takes_no_time_and_is_shortened():
    with pytest.raises(ValueError) as caught:
        clean.replacements("a" + " " * 200_000 + "b")
    assert len(str(caught.value)) < 200


def test_words_are_read_between_commas_and_on_lines():
    assert clean.word_list("watermark, low  quality\nblurry,,") == ("watermark", "low quality", "blurry")


@pytest.mark.parametrize(("present", "new", "joined"), [
    ("A cat.", "It sleeps.", "A cat. It sleeps."), ("cat", "sofa", "cat, sofa"), ("cat,", "sofa", "cat, sofa"),
    ("", "sofa", "sofa"), ("cat", "", "cat"), ("cat, sofa", "sofa", "cat, sofa")])
def test_more_words_go_behind_a_caption_once(present, new, joined):
    assert clean.join(present, new) == joined
