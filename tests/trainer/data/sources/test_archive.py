"""A zip is unpacked whole and once, or refused; nothing lands outside its folder."""

from __future__ import annotations

import os
import stat
import struct
import zipfile

import pytest
from livelora.trainer.data.sources import archive
from livelora.trainer.data.sources.choose import find_any


def pack(path, files, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(path, scratch) -> str:
    with pytest.raises(ValueError) as caught:
        archive.unpack(path, scratch)
    assert not list(scratch.rglob("*.tmp")) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


def test_files_keep_their_folders_and_junk_stays_packed(tmp_path, scratch):
    source = pack(tmp_path / "d.zip", {"a.png": b"1", "10_x/b é猫.png": b"2", "10_x/": b"", "__MACOSX/._a.png": b"3",
                                       ".DS_Store": b"4", "10_x/.hidden/c.png": b"5", "w\\d.txt": b"6"})
    assert tree(archive.unpack(source, scratch)) == {"a.png": b"1", "10_x/b é猫.png": b"2", "w/d.txt": b"6"}


@pytest.mark.parametrize(("names", "inside"), [
    (["data/a.png", "data/b.png"], "data"), (["one/two/a.png"], "one/two"), (["10_x/a.png"], ""),
    (["d/10_x/a.png"], "d"), (["d/a.png", "b.png"], ""), (["d/a.png", "__MACOSX/d/._a.png"], "d"),
    (["d/a.png", "Thumbs.db"], "d"), (["d/a.png", "README.md", "a.txt"], "d"), (["d/a.png", "d/desktop.ini"], "d"),
    (["train/a.png", "metadata.csv"], ""), (["10_x/a.png", "readme.txt"], ""), (["d/a.png", "e/b.png"], ""),
    (["d/a.png", "d/Icon\r", "__macosx/d/._a.png", "@eaDir/a.png/x.jpg"], "d"), (["d/a.png", "docs/readme.txt"], "d"),
    (["d/a.png", "d/a.txt", "cover.jpg"], "d"), (["d/a.png", "d/a.txt", "b.png", "b.txt"], "")])
def test_the_one_folder_that_holds_everything_is_given(tmp_path, scratch, names, inside):
    folder = archive.unpack(pack(tmp_path / "d.zip", dict.fromkeys(names, b"x")), scratch)
    (home,) = (scratch / "unpacked").iterdir()
    assert folder.relative_to(home).as_posix() == (inside or ".")


def test_the_same_content_is_unpacked_once(tmp_path, scratch):
    source = pack(tmp_path / "d.zip", {"a.png": b"1", "b.txt": b"two"})
    folder = archive.unpack(source, scratch)
    before = (folder / "a.png").stat().st_ino
    os.utime(folder, (0, 0))
    assert archive.unpack(source.rename(tmp_path / "e.zip"), scratch) == folder
    assert (folder / "a.png").stat().st_ino == before and folder.stat().st_mtime > 0  # used: it is not removed first
    other = archive.unpack(pack(tmp_path / "f.zip", {"a.png": b"2"}), scratch)
    assert other != folder and tree(other) == {"a.png": b"2"}


@pytest.mark.parametrize("harm", ["delete", "empty"])
def test_what_is_missing_is_unpacked_anew(tmp_path, scratch, harm):
    source = pack(tmp_path / "d.zip", {"a.png": b"1", "b.txt": b"two"})
    folder = archive.unpack(source, scratch)
    (folder / "b.txt").unlink()
    if harm == "empty":
        (folder / "b.txt").touch()
    (scratch / "unpacked" / ".left.0.tmp").mkdir()
    assert tree(archive.unpack(source, scratch)) == {"a.png": b"1", "b.txt": b"two"}
    assert len(list((scratch / "unpacked").iterdir())) == 1


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "d/../../a.png", "C:/a.png", "c:a.png", "..\\a.png",
                                  "\\\\h\\a.png", "./a.png", "d//a.png", "new\nline.png"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, scratch, name):
    assert "could end up outside" in refusal(pack(tmp_path / "d.zip", {"b.png": b"", name: b"x"}), scratch)
    assert [p.name for p in tmp_path.iterdir()] == ["d.zip"] or not list((scratch / "unpacked").glob("*"))


def test_a_colon_is_refused_on_windows(tmp_path, scratch, monkeypatch):
    """It would write into a stream of a file `shot 12`, which no listing shows."""
    source = pack(tmp_path / "d.zip", {"shot 12:30.png": b"x"})
    assert tree(archive.unpack(source, scratch)) == {"shot 12:30.png": b"x"}
    monkeypatch.setattr(archive, "WINDOWS", True)
    assert "'shot 12:30.png', a name that Windows cannot have" in refusal(source, scratch)


def test_a_link_is_refused(tmp_path, scratch):
    link = zipfile.ZipInfo("a.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    assert "has a link in it, a.png" in refusal(tmp_path / "d.zip", scratch)


def test_an_encrypted_zip_is_refused(tmp_path, scratch):
    """Bit 0 of the flags, PKWARE APPNOTE 4.4.4, in the local header (offset 6) and in the central one (offset 8)."""
    source = pack(tmp_path / "d.zip", {"a.png": b"x"})
    data = bytearray(source.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    source.write_bytes(data)
    assert "is encrypted. Unpack it yourself" in refusal(source, scratch)


class OfMacos(zipfile.ZipInfo):
    """Writes the name in UTF-8 without the flag that says so."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 - zipfile's own
        return self.filename.encode(), 0


def test_names_of_macos_are_read_and_no_disk_takes_sharp_s_for_two(tmp_path, scratch):
    names = ["é猫.png", "straße.txt", "strasse.txt"]
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as file:
        for name in names:
            file.writestr(OfMacos(name), name)
    with zipfile.ZipFile(tmp_path / "d.zip") as file:
        assert file.namelist()[0] != names[0]
    assert tree(archive.unpack(tmp_path / "d.zip", scratch)) == {name: name.encode() for name in names}


def test_a_cover_beside_the_folder_is_told(tmp_path, scratch):
    source = pack(tmp_path / "d.zip", dict.fromkeys(["d/a.png", "d/a.txt", "cover.jpg"], b""))
    found, said = find_any(source, scratch)
    assert [entry.path.name for entry in found] == ["a.png"]
    assert said == ["1 picture beside the folder 'd' left out, having no caption: cover.jpg."]


@pytest.mark.parametrize("names", [["a.png", "A.PNG"], ["d/é.png", "D/e\u0301.png"]])
def test_names_that_are_one_on_many_disks_are_refused(tmp_path, scratch, names):
    assert "many disks take for one" in refusal(pack(tmp_path / "d.zip", dict.fromkeys(names, b"")), scratch)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path, scratch):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as file:
        file.writestr("a.png", b"1")
        file.writestr("a.png", b"2")
    assert "many disks take for one: a.png, a.png" in refusal(tmp_path / "d.zip", scratch)


def test_too_many_entries_are_refused(tmp_path, scratch):
    source = pack(tmp_path / "d.zip", {f"{i}.txt": b"" for i in range(20_001)})
    assert "has 20001 entries; at most 20000" in refusal(source, scratch)


def patched(source, name, size):
    """With another uncompressed size in the central directory (APPNOTE 4.3.12: offset 24, the name at offset 46)."""
    data = bytearray(source.read_bytes())
    at = data.rindex(name) - 46
    struct.pack_into("<I", data, at + 24, size)
    source.write_bytes(data)
    return source


def test_a_bomb_is_refused_by_what_it_declares(tmp_path, scratch):
    source = pack(tmp_path / "d.zip", {f"{i}.png": b"x" for i in range(6)})
    for i in range(6):
        patched(source, f"{i}.png".encode(), 2**32 - 2)
    assert "would be 24 GB unpacked; at most 20 GB" in refusal(source, scratch)


def test_a_bomb_that_declares_less_than_it_holds_writes_no_more_than_that(tmp_path, scratch):
    source = patched(pack(tmp_path / "d.zip", {"a.png": bytes(50_000_000)}), b"a.png", 1000)
    assert "is no zip or is damaged (Bad CRC-32" in refusal(source, scratch)


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3}))
    assert "Make room there" in refusal(pack(tmp_path / "d.zip", {"a.png": b"1234"}), scratch)


@pytest.mark.parametrize("size", [0, 10, 60, 200, -1, -30])
def test_a_damaged_zip_is_refused(tmp_path, scratch, size):
    source = pack(tmp_path / "d.zip", {"a.png": os.urandom(300), "b.png": b"x"})
    source.write_bytes(source.read_bytes()[:size])
    assert "is no zip or is damaged" in refusal(source, scratch)
    with pytest.raises(ValueError, match="is no zip or is damaged"):
        archive.check(source)


def test_damage_inside_is_found_by_the_checksum(tmp_path, scratch):
    source = tmp_path / "d.zip"
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("a.png", b"right" * 10)
    source.write_bytes(source.read_bytes().replace(b"right", b"wrong", 1))
    assert "Bad CRC-32" in refusal(source, scratch)


def test_an_empty_zip_and_one_of_junk_are_refused(tmp_path, scratch):
    assert "holds no files" in refusal(pack(tmp_path / "d.zip", {}), scratch)
    assert "holds no files" in refusal(pack(tmp_path / "e.zip", {"__MACOSX/a.png": b"x", "d/": b""}), scratch)


@pytest.mark.parametrize("names", [["a", "a/b.png"], ["n" * 300 + ".png"]])
def test_names_that_the_disk_does_not_take_are_refused(tmp_path, scratch, names):
    assert "cannot be unpacked (" in refusal(pack(tmp_path / "d.zip", dict.fromkeys(names, b"x")), scratch)


def test_a_check_unpacks_nothing(tmp_path):
    archive.check(pack(tmp_path / "d.zip", {"a.png": b"x"}))
    assert [p.name for p in tmp_path.iterdir()] == ["d.zip"]


def test_messages_name_the_zip_and_not_where_it_was_unpacked(tmp_path, scratch):
    source = pack(tmp_path / "my cats.zip", {"d/a.png": b"1", "d/b.txt": b"2", "d/weights.json": b"[]"})
    with pytest.raises(ValueError, match=rf"'{source}/d/weights\.json' must be names"):
        find_any(source, scratch)
    pack(source, {"a.png": b"1", "b.jxl": b"2"})
    assert find_any(source, scratch)[1][-1].startswith("1 picture in 'my cats.zip' left out for a format")
    with pytest.raises(ValueError, match=rf"No images in '{source}' \(it holds no image, but a\.txt\)"):
        find_any(pack(source, {"a.txt": b"1"}), scratch)
