"""What a person may write where a path is asked for."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from livelora.trainer.comfy import paths


@pytest.mark.parametrize("form", ["{}", ' "{}" ', '"{}"\n'])
def test_a_path_may_be_in_quotation_marks(tmp_path, form):
    """As Windows' Explorer copies it."""
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
