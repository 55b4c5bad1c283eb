"""Captions edited in bulk come back as they were written, and nothing is taken from the wrong row."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from livelora.trainer.data import review
from livelora.trainer.data.captions import table
from livelora.trainer.data.item import Dataset, Item
from PIL import Image
from reading import read

HERE = ("a.png", "b.png", "1_x/a.png")


def data(folder: Path, *texts: str, trigger_word: str = "ohwx") -> Dataset:
    texts = texts or ("one", "two", "three")
    items = tuple(Item(folder / name, text or trigger_word, 1, (64, 64), (64, 64), name, has_caption=bool(text),
                       caption_file=(folder / name).with_suffix(".txt"))
                  for name, text in zip(HERE, texts, strict=True))
    return Dataset(folder, 64, trigger_word, items)


def captions(dataset: Dataset) -> list[str]:
    return [item.caption for item in dataset.items]


def written(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(path: Path, dataset: Dataset) -> str:
    with pytest.raises(ValueError) as caught:
        review.read_table(path, dataset)
    return str(caught.value)


caption = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(caption, min_size=3, max_size=3))
@example(texts=['=SUM(A1:A9), "quoted"; tab\t', "line one\nline two\n", " +1 🎉 \u2028 ünïcode; 'x' "])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_every_caption_comes_back_exactly(tmp_path, suffix, texts):
    path = tmp_path / f"captions{suffix}"
    review.write_table(path, data(tmp_path, *texts))
    taken = review.read_table(path, data(tmp_path, "x", "y", "z"))
    assert captions(taken.dataset) == texts and len(taken.accepted) == 3 and not taken.notes


def test_the_table_as_excel_saves_it(tmp_path):
    """Where the comma is the decimal point: semicolons; and as "Unicode text": UTF-16 with tabs."""
    semicolons = 'file_name;caption;accepted\r\na.png;"a; ""b""";YES\r\n'
    tabs = 'file_name\tcaption\taccepted\r\na.png\t"a; ""b"""\tTRUE\r\n'
    for name, encoding, text in (("semicolon.csv", "utf-8-sig", semicolons), ("unicode.csv", "utf-16", tabs)):
        (tmp_path / name).write_bytes(text.encode(encoding))
        taken = review.read_table(tmp_path / name, data(tmp_path))
        assert captions(taken.dataset) == ['a; "b"', "two", "three"] and taken.accepted == {tmp_path / "a.png"}


def test_equal_names_in_two_folders_are_two_rows(tmp_path):
    assert [*review.rows(data(tmp_path))] == [*HERE]
    path = written(tmp_path / "t.jsonl", {"file_name": "1_x/a.png", "caption": "other"})
    taken = review.read_table(path, data(tmp_path))
    assert captions(taken.dataset) == ["one", "two", "other"]


def test_the_text_is_csv(tmp_path):
    rows = review.rows(data(tmp_path, 'a "b", c', "line\nbreak", ""), frozenset({tmp_path / "b.png"}))
    assert [*csv.reader(io.StringIO(review.as_text(rows)))] == [
        ["file_name", "caption", "accepted"], ["a.png", 'a "b", c', "no"], ["b.png", "line\nbreak", "yes"],
        ["1_x/a.png", "", "no"]]


def test_what_was_there_is_kept_once(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("mine")
    for text in ("first", "second"):
        review.write_table(path, data(tmp_path, text, text, text))
    assert (tmp_path / "captions.csv.bak").read_text() == "mine"
    assert table.read(path)["a.png"]["caption"] == "second"


def test_a_table_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"The table '.*nowhere.captions\.csv' cannot be written .* Choose a folder"):
        review.write_table(tmp_path / "nowhere" / "captions.csv", data(tmp_path))


def test_rows_and_images_that_have_no_partner_are_named(tmp_path):
    path = written(tmp_path / "t.jsonl", {"file_name": "b.png", "caption": "new"},
                   {"file_name": "gone.png", "caption": "x"})
    taken = review.read_table(path, data(tmp_path))
    assert captions(taken.dataset) == ["one", "new", "three"]
    assert taken.notes[0].endswith("not in the dataset: gone.png") and "1 row of t.jsonl" in taken.notes[0]
    assert taken.notes[1].endswith("with captions as before: a.png, 1_x/a.png")


def test_tables_that_are_refused(tmp_path):
    dataset, path = data(tmp_path), tmp_path / "t.jsonl"
    assert "does not exist. Write one first" in refusal(path, dataset)
    assert "t.jsonl has 1 row, and none is for an image" in refusal(
        written(path, {"file_name": "x.png", "caption": "c"}), dataset)
    assert "t.jsonl has no caption for a.png" in refusal(written(path, {"file_name": "a.png", "text": "c"}), dataset)
    twice = ({"file_name": "a.png", "caption": "c"}, {"file_name": "a.png", "caption": "d"})
    assert "lines 1 and 2: both are for a.png" in refusal(written(path, *twice), dataset)
    maybe = {"file_name": "a.png", "caption": "c", "accepted": "maybe"}
    assert "neither yes nor no: a.png: 'maybe'" in refusal(written(path, maybe), dataset)


@pytest.mark.parametrize(("word", "kept"), [("yes", True), ("TRUE", True), ("1", True), (" Yes ", True), ("no", False),
                                            ("0", False), ("", False), ("False", False)])
def test_only_what_is_accepted_stays(tmp_path, word, kept):
    path = written(tmp_path / "t.jsonl", {"file_name": "a.png", "caption": "one", "accepted": word},
                   {"file_name": "b.png", "caption": "two", "accepted": "yes"})
    taken = review.read_table(path, data(tmp_path))
    result = review.only_accepted(taken.dataset, taken.accepted, path.name)
    assert captions(result) == ["one", "two"][not kept:]
    left_out = "1_x/a.png" if kept else "a.png, 1_x/a.png"  # an image without a row is not accepted
    assert result.skipped[0].endswith(f"t.jsonl does not accept: {left_out}")


def test_none_is_accepted(tmp_path):
    with pytest.raises(ValueError, match="t.csv accepts no image of 3. Write yes"):
        review.only_accepted(data(tmp_path), frozenset(), "t.csv")


def test_a_table_without_that_column_accepts_its_rows(tmp_path):
    path = written(tmp_path / "t.jsonl", {"file_name": "a.png", "caption": "one"})
    assert review.read_table(path, data(tmp_path)).accepted == {tmp_path / "a.png"}


def test_search_and_replace(tmp_path):
    dataset = data(tmp_path, "a.b a.b", "aXb", "A.B")
    assert captions(review.search_and_replace(dataset, "a.b", "$1", False)) == ["$1 $1", "aXb", "A.B"]
    assert captions(review.search_and_replace(dataset, r"(a)\Wb", r"\1-", True)) == ["a- a-", "aXb", "A.B"]
    assert captions(review.search_and_replace(dataset, r"(?i)a.b", "c", True)) == ["c c", "c", "c"]
    assert review.search_and_replace(dataset, "", "x", True) == dataset
    assert review.changes(dataset, review.search_and_replace(dataset, "X", "_", False)) == ["b.png: “aXb” → “a_b”"]


def test_the_stand_in_for_a_missing_caption_is_not_edited(tmp_path):
    edited = review.search_and_replace(data(tmp_path, "ohwx a", "", "b"), "ohwx", "new", False)
    assert captions(edited) == ["new a", "ohwx", "b"] and not edited.items[1].has_caption


def test_a_caption_that_becomes_empty_counts_as_missing(tmp_path):
    edited = review.search_and_replace(data(tmp_path), "two", "", False)
    assert edited.items[1].caption == "ohwx" and not edited.items[1].has_caption
    without_word = review.search_and_replace(data(tmp_path, trigger_word=""), "two", "", False)
    assert [item.path.name for item in without_word.uncaptioned] == ["b.png"]


@pytest.mark.parametrize(("find", "new", "told"), [
    ("(a", "", r"find is no regular expression: '\(a' \(missing \)"), ("[z-a]", "", "bad character range z-a"),
    ("t", r"\1", r"replace does not fit the regular expression 't'.*invalid group reference"),
    ("t", "\\", "replace does not fit .*bad escape")])
def test_expressions_that_are_none(tmp_path, find, new, told):
    with pytest.raises(ValueError, match=told):
        review.search_and_replace(data(tmp_path), find, new, True)


def test_encoded_captions_cannot_be_edited(tmp_path):
    dataset = data(tmp_path)
    dataset = replace(dataset, items=(replace(dataset.items[0], text=tmp_path / "t"), *dataset.items[1:]))
    assert captions(review.search_and_replace(dataset, "two", "2", False)) == ["one", "2", "three"]
    with pytest.raises(ValueError, match="encoded already cannot be edited, 1 caption: "):
        review.search_and_replace(dataset, "one", "1", False)


def test_an_image_with_two_captions_keeps_them_unless_its_row_was_changed(tmp_path):
    first = data(tmp_path)
    both = replace(first, items=(*first.items, replace(first.items[0], caption="another", num_repeats=2)))
    path = tmp_path / "t.csv"
    review.write_table(path, both)
    assert captions(review.read_table(path, both).dataset) == captions(both)
    written(tmp_path / "t.jsonl", {"file_name": "a.png", "caption": "new"})
    assert captions(review.read_table(tmp_path / "t.jsonl", both).dataset) == ["new", "two", "three", "new"]


def test_only_captions_that_differ_are_written(tmp_path):
    (tmp_path / "1_x").mkdir()
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("old\n")
    assert review.write_captions(data(tmp_path)) == 2
    assert (tmp_path / "b.txt").read_text() == "two\n" and (tmp_path / "b.txt.bak").read_text() == "old\n"
    assert (tmp_path / "1_x" / "a.txt").read_text() == "three\n" and not (tmp_path / "a.txt.bak").exists()
    assert review.write_captions(data(tmp_path)) == 0


def test_a_row_is_for_the_image_however_its_name_is_written(tmp_path):
    taken = review.read_table(written(tmp_path / "t.jsonl", {"file_name": "A.PNG", "caption": "new"},
                                      {"file_name": "1_X/a.png", "caption": "other"}), data(tmp_path))
    assert captions(taken.dataset) == ["new", "two", "other"] and len(taken.notes) == 1
    for name in (r"1_x\a.png", " 1_x/a.png ", "\u202a1_x/a.png"):
        row = {"file_name": name, "caption": "new", "accepted": 1.0}
        taken = review.read_table(written(tmp_path / "t.jsonl", row), data(tmp_path))
        assert captions(taken.dataset) == ["one", "two", "new"] and len(taken.accepted) == 1
    assert "has two rows for a.png: A.png, a.PNG. Take one" in refusal(written(
        tmp_path / "t.jsonl", {"file_name": "A.png", "caption": "x"}, {"file_name": "a.PNG", "caption": "y"}),
        data(tmp_path))


def test_half_a_character_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"The caption for a\.png has half of a character in it"):
        review.search_and_replace(data(tmp_path), "one", "\udc00", False)


TOML = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'cats'\nclass_tokens = 'x'\n"


@pytest.mark.parametrize(("source", "files", "written"), [
    ("cats", {"cats/a.caption": "x"}, "a.caption"), ("cats", {"cats/A.TXT": "x"}, "A.TXT"),
    ("c.toml", {"c.toml": TOML + "caption_extension = '.cap'", "cats/a.cap": "x"}, "a.cap"),
    ("c.toml", {"c.toml": TOML + "caption_extension = '.cap'"}, "a.cap"),
    ("c.yaml", {"c.yaml": "folder_path: cats\ncaption_ext: cap", "cats/a.cap": "x"}, "a.cap"),
    ("c.yaml", {"c.yaml": "folder_path: cats\ncaption_ext: json", "cats/a.json": '{"caption": "x"}'}, ""),
    ("c.toml", {"c.toml": TOML + "metadata_file = 'm.json'", "m.json": '{"a.png": {"caption": "x"}}'}, ""),
    ("cats", {"cats/metadata.jsonl": '{"file_name": "a.png", "text": "x"}', "cats/a.txt": "y"}, "")])
def test_what_is_written_is_read_again_or_refused(tmp_path, source, files, written):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "cats").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "cats" / "a.png")
    edited = review.search_and_replace(read(tmp_path / source), "x", "NEW", False)
    assert captions(edited) == ["NEW"]
    if not written:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match="cannot be written to text files, 1 caption: a.png. Turn"):
            review.write_captions(edited)
        assert sorted(tmp_path.rglob("*")) == before
        return
    assert review.write_captions(edited) == 1 and (tmp_path / "cats" / written).read_text() == "NEW\n"
    assert captions(read(tmp_path / source)) == ["NEW"]
