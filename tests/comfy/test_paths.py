"""What a person may write where a path is asked for."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st
from livelora.nodes import dataset
from livelora.nodes.dataset import DatasetLoader
from livelora.trainer.captioning.tagger import table_beside
from livelora.trainer.captioning.vision import model_type
from livelora.trainer.comfy import paths
from livelora.trainer.data.item import Dataset
from livelora.trainer.data.review import read_table
from livelora.trainer.data.sources.choose import check

NOWHERE = (st.sampled_from(["nowhere", "/nowhere/", "~nobody/", "~nobody"]),
           st.text(st.characters(exclude_characters="."))
           | st.sampled_from(["x" * 300, "x/" * 3000, "猫" * 90, "\0", "../\udcff"]),
           st.sampled_from(["", "/a.csv", ".csv", ".onnx"]))


@pytest.mark.parametrize("form", ["{}", ' "{}" ', '"{}"\n', "\u202a{}", "'{}'", '\u202a"{}" '])
def test_a_path_may_be_in_quotation_marks(tmp_path, form):
    """As Windows' Explorer copies it, or the window of a file's properties, or a terminal."""
    assert paths.dataset_folder(form.format(tmp_path)) == tmp_path
    assert paths.table_path(form.format(tmp_path / "a.csv")) == tmp_path / "a.csv"
    assert paths.absolute_path(form.format(tmp_path), "folder", "a model's folder") == tmp_path


def test_a_dot_is_comfyuis_input_folder():
    assert paths.dataset_folder(".") == Path(folder_paths.get_input_directory())


@pytest.mark.parametrize("text", ["", "  ", '""', ' "" '])
def test_no_path_is_refused(text):
    with pytest.raises(ValueError, match="The dataset folder is empty"):
        paths.dataset_folder(text)
    with pytest.raises(ValueError, match="folder must be the absolute path of a model's folder, got "):
        paths.absolute_path(text, "folder", "a model's folder")


@given(*NOWHERE)
def test_a_path_that_no_disk_has_is_refused_with_a_sentence(where, text, end):
    """Not with an error of the system, wherever a person types one."""
    path = where + text + end
    told = []
    for use in (lambda: check(paths.dataset_folder(path)),
                lambda: read_table(paths.table_path(path), Dataset(Path(), 64, "", ())),
                lambda: table_beside(paths.absolute_path(path, "file", "a tagger's .onnx file")),
                lambda: model_type(paths.absolute_path(path, "folder", "a model's folder"))):
        with pytest.raises(ValueError) as caught:
            use()
        told.append(str(caught.value))
        told[-1].encode()  # no half of a character is in it, which a page could not be sent
        assert type(caught.value) is ValueError and len(told[-1].split(".")) > 1
    assert not [sentence for sentence in told if "null" in sentence or "codec" in sentence or "Errno" in sentence]


@pytest.mark.parametrize(("text", "told"), [
    ("/" + "x" * 300, r"The path '/x{79}…' has 301 letters, more than a disk takes"),
    ("/cats\ud83d", r"'/cats\\ud83d' has a character that no path can have"),
    ("~nobody_of_this_name", "~nobody_of_this_name' does not exist"),
], ids=["long", "surrogate", "user"])
def test_why_a_path_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        check(paths.dataset_folder(text))


def test_a_good_dataset_is_checked_again_only_when_it_has_changed(tmp_path, monkeypatch):
    checked, really = [], dataset.check
    monkeypatch.setattr(dataset, "check", lambda source: checked.append(source) or really(source))
    for name, times, good in (("x", 1, False), ("x", 2, False), ("a.png", 3, True), ("a.png", 3, True), ("b", 4, True)):
        if not (tmp_path / name).exists():
            (tmp_path / name).touch()
        assert (DatasetLoader.validate_inputs(str(tmp_path)) is True) is good and len(checked) == times
