"""Files are whole or not there."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from livelora.trainer.disk import files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # stands for a full disk
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.creating_folder(tmp_path / "state") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.creating_folder(tmp_path / "state") as folder:
        (folder / "whole").write_text("x")
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["whole"]
    with files.creating_folder(tmp_path / "state") as folder:
        (folder / "newer").write_text("x")
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["newer"]


def test_others_can_read_a_tensor_file_as_they_can_any_other(tmp_path):
    files.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_somebody_has_open_for_a_moment_is_replaced_all_the_same(tmp_path, monkeypatch):
    """Windows refuses until it is closed."""
    path, rename, refused = tmp_path / "a.json", os.replace, []

    def as_on_windows(*paths: object) -> None:
        if len(refused) < 2:
            refused.append(paths)
            raise PermissionError(errno.EACCES, "Access is denied")
        rename(*paths)

    monkeypatch.setattr(os, "replace", as_on_windows)
    with pytest.raises(PermissionError):
        files.write_json(path, {})  # elsewhere it would not pass
    monkeypatch.setattr(files, "WINDOWS_WAITS", (0.0, 0.0))
    files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}
    assert len(refused) == 2


@given(st.text(st.characters(categories=["Cs", "Ll"]), max_size=5))
def test_half_a_character_in_json_is_the_same_half_again(tmp_path_factory, text):
    """A workflow is kept as it is, with whatever other nodes have in it. Two halves may come back as one character."""
    path = tmp_path_factory.getbasetemp() / "half.json"
    files.write_json(path, {"text": text})
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps({"text": text}))
