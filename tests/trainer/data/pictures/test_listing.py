"""Pictures are found by what they are, and what is left out is told."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.data.pictures import images, listing
from livelora.trainer.data.pictures.listing import UNREAD
from PIL import Image


def encoded(format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format)
    return file.getvalue()


CONTENTS = {name: encoded(name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}


def names(folder):
    pictures, said = listing.list_pictures(folder)
    return [p.name for p in pictures], said


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.sampled_from([*CONTENTS]), st.text("aé1 _!", min_size=1, max_size=5).filter(str.strip),
       st.sampled_from(["", ".jpe", ".apng", ".jpg_large", ".jpg!d", ".png.download", ".image", ".JPG", ".x"]))
def test_a_picture_is_found_whatever_it_is_called(tmp_path, content, stem, suffix):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / (stem + suffix)).write_bytes(CONTENTS[content])
    assert names(folder) == ([stem + suffix], [])


def test_formats_that_cannot_be_read_are_told_and_other_files_are_not(tmp_path):
    for name, start in {"a.jxl": b"\xff\x0a", "b": b"\0\0\0\x0cJXL \r\n", "c.tga": b"\0\0", "d.nef": b"II*\0",
                        "e.xyz": b"8BPS", "f": b"", "g.txt": b"\xff\xd8\xff", "h.MP4": b"\0\0\0 ftypisom",
                        "k.webm": b"\x1aE\xdf\xa3", "BMW": b"BMW models are"}.items():
        (tmp_path / name).write_bytes(start + bytes(20) * (name != "f"))
    (tmp_path / "i.jxl").write_bytes(CONTENTS["PNG"])
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == (["i.jxl"], [
        f"5 pictures in '{tmp_path.name}' left out for a format that cannot be read: a.jxl, b, c.tga, d.nef, "
        "e.xyz. Save as PNG, JPEG or WebP.",
        f"2 videos in '{tmp_path.name}' left out: h.MP4, k.webm."])


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypmif1", b"\0\0\0\x18ftypavis", b"II\xbc\x01", b"\xff\x4f\xff\x51",
                                   b"SIMPLE  =", b"CSFCHUNK"])
def test_other_formats_are_known_by_how_they_begin(tmp_path, start):
    (tmp_path / "a").write_bytes(start + bytes(20))
    assert "format that cannot be read: a." in names(tmp_path)[1][0]


def test_a_big_tiff_is_read(tmp_path):
    """BigTIFF begins with 43 in place of TIFF's 42 (AWare Systems, "The BigTIFF file format")."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a", "TIFF", big_tiff=True)
    assert names(tmp_path) == (["a"], []) and images.examine(tmp_path / "a").size == (4, 4)


@given(suffix=st.sampled_from(sorted(UNREAD)), case=st.sampled_from([str, str.upper]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_of_a_raw_file_the_preview_is_not_taken(tmp_path, suffix, case):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    name = "a" + case(suffix)
    (folder / name).write_bytes(CONTENTS["TIFF"])
    found, [said] = names(folder)
    assert found == [] and f"a format that cannot be read: {name}." in said


@pytest.mark.parametrize("suffix", ["srw pef nrw 3fr iiq sr2 srf kdc dcr mrw erf rwl gpr dng nef arw cr2".split()])
def test_raw_files_are_known_by_their_extension(suffix):
    assert {f".{name}" for name in suffix} <= UNREAD


@pytest.mark.parametrize("start", [b"II*\0\x10\0\0\0CR\x02\0", b"\0\0\0\x18ftypcrx \0\0\0\1", b"FUJIFILMCCD-RAW ",
                                   b"IIU\0\x08\0\0\0", b"IIRO\x08\0\0\0", b"\0MRM\0\0\0\0"])
def test_raw_files_are_known_by_how_they_begin(tmp_path, start):
    (tmp_path / "raw").write_bytes(start + bytes(40))
    found, [said] = names(tmp_path)
    assert found == [] and "a format that cannot be read: raw." in said


def test_of_many_other_files_few_are_opened(tmp_path, monkeypatch):
    for i in range(5):
        (tmp_path / f"{i}.bin").touch()
        (tmp_path / f"0{i}.x").write_bytes(CONTENTS["PNG"])
    (tmp_path / "z.png").write_bytes(CONTENTS["PNG"])
    monkeypatch.setattr(listing, "MOST_OPENED", 2)
    assert names(tmp_path) == ([*(f"0{i}.x" for i in range(5)), "z.png"], [
        f"3 files in '{tmp_path.name}' not looked at: so many are there without the extension of a picture"
        ": 2.bin, 3.bin, 4.bin."])


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        listing.list_pictures(tmp_path / "gone")
