"""A dataset is looked at again when something has changed where it is read from, and nowhere else."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.trainer.data.captions import files as captions
from livelora.trainer.data.places import fingerprint
from livelora.trainer.data.sources.choose import find_any

FOLDERS = ("", "10_cats", "0_off", "mask", "10_cats/masks", "other", "other/10_cats", "10_cats/10_more", "named/deep",
           "Named/deep")
FILES = ("a.png", "a.txt", "b.jpg", "a_mask.png", "weights.json", "Weights.json", "metadata.csv",
         "Metadata.CSV", "notes.md")
FILE = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(FILES)).map("/".join).map(lambda name: name.lstrip("/"))
CONTENT = {"weights.json": "{}", "metadata.csv": "file_name,text\na.png,one\nnamed/deep/a.png,two\n"}


def put(folder: Path, name: str, more: str = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CONTENT.get(path.name.lower(), "x") + more)


def read(source: Path) -> object:
    """What a scan reads: the files, their captions, and the content of each file."""
    try:
        found, said = find_any(source, source)
    except ValueError as err:
        return str(err)
    return said, [(f, f.caption_file and captions.read(f.caption_file), f.path.read_text(),
                   [m.read_text() for m in f.masks]) for f in found]


@given(st.lists(FILE, max_size=8), FILE, st.booleans())
@settings(max_examples=60)
def test_whatever_changes_what_is_read_changes_the_fingerprint(names, changed, goes):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        put(folder, "a.png")
        for name in names:
            put(folder, name)
        before, known = read(folder), fingerprint(folder)
        assert fingerprint(folder) == known
        if goes:
            (folder / changed).unlink(missing_ok=True)
        else:
            put(folder, changed, " ")
        assert fingerprint(folder) != known or read(folder) == before


@pytest.mark.parametrize("written", ["deep/a.png", "./deep/a.png", "{}/deep/a.png", "DEEP\\a.png"])
def test_a_folder_that_a_table_names_is_watched_however_it_is_written(tmp_path, written):
    put(tmp_path, "deep/a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": written.format(tmp_path), "text": "a"}))
    known = fingerprint(tmp_path)
    put(tmp_path, "deep/a_mask.png")
    assert fingerprint(tmp_path) != known


@pytest.fixture
def listed(monkeypatch):
    """The folders that are listed."""
    places = []
    for name in ("scandir", "listdir"):
        really = getattr(os, name)
        monkeypatch.setattr(os, name, lambda place, really=really: places.append(str(place)) or really(place))
    return places


def test_other_folders_are_not_looked_into_however_many_there_are(tmp_path, listed):
    for name in ("a.png", "10_cats/b.png", "10_cats/mask/b.png", "other/c.png", "other/10_cats/c.png"):
        put(tmp_path, name)
    known = fingerprint(tmp_path)
    assert {*listed} == {str(tmp_path / name) for name in ("", "10_cats", "10_cats/mask")} and len(listed) <= 5
    put(tmp_path, "other/new.png")
    put(tmp_path, "other/10_cats/new.png")
    assert fingerprint(tmp_path) == known


def test_a_configuration_is_read_from_the_folders_that_it_names(tmp_path, listed):
    put(tmp_path, "cats/a.png")
    put(tmp_path, "dogs/a.png")
    toml = tmp_path / "set.toml"
    toml.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{(tmp_path / 'cats').as_posix()}'\n")
    known = fingerprint(toml)
    put(tmp_path, "dogs/b.png")
    assert fingerprint(toml) == known and str(tmp_path / "dogs") not in listed
    put(tmp_path, "cats/b.txt")
    assert fingerprint(toml) != known


@pytest.mark.parametrize("name", ["set.yaml", "set.toml"])
def test_no_caption_is_read_to_watch_a_configuration(tmp_path, monkeypatch, name):
    for number in range(3):
        put(tmp_path, f"cats/deep/{number}.png")
        put(tmp_path, f"cats/deep/{number}.txt")
    (tmp_path / "cats" / "empty").mkdir()
    put(tmp_path, "masks/0.png")
    (tmp_path / "set.yaml").write_text("folder_path: cats\nmask_path: masks")
    (tmp_path / "set.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cats/deep'\n"
                                       "conditioning_data_dir = 'masks'\n")
    monkeypatch.setattr(captions, "read", None)
    known = {fingerprint(tmp_path / name)}
    for count, changed in enumerate(("cats/deep/0.txt", "cats/deep/new.png", "masks/0.png", "masks/1.png"), 2):
        put(tmp_path, changed, "more")
        known.add(fingerprint(tmp_path / name))
        assert len(known) == count
    put(tmp_path, "cats/empty/first.png")
    assert (fingerprint(tmp_path / name) not in known) == (name == "set.yaml")


@pytest.mark.parametrize("home", ["image_dir = 'cats'", ""])
def test_the_folders_of_a_metadata_file_are_watched(tmp_path, home):
    put(tmp_path, "cats/Deep/a.png")
    (tmp_path / "meta.json").write_text(json.dumps({("" if home else "cats/") + "deep/a.png": {"caption": "x"}}))
    (tmp_path / "set.toml").write_text(f"[[datasets]]\n[[datasets.subsets]]\n{home}\nmetadata_file = 'meta.json'\n")
    known = {fingerprint(tmp_path / "set.toml")}
    for count, changed in enumerate(("cats/Deep/a.png", "meta.json"), 2):
        put(tmp_path, changed, "{}")
        known.add(fingerprint(tmp_path / "set.toml"))
        assert len(known) == count


def test_masks_in_a_folder_that_a_configuration_names(tmp_path):
    put(tmp_path, "cats/a.png")
    put(tmp_path, "shapes/a.png")
    (tmp_path / "set.json").write_text(json.dumps({"config": {"datasets": [
        {"folder_path": str(tmp_path / "cats"), "mask_path": str(tmp_path / "shapes")}]}}))
    known = fingerprint(tmp_path / "set.json")
    put(tmp_path, "shapes/a.png", "more")
    assert fingerprint(tmp_path / "set.json") != known


@pytest.mark.parametrize("name", ["missing", "missing.zip", "n" * 300, "a\0b", "\ud800"])
def test_what_is_not_there_has_a_fingerprint_too(tmp_path, name):
    assert fingerprint(tmp_path / name) == fingerprint(tmp_path / name)


def test_a_zip_and_a_link_that_leads_nowhere(tmp_path):
    put(tmp_path, "set.zip")
    known = fingerprint(tmp_path / "set.zip")
    put(tmp_path, "set.zip", "more")
    assert fingerprint(tmp_path / "set.zip") != known
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    assert fingerprint(tmp_path) == fingerprint(tmp_path)
