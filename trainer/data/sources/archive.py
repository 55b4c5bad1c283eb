"""Unpacks datasets from a zip, once, into a folder named after the zip's content."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ...disk.files import creating_folder, sweep
from ..captions.files import CaptionFiles
from ..naming import name_some, sentences
from ..pictures.listing import list_pictures

MOST_ENTRIES = 20_000
MOST_BYTES = 20 * 2**30
"""The most bytes that all files together may have, unpacked."""
HOME = "unpacked"
"""The name of the folder that zips are unpacked to."""
JUNK = ("thumbs.db", "desktop.ini", "icon\r")
"""Files that Windows and macOS add to folders, in lower case."""
JUNK_FOLDERS = ("__macosx", "@eadir")
"""Folders that macOS and Synology's disks add, in lower case."""
UTF_8 = 0x800
"""The flag of an entry whose name is in UTF-8 (PKWARE APPNOTE 4.4.4)."""
WINDOWS = os.name == "nt"
Entries = dict[str, zipfile.ZipInfo]
"""The entry of each file, by the path that it is unpacked to, with / between folders."""


def unpack(source: Path, scratch: Path) -> Path:
    """Returns the folder with a zip's files, under `scratch`. If they all lie in one folder of the zip, it is that one.

    It is made once and found again as long as the zip has the same content. Raises ValueError as `check` does, or if
    the zip is damaged or does not fit on the disk."""
    home = scratch / HOME
    with _opened(source) as file:
        entries = _entries(source, file)
        folder = home / _digest(source)
        if not _is_whole(folder, entries):
            home.mkdir(parents=True, exist_ok=True)
            sweep(home)
            _check_space(source, home, entries)
            _unpack(file, entries, folder)
    os.utime(folder)  # it was used now, and what was not used for longest is removed first
    return _innermost(folder)


@contextlib.contextmanager
def naming(source: Path, folder: Path) -> Iterator[Callable[[str], str]]:
    """Yields a function that names a zip in a sentence in place of the folder that it was unpacked to, which nobody
    knows. Does so with the ValueErrors that are raised meanwhile."""
    def named(sentence: str) -> str:
        return sentence.replace(str(home), str(source)).replace(f"'{home.name}'", f"'{source.name}'")

    home = next(place for place in (folder, *folder.parents) if place.parent.name == HOME)
    try:
        yield named
    except ValueError as err:
        raise ValueError(named(str(err))) from err


def passed_over(folder: Path) -> list[str]:
    """Returns sentences about the pictures of a zip that lie beside the folder that `unpack` gave."""
    above = [place for place in folder.parents if HOME in (parent.name for parent in place.parents)]
    return [sentence for place in above for sentence in sentences(
        ([picture.name for picture in list_pictures(place)[0]], "picture", f"beside the folder '{folder.name}' left "
         "out, having no caption", ""))]


def check(source: Path) -> None:
    """Raises ValueError if `source` is no zip, is encrypted, is too large, holds no files, or has names that lead
    elsewhere or differ only in case. Unpacks nothing."""
    with _opened(source) as file:
        _entries(source, file)


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip, and turns whatever is wrong with it into a ValueError that names it."""
    try:
        with zipfile.ZipFile(source) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, UnicodeError) as err:
        raise ValueError(f"'{source}' is no zip or is damaged ({err}). Download or pack it again.") from err
    except (OSError, NotImplementedError) as err:
        why = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise ValueError(f"'{source}' cannot be unpacked ({why}). Unpack it yourself, and choose the folder.") from err


def _entries(source: Path, file: zipfile.ZipFile) -> Entries:
    """Returns the files to unpack. Raises ValueError if there are none, too many or too large ones, or ones that are
    not safe to unpack."""
    if len(file.infolist()) > MOST_ENTRIES:
        raise ValueError(f"'{source}' has {len(file.infolist())} entries; at most {MOST_ENTRIES} are unpacked. Unpack "
                         "it yourself, and choose the folder.")
    entries: Entries = {}
    seen: dict[str, str] = {}
    for entry in file.infolist():
        name = _name(entry)
        if name.endswith("/") or _is_junk(name):
            continue
        _check_entry(source, name, entry)
        same = unicodedata.normalize("NFD", name.lower())  # unlike `key`: no disk takes ß for ss
        if same in seen:
            raise ValueError(f"'{source}' has two files that many disks take for one: {name_some([seen[same], name])}. "
                             "Rename one of them.")
        seen[same] = name
        entries[name] = entry
    if not entries:
        raise ValueError(f"'{source}' holds no files. Pack the images and captions into it.")
    if (total := sum(entry.file_size for entry in entries.values())) > MOST_BYTES:
        raise ValueError(f"'{source}' would be {total / 2**30:.0f} GB unpacked; at most {MOST_BYTES / 2**30:.0f} GB "
                         "are unpacked. Unpack it yourself, and choose the folder.")
    return entries


def _name(entry: zipfile.ZipInfo) -> str:
    """Returns the name of an entry. macOS writes UTF-8 without saying so, and old programs for Windows write \\."""
    name = entry.filename
    if not entry.flag_bits & UTF_8:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _is_junk(name: str) -> bool:
    """Tells whether a file is hidden or was added by macOS, Windows or Synology."""
    parts = name.lower().split("/")
    return parts[-1] in JUNK or any(part in JUNK_FOLDERS or re.match(r"\.[^.]", part) for part in parts)


def _check_entry(source: Path, name: str, entry: zipfile.ZipInfo) -> None:
    parts = name.split("/")
    if ".." in parts or "." in parts or "" in parts or re.match("[A-Za-z]:", name) or re.search(r"[\x00-\x1f]", name):
        raise ValueError(f"'{source}' has an entry {name[:80]!r}, which could end up outside its folder. Pack it "
                         "again, with plain names.")
    if WINDOWS and ":" in name:  # it would write into an unseen part of another file
        raise ValueError(f"'{source}' has an entry {name[:80]!r}, a name that Windows cannot have. Pack it again "
                         "without the colon.")
    if entry.flag_bits & 1:
        raise ValueError(f"'{source}' is encrypted. Unpack it yourself, and choose the folder.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError(f"'{source}' has a link in it, {name}. Pack the file itself instead.")


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:32]


def _is_whole(folder: Path, entries: Entries) -> bool:
    """Tells whether each file is there in its size. One may have been deleted, or emptied by a power cut."""
    try:
        return all((folder / name).stat().st_size == entry.file_size for name, entry in entries.items())
    except OSError:
        return False


def _check_space(source: Path, home: Path, entries: Entries) -> None:
    total, free = sum(entry.file_size for entry in entries.values()), shutil.disk_usage(home).free
    if total > free:
        raise ValueError(f"'{source}' is {total / 2**30:.1f} GB unpacked, and '{home}' has {free / 2**30:.1f} GB left. "
                         "Make room there.")


def _unpack(file: zipfile.ZipFile, entries: Entries, folder: Path) -> None:
    """Unpacks all files or none. zipfile itself gives no more bytes than an entry declares and checks the checksum."""
    with creating_folder(folder) as temporary:
        for name, entry in entries.items():
            place = temporary / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with file.open(entry) as packed, open(place, "xb") as out:
                shutil.copyfileobj(packed, out, 2**20)


def _innermost(folder: Path) -> Path:
    """Returns the folder below all folders that hold one folder with pictures and no table, only such files as a
    readme, or pictures without captions where those in the folder have some. It does not go into one such as 10_cats,
    because that name says how often its images come."""
    while len(inside := [place for place in folder.iterdir() if place.is_dir() and _has_pictures(place)]) == 1:
        beside = any(re.match(r"(metadata|weights)\.", place.name, re.IGNORECASE) for place in folder.iterdir())
        if beside or re.match(r"\d+_", inside[0].name):
            break
        if list_pictures(folder)[0] and (_has_captions(folder) or not _has_captions(inside[0])):
            break
        folder = inside[0]
    return folder


def _has_pictures(folder: Path) -> bool:
    return any(list_pictures(Path(place))[0] for place, *_ in os.walk(folder))


def _has_captions(folder: Path) -> bool:
    """Tells whether a picture of a folder has a caption file."""
    files = CaptionFiles()
    return any(os.path.isfile(files.of(picture)) for picture in list_pictures(folder)[0])
