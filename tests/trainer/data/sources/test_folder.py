"""Which files of a folder are images, and with which captions."""

from __future__ import annotations

import json
import os
import sys

import pytest
from livelora.trainer.data.sources.folder import find, find_named


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    return place


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(folder):
    images, said = find(folder)
    return [(i.path.relative_to(folder).as_posix(), i.caption, i.num_repeats) for i in images], "\n".join(said)


def refusal(folder) -> str:
    with pytest.raises(ValueError) as caught:
        find(folder)
    return str(caught.value)


def test_suffixes_and_mask_folders_in_any_case(folder):
    touch(folder, "a.PNG", "b.JpEg", "c.gif", "d.txt", "Masks/a.png", "MASK/b.png", "._a.png", "e.png.bak")
    images, said = find(folder)
    assert [i.path.name for i in images] == ["a.PNG", "b.JpEg", "c.gif"]
    assert said == ["1 caption file not read, because no image has that name or another file goes before: d.txt."]
    assert [i.masks for i in images] == [(folder / "Masks" / "a.png",), (folder / "MASK" / "b.png",), ()]


def test_two_images_with_one_caption_file_are_told(folder):
    touch(folder, "cat.png", "cat.jpg", "dog.png", "cat.txt")
    names, said = found(folder)
    assert len(names) == 3 and said.startswith("2 images that share a caption file") and "cat.jpg, cat.png" in said


@pytest.mark.skipif(sys.platform != "linux", reason="other disks take no such names, or no links")
def test_names_and_links_that_no_one_can_use_are_left_out_and_told(folder):
    touch(folder, "a.png", "🐈.png", "dots...png", " lead.png", "..two.png", "n" * 251 + ".png")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    (folder / os.fsdecode(b"5_\xe9")).mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "10_loop").symlink_to("10_loop")
    (folder / "folder.png").mkdir()
    names, said = found(folder)
    assert [name for name, *_ in names] == [" lead.png", "a.png", "dots...png", "n" * 251 + ".png", "🐈.png"]
    assert "1 picture in 'data' left out for a name that is not UTF-8: caf\\udce9.png" in said
    assert "1 picture in 'data' left out for a name that begins with a dot: ..two.png" in said
    assert "2 pictures in 'data' left out for being a link that leads nowhere: gone.png, loop.png" in said
    assert "folder '5_\\udce9': its name is not UTF-8" in said
    said.encode()  # nothing in it that a report could not be written with


@pytest.mark.skipif(sys.platform != "linux", reason="other disks take no such names")
def test_a_folder_whose_name_is_no_text_is_refused(folder):
    place = folder / os.fsdecode(b"caf\xe9")
    touch(place, "a.png")
    assert "is not UTF-8. Rename it." in refusal(place)
    refusal(place).encode()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "loop"])
def test_what_is_no_folder_is_refused(folder, name):
    (folder / "loop").symlink_to("loop")
    assert "does not exist. Choose a folder" in refusal(folder / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(folder):
    touch(folder, "a.png", "10_x/b.png")
    (folder / "10_x").chmod(0)
    try:
        assert "10_x' cannot be read (Permission denied)" in refusal(folder)
    finally:
        (folder / "10_x").chmod(0o700)


def test_a_table_gives_captions(folder):
    touch(folder, "a.png", "b.png", "c.png", "train/d.png", "train/e.png", "10_x/f.png", "0_off/g.png")
    (folder / "a.txt").write_text("from a file")
    (folder / "b.txt").write_text("the\nsame")
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "from the table"}\n{"file_name": "./b.png", "text": "the same"}\n'
        '{"file_name": "train\\\\d.png", "text": "in a subfolder"}\n{"file_name": "10_x/f.png", "text": "repeated"}\n'
        '{"file_name": "0_off/g.png", "text": "off"}\n{"file_name": "gone.png", "text": "gone"}')
    names, said = found(folder)
    assert names == [("a.png", "from the table", 1), ("b.png", "the same", 1), ("c.png", None, 1),
                     ("10_x/f.png", "repeated", 10), ("train/d.png", "in a subfolder", 1)]
    assert said.split("\n") == [
        "1 file named by 'metadata.jsonl' and not there: gone.png.",
        "folder '0_off': its pictures are left out, because its name says 0 times.",
        "1 image with another caption in a text file than in the table; the table's is used: a.png. Take the "
        "table away to use the text files.",
        "1 image with no caption in the table, captioned by a text file: c.png.",
        "1 file named by the table that cannot be trained on: g.png.",
        "1 picture in 'train' left out, which the table does not name: e.png."]


@pytest.mark.parametrize(("header", "caption"), [
    ("file_name,text", "x"), ("file_name,caption", "x"), ("file_name,prompt", "x"), ("file_name,caption,text", "y")])
def test_the_columns_of_a_caption(folder, header, caption):
    touch(folder, "a.png")
    (folder / "metadata.csv").write_text(f"{header}\na.png,x{',y' * (header.count(',') - 1)}\n")
    assert found(folder)[0] == [("a.png", caption, 1)]


def test_each_folder_can_have_a_table_and_the_first_of_two_counts(folder):
    touch(folder, "5_x/a.png", "b.png")
    (folder / "5_x" / "metadata.csv").write_text("file_name,text\na.png,one\n")
    (folder / "5_x" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "two"}')
    names, said = found(folder)
    assert names == [("b.png", None, 1), ("5_x/a.png", "two", 5)]
    assert said == "'metadata.csv' in '5_x' is not read, because 'metadata.jsonl' is there too."


def test_what_belongs_to_no_picture_and_folders_in_folders_are_told(folder):
    touch(folder, "a.png", "a.txt", "a.caption", "b.png", "B.TXT", "old.txt", "._a.txt", "10_x/c.png", "10_x/d.txt",
          "10_x/deep/e.png", "10_x/mask/c.png")
    assert found(folder)[1].split("\n") == [
        "folder '10_x/deep': subfolders of '10_x' are not read.",
        "3 caption files not read, because no image has that name or another file goes before: a.caption, "
        "old.txt, d.txt."]


def test_a_table_that_names_some_pictures_keeps_their_masks_and_weights(folder):
    touch(folder, "a.png", "b.png", "a_mask.png")
    (folder / "weights.json").write_text('{"a.png": 2, "b.png": 3}')
    (folder / "some.csv").write_text("file_name,text\nA.PNG,one\n")
    (image,), said = find_named(folder / "some.csv")
    assert (image.path.name, image.weight, image.masks) == ("a.png", 2, (folder / "a_mask.png",))
    assert said == ["1 picture in 'data' left out, which the table does not name: b.png."]


@pytest.mark.parametrize(("row", "expected"), [
    ('{"file_name": "a.png", "text": "", "prompt": "x"}', "x"), ('{"file_name": "a.png", "prompt": "x"}', "x"),
    ('{"file_name": "a.png", "text": null, "caption": " x "}', "x"),
    ('{"file_name": "a.png", "text": "y", "caption": "x"}', "y")])
def test_a_column_that_is_empty_gives_way_to_a_full_one(folder, row, expected):
    touch(folder, "a.png", "b.png")
    (folder / "metadata.jsonl").write_text(row + '\n{"file_name": "b.png", "text": ""}')
    assert found(folder)[0] == [("a.png", expected, 1), ("b.png", None, 1)]


def test_a_list_for_sd_scripts_beside_the_images_is_told(folder):
    touch(folder, "a.png")
    (folder / "metadata.json").write_text('{"a": {"caption": "x"}}')
    assert found(folder)[1].startswith("'metadata.json' in 'data' is not read. If it is a list for sd-scripts, choose")


def test_captions_tables_and_folders_that_are_not_read_are_told(folder):
    touch(folder, "10_c/a.png", "10_c/a.txt", "b.txt", "10_c/captions.CSV", "metadata.tsv", "10_c/metadata.parquet",
          "0_off/c.png")
    assert found(folder)[1].split("\n") == [
        "1 table in 'data' not read: metadata.tsv. Save one as metadata.csv if it holds the captions.",
        "2 tables in '10_c' not read: captions.CSV, metadata.parquet. Save one as metadata.csv if it holds the "
        "captions.",
        "folder '0_off': its pictures are left out, because its name says 0 times.",
        "1 caption file not read, because no image has that name or another file goes before: b.txt."]


def test_a_letter_with_an_accent_is_found_however_it_is_written(folder):
    """U+00E9 is e with U+0301, Unicode Standard Annex #15; macOS and others differ in which they write."""
    touch(folder, "cafe\u0301.png", "na\u00efve.png", "Sub/B.PNG")
    rows = "\u202acaf\u00e9.png,one\nNAI\u0308ve.png,two\nsub\\b.png,three\n"
    (folder / "Metadata.CSV").write_text("file_name,text\n" + rows, encoding="utf-8")
    assert [caption for _, caption, _ in found(folder)[0]] == ["one", "two", "three"]


def test_case_does_not_matter_in_an_absolute_name_where_the_system_says_so(folder, monkeypatch):
    touch(folder, "a.png")
    name = str(folder / "a.png").replace(str(folder.parent), str(folder.parent).upper())
    (folder / "metadata.csv").write_text(f"file_name,text\n{name},one\n")
    assert "names files outside its folder" in refusal(folder)
    monkeypatch.setattr(os.path, "normcase", str.lower)  # as Windows has it, where both are one folder
    assert "names files outside" not in refusal(folder)


@pytest.mark.parametrize(("rows", "told"), [
    ("file_name,text\n../b.png,x\n", "names files outside its folder: ../b.png"),
    ("file_name,text\n/etc/passwd,x\n", "names files outside its folder: /etc/passwd"),
    ("file_name,text\nsub/../../b.png,x\n", "names files outside its folder"),
    ("file_name,text\n..\\b.png,x\n", "names files outside its folder"),
    ("file_name,tags\na.png,x\n",
     "has no column with captions (only file_name, tags). Put them in a column called text."),
    ("file_name,text\nb.png,x\n", "names 1 file, and none is"),
    ("file_name,text\na.png,x\n./a.png,y\n", "has several rows for a.png that differ"),
    ("name,text\na.png,x\n", "metadata.csv: no column is called file_name"),
])
def test_tables_that_cannot_be_meant_are_refused(folder, rows, told):
    touch(folder, "a.png", "../b.png")
    (folder / "metadata.csv").write_text(rows)
    assert told in refusal(folder)


def test_weights_nested_too_deep_are_refused(folder):
    touch(folder, "a.png")
    (folder / "weights.json").write_text("[" * 200_000)
    assert "is not JSON in UTF-8" in refusal(folder)


def calls(folder, count: int) -> int:
    """How many calls it takes to find so many pictures, each in a folder of its own that the table names."""
    names = [f"{i}/a.png" for i in range(count)]
    touch(folder, *names)
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": "x"}) for n in names))
    made = []
    sys.setprofile(lambda frame, event, arg: made.append(event))
    try:
        assert len(find(folder)[0]) == count
    finally:
        sys.setprofile(None)
    return len(made)


def test_twice_as_many_folders_that_a_table_names_take_twice_the_work(tmp_path):
    assert calls(tmp_path / "few", 60) * 2.2 > calls(tmp_path / "many", 120)
