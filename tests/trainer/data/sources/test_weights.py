"""Weights of single images, from a file beside them, taken exactly or refused."""

from __future__ import annotations

import json

import pytest
from livelora.trainer.data.report import report
from PIL import Image
from reading import read


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "10_cats").mkdir()
    for name in ("a", "b", "10_cats/a"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("ohwx")
    return tmp_path


def refusal(folder) -> str:
    with pytest.raises(ValueError) as caught:
        read(folder)
    return str(caught.value)


def test_each_folder_has_its_own_weights(folder):
    (folder / "weights.json").write_text('{"a.png": 0.5}')
    (folder / "10_cats" / "weights.json").write_text('\ufeff{"a.png": 3}', encoding="utf-8")
    dataset = read(folder)
    assert [(i.path.relative_to(folder).as_posix(), i.weight) for i in dataset.items] == [
        ("a.png", 0.5), ("b.png", 1.0), ("10_cats/a.png", 3.0)]
    assert "2 with a weight of their own" in report.make(dataset).text


def test_the_fingerprint_follows_the_weights(folder):
    found = [read(folder).fingerprint()]
    for weights in ({"a.png": 1}, {"a.png": 0.5}, {"b.png": 0.5}, {"b.png": 0}):
        (folder / "weights.json").write_text(json.dumps(weights))
        found.append(read(folder).fingerprint())
    assert found[0] == found[1] and len(set(found)) == 4


@pytest.mark.parametrize(("name", "written"), [("é.png", "E\u0301.PNG"), ("Photo 1.JPG", "photo 1.jpg")])
def test_a_weight_is_found_however_the_name_is_written(folder, name, written):
    (folder / "a.png").rename(folder / name)
    (folder / "a.txt").rename((folder / name).with_suffix(".txt"))
    (folder / "weights.json").write_text(json.dumps({written: 0.5}))
    assert [i.weight for i in read(folder).items if i.path.name == name] == [0.5]


@pytest.mark.parametrize("name", ["weights.json", "Weights.json", "WEIGHTS.JSON"])
def test_the_file_is_found_however_its_name_is_written(folder, name):
    (folder / name).write_text('{"a.png": 0.5}')
    assert [i.weight for i in read(folder).items] == [0.5, 1.0, 1.0]


def test_of_two_files_neither_is_guessed(folder):
    for name in ("Weights.json", "WEIGHTS.JSON"):
        (folder / name).write_text("{}")
    assert f"'{folder}': There is no weights.json, but WEIGHTS.JSON, Weights.json" in refusal(folder)


@pytest.mark.parametrize(("content", "told"), [
    (b'{"A.png": 1, "a.PNG": 2}', "names a.png twice. Take one of its names out"),
    (b'{"a.png": 0.5, "a.png": 3}', "is not JSON in UTF-8 (a.png stands in it twice, with different values; take one"),
    (b"{a.png: 1}", "is not JSON in UTF-8 (Expecting property name"),
    (b"", "is not JSON in UTF-8"),
    ('{"caf\xe9.png": 1}'.encode("latin-1"), "is not JSON in UTF-8"),
    (b'["a.png"]', "must be names with weights"),
    (b'{"c.png": 1, "a": 1}', "names 2 images not to be found in its folder: a, c.png. Correct the names"),
    (b'{"a.png": -0.1}', "not numbers of at least 0: a.png: -0.1"),
    (b'{"a.png": "1"}', "a.png: '1'"),
    (b'{"a.png": true}', "a.png: True"),
    (b'{"a.png": null}', "a.png: None"),
    (b'{"a.png": NaN}', "a.png: nan"),
    (b'{"a.png": Infinity}', "a.png: inf"),
    (b'{"a.png": 1e999}', "a.png: inf"),
])
def test_weights_that_cannot_be_used_are_refused(folder, content, told):
    (folder / "weights.json").write_bytes(content)
    assert told in refusal(folder) and str(folder / "weights.json") in refusal(folder)


def test_all_that_is_wrong_is_told_at_once(folder):
    (folder / "weights.json").write_text('{"c.png": 1, "a.png": -1}')
    (folder / "10_cats" / "weights.json").write_text("[")
    told = refusal(folder)
    assert "c.png" in told and "a.png: -1.0" in told and "10_cats" in told


def test_weights_beside_no_images_are_refused(folder):
    """A common slip: the file lies above the folder whose images it names."""
    for name in ("a", "b"):
        (folder / f"{name}.png").unlink()
    (folder / "weights.json").write_text('{"a.png": 0.5}')
    assert "names 1 image not to be found in its folder: a.png" in refusal(folder)
