"""Every kind of source leads to the same images, or to a sentence that says what would."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest
from livelora.trainer.data.sources import choose as sources


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "cats"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(b"")
        (folder / f"{name}.txt").write_text(f"cat {name}")
    return tmp_path


def names(source):
    sources.check(source)
    found, _ = sources.find_any(source, source.parent / "scratch")
    return [entry.path.name for entry in found]


def test_a_folder_and_a_zip_of_it(home):
    (home / "cats").rename(home / "cats.zip")  # the name alone does not make it one
    assert names(home / "cats.zip") == ["a.png", "b.png"]
    with zipfile.ZipFile(home / "Cats.ZIP", "w") as file:
        for path in (home / "cats.zip").iterdir():
            file.write(path, f"cats/{path.name}")
    assert names(home / "Cats.ZIP") == ["a.png", "b.png"]


def test_tables_name_the_images_beside_them(home):
    (home / "some.csv").write_text("file_name,caption\ncats/b.png,x\n")
    (home / "some.jsonl").write_text('{"file_name": "cats/b.png", "text": "x"}')
    for table in ("some.csv", "some.jsonl"):
        (found,), said = sources.find_any(home / table, home)
        assert found.path == home / "cats" / "b.png" and found.caption == "x"
        assert said == ["1 image with another caption in a text file than in the table; the table's is used: "
                        "b.png. Take the table away to use the text files.",
                        "1 picture in 'cats' left out, which the table does not name: a.png."]


def test_configurations_of_other_trainers(home):
    (home / "c.yaml").write_text("datasets:\n- folder_path: cats\n")
    (home / "c.json").write_text(json.dumps({"datasets": [{"folder_path": "cats"}]}))
    (home / "c.toml").write_text('[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "cats"\n')
    for config in ("c.yaml", "c.json", "c.toml"):
        assert names(home / config) == ["a.png", "b.png"]


@pytest.mark.parametrize(("name", "told"), [
    ("nowhere", "The dataset folder '{}' does not exist. Choose a folder"),
    ("nowhere.zip", "The dataset '{}' does not exist."),
    ("nowhere.toml", "The dataset '{}' does not exist."),
    ("cats/a.png", "The dataset '{}' is a file. Choose a folder with .png, .jpg or .webp files, a zip of one, or"),
    ("cats/a.zip", "'{}' is no zip or is damaged"),
])
def test_other_sources_are_refused(home, name, told):
    (home / "cats" / "a.zip").write_text("no zip")
    for read in (sources.check, lambda source: sources.find_any(source, home / "scratch")):
        with pytest.raises(ValueError) as caught:
            read(home / name)
        assert told.format(home / name) in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other disks take no such names")
@pytest.mark.parametrize("name", ["\udcff.zip", "\udcff/c.toml", "\udcff.csv", "c.yaml"])
def test_places_whose_names_are_no_text_are_refused(home, name):
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).write_text("folder_path: cats")
    (home / "cats" / "\udcfe").mkdir()
    with pytest.raises(ValueError, match=r"udcf[ef].*' is not UTF-8. Rename") as caught:
        sources.find_any(home / name, home)
    assert str(caught.value).encode()


def test_a_table_of_other_things_is_refused(home):
    (home / "t.csv").write_text("file_name,text\ncats/a.txt,x\n")
    with pytest.raises(ValueError, match=r"names 1 file, and none is an image: a\.txt"):
        sources.check(home / "t.csv")
