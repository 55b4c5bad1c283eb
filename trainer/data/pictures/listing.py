"""Tells which files of a folder are pictures, by their extension or else by how they begin, and which are left out."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...disk.text import is_unicode
from ..naming import sentences
from .images import EXTENSIONS, HEIC_BRANDS

OTHERS = {".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".toml", ".yaml", ".yml", ".md", ".bak", ".tmp",
          ".npz", ".npy", ".pt", ".safetensors", ".zip", ".db", ".ini", ".log", ".py", ".html", ".parquet"}
"""The extensions of files that are no pictures. They are not opened."""
VIDEOS = {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".wmv", ".flv", ".mpg", ".mpeg"}
UNREAD = {".jxl", ".jxr", ".wdp", ".hdp", ".jp2", ".j2k", ".jpf", ".tga", ".psd", ".psb", ".xcf", ".exr", ".hdr",
          ".dds", ".qoi", ".ico", ".svg", ".heics", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".xbm", ".xpm", ".sgi",
          ".fits", ".pict", ".eps", ".ai", ".cdr", ".kra", ".clip", ".sai", ".ora", ".procreate", ".dng", ".cr2",
          ".cr3", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".orf", ".rw2", ".raf", ".pef", ".3fr", ".iiq", ".erf",
          ".kdc", ".dcr", ".x3f", ".crw", ".srf", ".rwl", ".mrw", ".gpr", ".mos", ".mef", ".fff"}
"""The extensions of pictures in formats that are not read."""
MOST_OPENED = 1000
"""The most files of a folder that are opened in vain because their extension does not say what they are."""
START = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]"
                   rb"|.{4}ftyp(avif|%s)" % b"|".join(HEIC_BRANDS), re.DOTALL)
"""How a picture begins in the formats that are read, by their specifications."""
FOREIGN_START = re.compile(rb"\xff\x0a|\0{3}\x0cJXL |\0{3}\x0cjP  |8BPS|gimp xcf|\x76\x2f\x31\x01|DDS |qoif|"
                           rb"II\*\0.{4}CR\x02\0|.{4}ftypcrx |FUJIFILMCCD|IIU\0|IIR[OS]|MMOR|\0MRM|"
                           rb"\xff\x4f\xff\x51|II\xbc|SIMPLE  =|CSFCHUNK|.{4}ftyp(mif1|msf1|avis)", re.DOTALL)
"""How pictures begin that are not read: JPEG XL, JPEG 2000, PSD, XCF, OpenEXR, DDS, QOI, the raw files CR2, CR3, RAF,
RW2, ORF and MRW, JPEG 2000 again, JPEG XR, FITS, Clip Studio, and HEIF or AVIF with several pictures or with a brand
that does not say which of the two it is."""


def list_pictures(place: Path) -> tuple[list[Path], list[str]]:
    """Returns the picture files of a folder, mask pictures too, by name, and sentences about those that are left out.

    Raises ValueError if the folder cannot be read."""
    seen, hidden, unsure, videos = [], [], [], []
    for entry in entries(place):
        name, kind = entry.name, os.path.splitext(entry.name)[1].lower()
        if has_extension(name):
            (hidden if name.startswith(".") else seen).append(name)
        elif kind in VIDEOS:
            videos.append(name)
        elif kind not in OTHERS and not name.startswith(".") and not entry.is_dir(follow_symlinks=False):
            unsure.append(name)
    found = _looked_at(place, unsure)
    seen = sorted([*seen, *(name for name, readable in found.items() if readable)])
    odd = [name for name in seen if not is_unicode(name)]
    broken = [name for name in seen if os.path.islink(place / name) and not os.path.exists(place / name)]
    left_out = f"in '{place.name}' left out for"
    said = sentences(
        ([name for name in hidden if re.match(r"\.[^_]", name)],  # ._cat.png is no picture: macOS adds it
         "picture", f"{left_out} a name that begins with a dot", ""),
        (odd, "picture", f"{left_out} a name that is not UTF-8", " Give it another name."),
        (broken, "picture", f"{left_out} being a link that leads nowhere", ""),
        ([name for name, readable in found.items() if readable is False],
         "picture", f"{left_out} a format that cannot be read", " Save as PNG, JPEG or WebP."),
        (videos, "video", f"in '{place.name}' left out", ""),
        (unsure[len(found):], "file", f"in '{place.name}' not looked at: so many are there without the extension of a "
         "picture", ""))
    return [place / name for name in seen if name not in odd and os.path.isfile(place / name)], said


def bases(picture: str) -> list[str]:
    """Returns by what names other files belong to a picture, the best first. The files of cat.png.download are called
    after cat, those of cat.1 after cat.1."""
    stem = os.path.splitext(picture)[0]
    own = [stem, picture] if has_extension(picture) else [picture, stem]
    return [*own, os.path.splitext(stem)[0]] if has_extension(stem) else own


def has_extension(name: str) -> bool:
    """Tells whether a name has the extension of a picture."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def entries(place: Path) -> list[os.DirEntry[str]]:
    """Returns what lies in a folder, by name. Raises ValueError if the folder cannot be read."""
    try:
        os.stat(os.path.join(place, "."))  # a folder may list its files but not let them be opened
        with os.scandir(place) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as err:
        raise ValueError(f"The folder '{place}' cannot be read ({err.strerror}). Look at its permissions.") from err


def _looked_at(place: Path, names: list[str]) -> dict[str, bool | None]:
    """Returns what `_is_picture` says of files, up to the last one of MOST_OPENED that are no pictures."""
    found, in_vain = {}, 0
    for name in names:
        if in_vain == MOST_OPENED:
            break
        found[name] = _is_picture(place / name)
        in_vain += found[name] is None
    return found


def _is_picture(path: Path) -> bool | None:
    """Returns whether a file is a picture that can be read, or None if it is no picture or cannot be opened."""
    if not os.path.isfile(path):  # a pipe is no file either, and opening it would wait for ever
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        start = b""
    foreign = path.suffix.lower() in UNREAD
    if FOREIGN_START.match(start) or (foreign and start[:2] in (b"II", b"MM")):  # cameras' raw files look like TIFF
        return False
    return bool(START.match(start)) or (False if foreign else None)
