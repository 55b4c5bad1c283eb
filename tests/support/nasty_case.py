"""What the nasty corpus is made with: cases, and files written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Pixels = np.ndarray
UNREADABLE = "cannot be read as a picture"


@dataclass(frozen=True)
class Case:
    """One nasty picture."""

    path: Path
    pixels: Pixels | None = None
    """Upright, (h, w, 3) in 0…255, made without the code under test."""
    error: str = ""
    """What its error says, beside the file's name. With `pixels`: it may be refused with this, too."""
    tolerance: float = 0.0
    """Mean difference from `pixels`: some formats lose something."""


def scene(width: int = 48, height: int = 32) -> Pixels:
    """Four quarters of different colours, so that no turn looks like another."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:height // 2, :width // 2], pixels[:height // 2, width // 2:] = (200, 40, 40), (40, 200, 40)
    pixels[height // 2:, :width // 2], pixels[height // 2:, width // 2:] = (40, 40, 200), (220, 220, 220)
    return pixels


def noise(width: int, height: int) -> Pixels:
    """Does not compress."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | Pixels, format: str, **options) -> bytes:
    """By pillow, with as little loss as the format has."""
    best = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, format, **{**best.get(format, {}), **options})
    return file.getvalue()


LOSS = {"JPEG": 4.0, "AVIF": 6.0, "GIF": 1.0}
NAMES = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF",
         "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF"}
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tif": "TIFF", "avif": "AVIF"}


class Corpus:
    """Writes files into a folder and remembers what is to be expected of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Case] = []

    def add(self, name: str, content: bytes, pixels: Pixels | None = None, **expected) -> None:
        """A file; its pixels, or its error."""
        path = self.folder / name
        assert not path.exists(), name
        path.write_bytes(content)
        self.cases.append(Case(path, pixels, **expected))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by the book (ISO/IEC 15948): `rows` with a filter byte each; `chunks` go before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    everything = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in everything)


def rows(samples: Pixels) -> bytes:
    """Big-endian samples (h, w, channels), unfiltered."""
    return b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples)


def icc(space: bytes, gamma: float, order: tuple[int, int, int] = (0, 1, 2)) -> bytes:
    """A profile of version 2 (ICC.1:2001-04) with sRGB's primaries, in another order, and a plain gamma."""
    primaries = [(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]  # under D50

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78 + 1),
            b"cprt": b"text\0\0\0\0none\0\0\0\0",
            b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, place in zip("rgb", order, strict=True):
            tags[f"{name}XYZ".encode()], tags[f"{name}TRC".encode()] = xyz(primaries[place]), curve
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(struct.pack(">i", round(v * 65536)) for v in (0.9642, 1.0, 0.8249))
    return head.ljust(128, b"\0") + table + body


def srgb(linear: Pixels) -> Pixels:
    """Linear light 0…1 → sRGB 0…255 (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055) * 255
