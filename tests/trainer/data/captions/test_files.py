"""Captions by template, written without losing what was there."""

from __future__ import annotations

import itertools
import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.data.captions import brackets
from livelora.trainer.data.captions import files as captions
from livelora.trainer.data.report.caption_findings import has_weights

WORDS = st.text(alphabet="abc xyz", min_size=0, max_size=12).map(lambda s: " ".join(s.split()))


def read(image, *extensions):
    return captions.read(captions.CaptionFiles(*extensions).of(image))


def write(image, caption, *extensions):
    captions.write(captions.CaptionFiles(*extensions).of(image), caption)


@pytest.mark.parametrize(("template", "trigger", "caption", "expected"), [
    ("{trigger}, {caption}", "ohwx", "a cat", "ohwx, a cat"),
    ("{trigger}, {caption}", "ohwx", "ohwx, a cat", "ohwx, a cat"),
    ("{trigger}, {caption}", "ohwx", "ohwx", "ohwx"),
    ("{trigger}, {caption}", "", "a cat", "a cat"),
    ("{trigger}, {caption}", "ohwx", "ohwxperson on a beach", "ohwx, ohwxperson on a beach"),
    ("photo of {trigger}, {caption}, on white", "ohwx", "", "photo of ohwx, on white"),
    ("{name}", "ohwx", "", r"red apple \(3\)"),
    ("{trigger}, {caption}", "miku (vocaloid)", r"miku \(vocaloid\), 1girl", r"miku \(vocaloid\), 1girl"),
    ("{caption} in the style of {trigger}", "ohwx", "a  cat", "a cat in the style of ohwx"),
])
def test_templates(template, trigger, caption, expected):
    assert captions.apply_template(template, trigger=trigger, caption=caption, name="red-apple_(3)") == expected


@given(WORDS, st.sampled_from(["ohwx", "miku (vocaloid)", r"miku \(vocaloid\)", "(a:1.2)"]))
def test_applying_twice_is_applying_once_and_gives_no_weights(caption, trigger):
    once = captions.apply_template("{trigger}, {caption}", trigger=trigger, caption=caption, name="n")
    assert not has_weights(once) and brackets.bare(once).startswith(brackets.bare(trigger))
    assert captions.apply_template("{trigger}, {caption}", trigger=trigger, caption=once, name="n") == once


@pytest.mark.parametrize(("template", "message"), [
    ("{triger}, {caption}", "unknown placeholders: {triger}. Known are {trigger}, {caption}, {name}."),
    ("  ", "The template is empty."),
    ("{a\ud83d}", "The template has half of a character in it"),
])
def test_bad_templates_are_refused(template, message):
    with pytest.raises(ValueError) as caught:
        captions.check_template(template)
    assert message in str(caught.value) and str(caught.value).encode()


def test_writing_keeps_the_first_version(tmp_path):
    image, caption = tmp_path / "a.png", tmp_path / "a.txt"
    caption.write_text("mine")
    write(image, "first edit")
    write(image, "second edit")
    assert read(image) == "second edit"
    assert (tmp_path / "a.txt.bak").read_text() == "mine"
    write(tmp_path / "new.png", "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "a.txt.bak", "new.txt"]


def test_a_caption_file_is_written_where_it_was_read(tmp_path):
    image = tmp_path / "a.b.png"
    (tmp_path / "a.b.caption").write_text("mine")
    write(image, "edited")
    assert (tmp_path / "a.b.caption").read_text() == "edited\n" and read(image) == "edited"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.b.caption", "a.b.caption.bak"]
    write(image, "tags", ".tags")
    assert read(image, ".tags") == "tags" and read(image) == "edited"


WRITINGS = [lambda text, form=form, case=case: case(unicodedata.normalize(form, text))
            for form in ("NFC", "NFD") for case in (str, str.upper, str.lower)]
"""The same name as systems and people write it."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.sampled_from(["a", "Photo 1", "José", "Ångström.v2", "카페"]),
       st.sampled_from([".png", ".JPG", ".jpg_large"]), st.sampled_from(WRITINGS), st.sampled_from(WRITINGS),
       st.booleans(), st.sampled_from([".txt", ".caption"]))
def test_a_caption_is_found_however_its_name_is_written(tmp_path, stem, suffix, one, other, whole, extension):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    image, name = one(stem) + suffix, other((stem + suffix if whole else stem) + extension)
    (folder / image).touch()
    (folder / name).write_text("found")
    assert read(folder / image) == "found"
    write(folder / image, "edited")
    assert (folder / name).read_text() == "edited\n" and len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(("files", "found"), [
    (["a.png", "A.txt", "a.txt"], "a.txt"), (["a.png", "a.png.txt", "a.txt"], "a.txt"),
    (["a.png", "A.TXT", "a.caption"], "a.caption"), (["a.png", "A.png", "A.txt"], "a.txt"),
    (["a.png", "A.jpg", "A.txt"], "a.txt"), (["a.png", "a.png.download", "a.png.txt"], "a.png.txt"),
    (["a.png.download", "a.txt"], "a.txt"), (["a.png", "ab.txt", "a.txt.bak"], "a.txt")])
def test_an_exact_name_goes_first_and_nobody_takes_anothers(tmp_path, files, found):
    """A name that is not among the files is the one that would be written."""
    for name in files:
        (tmp_path / name).touch()
    assert captions.CaptionFiles().of(tmp_path / files[0]).name == found


def test_two_captions_that_could_both_be_meant_are_told(tmp_path):
    for name in ("a.png", "A.txt", "a.TXT"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"There is no a\.txt, but A\.txt, a\.TXT, and nothing says which"):
        read(tmp_path / "a.png")


def test_half_a_character_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"The caption for a\.txt has half of a character in it.*'ohwx\\ud83d'"):
        write(tmp_path / "a.png", "ohwx\ud83d")
    assert not list(tmp_path.iterdir())


def test_a_txt_file_goes_before_a_caption_file(tmp_path):
    image = tmp_path / "a.png"
    assert read(image) is None
    (tmp_path / "a.caption").write_text("second")
    assert read(image) == "second" and read(image, "txt") is None
    (tmp_path / "a.txt").write_text("")
    assert read(image) == "" and read(image, ".caption") == "second"


@pytest.mark.parametrize("content", [
    "é\n猫 🐈".encode(), b"\xef\xbb\xbf" + "é\n猫 🐈".encode(), "é\r\n猫 🐈\r\n".encode(), "é\r猫 🐈".encode(),
    b"\xff\xfe" + "é\n猫 🐈".encode("utf-16-le"), b"\xfe\xff" + "é\r\n猫 🐈".encode("utf-16-be"),
    b"\xff\xfe\0\0" + "é\n猫 🐈".encode("utf-32-le")])
def test_encodings_and_line_ends_of_all_systems_read_alike(tmp_path, content):
    """Byte order marks as in the Unicode Standard, section 23.8."""
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path / "a.png") == "é\n猫 🐈"


@pytest.mark.parametrize(("content", "told"), [
    (b"caf\xe9", "a.txt is not UTF-8 text (byte 3 is 0xe9)"),
    ("cat".encode("utf-16-le"), "a.txt is not UTF-8 text (character 1 is a zero)"),
    (b"\xff\xfe\x00", "a.txt is not UTF-16 text"),
    (b"\xff\xfe" + b"\x00\xd8", "a.txt is not UTF-16 text"),
    (b"\x89PNG\r\n\x1a\n", "a.txt is not UTF-8 text (byte 0 is 0x89)"),
    (b"a" * (2**20 + 1), "a.txt has 1.0 MB"),
])
def test_a_file_that_is_no_text_is_named(tmp_path, content, told):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "a.png")
    assert told in str(caught.value)


def test_a_folder_a_pipe_or_a_link_to_nowhere_is_no_caption(tmp_path):
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "b.txt").symlink_to("b.txt")
    (tmp_path / "c.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d.txt")
    for name in "abcd":
        with pytest.raises(ValueError, match=rf"^{name}\.txt "):
            read(tmp_path / f"{name}.png")


def test_a_name_too_long_for_a_caption_file_has_none(tmp_path):
    assert read(tmp_path / ("n" * 251 + ".png"), "caption") is None


def test_one_line_has_single_spaces():
    assert captions.one_line("  a cat,\r\n\n on\ta\u00a0mat ") == "a cat, on a mat"


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("shuffle", "keep", "caption", "expected"), [
    ("none", 0, "ohwx, a, b", {"ohwx, a, b"}),
    ("tags", 1, "ohwx, a, b", {"ohwx, a, b", "ohwx, b, a"}),
    ("tags", 0, "a,b", {"a,b", "b, a"}),
    ("tags", 0, "a,, b,", {"a,, b,", "b, a"}),
    ("tags", 0, "a, a", {"a, a"}),
    ("tags", 2, "ohwx, a", {"ohwx, a"}),
    ("tags", 5, "ohwx, a", {"ohwx, a"}),
    ("tags", 0, "", {""}),
    ("sentences", 0, "", {""}),
    ("sentences", 0, "A cat, asleep", {"A cat, asleep"}),
    ("sentences", 0, "A cat. Is it 3.5 m long?", {"A cat. Is it 3.5 m long?", "Is it 3.5 m long? A cat."}),
    ("sentences", 0, "Look! A cat", {"Look! A cat", "A cat. Look!"}),
    ("sentences", 1, "An ohwx. It sits... A mat.", {"An ohwx. It sits... A mat.", "An ohwx. A mat. It sits..."}),
])
def test_a_caption_has_exactly_these_variants(shuffle, keep, caption, expected):
    """Written out by hand; eight are asked for, which is more than there are."""
    found = captions.variants(caption, shuffle, keep, 8, draw())
    assert found[0] == caption and len(found) == len(expected) and set(found) == expected


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 2**63 - 1))
def test_variants_are_different_orders_of_the_same_tags(count, keep, seed):
    tags = ["ohwx", "cat", "mat", "sun", "sea"]
    every = {", ".join([*tags[:keep], *rest]) for rest in itertools.permutations(tags[keep:])}
    found = captions.variants(", ".join(tags), "tags", keep, count, draw(seed))
    assert set(found) <= every and len(set(found)) == len(found) == min(count, len(every))


def test_variants_depend_on_the_seed_alone():
    caption = ", ".join("abcdefgh")
    one, again, other = (captions.variants(caption, "tags", 1, 8, draw(seed)) for seed in (1, 1, 2))
    assert one == again and one != other


def test_every_order_is_as_likely_as_another():
    """3! orders of three tags, of which the caption itself always comes first: each other one in a fifth of the draws.
    1000 draws of p = 1/5 have a standard deviation of √(1000 · 0.2 · 0.8) = 12.6; 63 is five of them."""
    seen = [captions.variants("a, b, c", "tags", 0, 2, draw(seed))[1] for seed in range(1000)]
    counts = [seen.count(order) for order in ("a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a")]
    assert sum(counts) == 1000 and all(abs(count - 200) < 63 for count in counts)


@pytest.mark.parametrize(("caption", "trigger", "expected"), [
    ("photo of ohwx on a beach", "ohwx", "photo of woman on a beach"),
    ("Ohwx, and OHWX's dog", "ohwx", "woman, and woman's dog"),
    ("ohwxes and an ohwx_cat, no-ohwx", "ohwx", "ohwxes and an ohwx_cat, no-woman"),
    ("a [v] thing", "[v]", "a woman thing"),
    ("a cat", "ohwx", "a cat"),
    ("a cat", "", "a cat"),
    (r"miku \(vocaloid\), solo", "miku (vocaloid)", "woman, solo"),
    (r"miku (vocaloid), \(vocaloid\)", r"miku \(vocaloid\)", r"woman, \(vocaloid\)"),
])
def test_the_trigger_word_gives_way_to_its_class(caption, trigger, expected):
    assert captions.with_class(caption, trigger, "woman") == expected


def test_a_class_word_is_taken_as_it_is_written():
    assert captions.with_class("a ohwx", "ohwx", r"\1 \g<0>") == r"a \1 \g<0>"
