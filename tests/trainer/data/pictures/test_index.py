"""A picture is read once, and again when it has changed; what is kept on disk can be lost or broken."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest
from livelora.trainer.data.pictures import images
from livelora.trainer.data.pictures.images import Facts
from livelora.trainer.data.pictures.index import Index, Question
from PIL import Image


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def read(monkeypatch):
    """The names of the pictures that were opened."""
    names, really = [], images.read
    monkeypatch.setattr(images, "read", lambda path: names.append(path.name) or really(path))
    return names


def examine(place, paths, tell=lambda done, total: None):
    asked = [Question(path, partial(images.examine, path)) for path in paths]
    return Index(place / "index", Facts).examine(asked, tell)


def test_the_facts_come_in_order_and_a_second_start_opens_nothing(tmp_path, pictures, read):
    first = examine(tmp_path, pictures[::-1])
    assert [facts.size[0] for facts in first] == [25, 24, 23, 22, 21, 20] and len(read) == 6
    assert examine(tmp_path, pictures) == first[::-1] and len(read) == 6


def test_only_what_changed_is_read_again(tmp_path, pictures, read):
    """Another size; another time; a file of the same size and time that took the place of the old one."""
    examine(tmp_path, pictures)
    read.clear()
    Image.new("RGB", (90, 90)).save(pictures[0])
    os.utime(pictures[1], ns=(1, 1))
    before = pictures[2].stat()
    content = pictures[2].read_bytes()
    pictures[2].write_bytes(content[:-13] + content[-13:])
    os.utime(pictures[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    found = examine(tmp_path, pictures)
    assert sorted(read) == ["0.png", "1.png"] + (["2.png"] if os.name != "nt" else [])
    assert found[0].size == (90, 90) and found[3].size == (23, 10)


def test_a_broken_picture_is_an_answer_and_is_asked_again(tmp_path, pictures):
    good = pictures[3].read_bytes()
    pictures[3].write_bytes(b"broken")
    for _ in range(2):
        found = examine(tmp_path, [*pictures, tmp_path / "missing.png"])
        assert isinstance(found[3], ValueError) and "3.png" in str(found[3])
        assert isinstance(found[6], ValueError) and "missing.png is not a file" in str(found[6])
    pictures[3].write_bytes(good)
    assert examine(tmp_path, pictures)[3].size == (23, 10)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"version": 1}',
                                     b'{"version": 0, "pictures": {}}',
                                     b'{"version": 1, "pictures": {"0.png": {"stamp": [1], "facts": {"size": 3}}}}',
                                     b'{"version": 1, "pictures": {"0.png": {"stamp": [1], "facts": {"size": [1]}}}}'])
def test_a_broken_index_is_made_anew(tmp_path, pictures, read, content):
    first = examine(tmp_path, pictures)
    [file] = (tmp_path / "index").iterdir()
    file.write_bytes(content)
    assert examine(tmp_path, pictures) == first and len(read) == 12
    assert examine(tmp_path, pictures) == first and len(read) == 12


def test_an_index_that_cannot_be_written_only_costs_time(tmp_path, pictures, caplog):
    (tmp_path / "index").write_text("a file where the folder should be")
    assert [facts.size[0] for facts in examine(tmp_path, pictures)] == [20, 21, 22, 23, 24, 25]
    assert "cannot be" in caplog.text


def test_progress_is_told_here_and_an_interrupt_keeps_what_is_done(tmp_path, pictures, read):
    told = []

    class Interrupted(BaseException):
        pass

    def tell(done, total):
        told.append((done, total, threading.current_thread()))
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        examine(tmp_path, pictures, tell)
    assert told == [(done, 6, threading.current_thread()) for done in range(3)]
    told.clear()
    examine(tmp_path, pictures, lambda done, total: told.append(done))
    assert told[0] == 2 and told[-1] == 6


def test_pictures_of_several_folders_and_what_is_gone(tmp_path, pictures):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (7, 7)).save(other / "0.png")
    found = examine(tmp_path, [pictures[0], other / "0.png", pictures[0]])
    assert [facts.size for facts in found] == [(20, 10), (7, 7), (20, 10)]
    assert len([*(tmp_path / "index").iterdir()]) == 2
    pictures[0].unlink()
    examine(tmp_path, pictures[1:])
    assert not any('"0.png"' in file.read_text() for file in (tmp_path / "index").iterdir()
                   if "other" not in file.read_text().split('"pictures"')[0])


@pytest.mark.skipif(os.name == "nt", reason="such names do not exist there")
def test_a_name_that_is_no_text(tmp_path, pictures, read):
    strange = os.fsdecode(os.fsencode(pictures[0].parent) + b"/\xff.png")
    os.rename(pictures[0], strange)
    for _ in range(2):
        assert examine(tmp_path, [type(tmp_path)(strange)])[0].size == (20, 10)
    assert len(read) == 1
