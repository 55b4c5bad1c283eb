"""Reads pictures from disk: opens and checks them, turns them upright, puts them on white, cuts them to size.

pillow decodes them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, features
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from .augment import View, recolor

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
"""The formats that are read, by pillow's names. pillow reads others too, but its reader of EPS, for example, starts
another program."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
"""How a HEIC file begins, after its first 8 bytes (ISO/IEC 23008-12, B.4)."""
MAX_PIXELS = 100_000_000
"""The most pixels of a picture. Larger ones are refused: decoded, they would fill the memory (100 megapixels are 300
MB)."""
MAX_BYTES = 10 * MAX_PIXELS
"""The most bytes of a picture's file. Larger ones are refused unread. A pixel with 16 bits of red, green, blue and
alpha has 8 bytes."""
NEW_SUBFILE_TYPE = 254
"""The tag of a TIFF whose lowest bit says that it shows another one at a lower resolution (TIFF 6.0, section 8)."""
EDGE = 512
"""The edge in pixels of the square whose area a picture is scaled to before its sharpness is measured."""
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}
"""The change that turns a picture upright, by EXIF's Orientation."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Holds what is known of a picture without looking at it again."""

    size: tuple[int, int]
    """The width and height in pixels, turned upright."""
    digest: str
    """SHA-256 of the file."""
    perceptual_hash: int
    """64 bits, as the function `difference_hash` finds them."""
    sharpness: float
    """The sharpness, as the function `sharpness` measures it."""
    transparent: bool
    """Whether any pixel is transparent."""


def examine(path: Path) -> Facts:
    """Returns the facts of a picture. It is read once and decoded as a whole, a JPEG at a lower resolution, which finds
    damage as well.

    Raises ValueError that says what is wrong with it and what to do."""
    data = read(path)
    with naming(path), _opened(path, data) as image:
        width, height = image.size
        scale = EDGE / math.sqrt(width * height)
        small = max(1, round(width * scale)), max(1, round(height * scale))
        image.draft("L", small)  # only a JPEG can be decoded smaller
        image.load()
        _check(image, data)
        orientation, shown = _orientation(image), _eight_bits(image)
        transparent = shown.has_transparency_data and cast("tuple[int, int]", _alpha(shown).getextrema())[0] < 255
        grey = _as("L", on_page(shown, "white")).resize(small, Image.Resampling.BILINEAR, reducing_gap=2.0)
        return Facts((height, width) if orientation >= 5 else (width, height), hashlib.sha256(data).hexdigest(),
                     difference_hash(_turned(grey, orientation)), sharpness(grey), transparent)


def difference_hash(grey: Image.Image) -> int:
    """Returns 64 bits that say where a picture becomes brighter to the right. Few differ where pictures look alike.

    dHash, as in Krawetz, "Kind of Like That", 2013, https://www.hackerfactor.com/blog/?/archives/529-Kind-of-Like-That
    .html"""
    pixels = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    return int("".join("01"[brighter] for brighter in (pixels[:, 1:] > pixels[:, :-1]).flatten().tolist()), 2)


def sharpness(grey: Image.Image) -> float:
    """Returns the variance of the Laplacian. It is low where nothing has an edge. Compare only pictures of one size.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR 2000."""
    y = np.asarray(grey).astype(np.int16)
    if min(y.shape) < 3:
        return 0.0
    laplacian = -4 * y[1:-1, 1:-1]
    for neighbour in (y[:-2, 1:-1], y[2:, 1:-1], y[1:-1, :-2], y[1:-1, 2:]):
        laplacian += neighbour
    return float(laplacian.var())


def load(path: Path, bucket: tuple[int, int], view: View = View()) -> Tensor:  # noqa: B008 - it is immutable
    """Returns a picture (h, w, 3) in 0…1, scaled to cover `bucket` (width, height) and cut to it as `view` says.

    It is in sRGB, and transparent parts become white. Raises ValueError as `examine` does."""
    data = read(path)
    with naming(path):
        image = upright(path, data)
        pixels = _cut(_to_srgb(_plain(image), image.info.get("icc_profile")), bucket, view)
    if view.color:
        shown = recolor(Image.fromarray(pixels.numpy()), hashlib.sha256(data).hexdigest(), view.color)
        pixels = torch.from_numpy(np.array(shown))
    return pixels.float().div_(255)


def read(path: Path) -> bytes:
    """Returns the content of a picture's file. Raises ValueError if it cannot be a picture."""
    try:
        if not path.is_file():
            raise ValueError(f"{path.name} is not a file. Take it away, or put the picture there.")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.name} has {path.stat().st_size / 2**30:.1f} GB, more than a picture of "
                             f"{MAX_PIXELS // 10**6} megapixels needs. Make it smaller.")
        if data := path.read_bytes():
            return data
        raise ValueError(f"{path.name} cannot be read as a picture (it is empty). Replace it.")
    except OSError as err:
        raise ValueError(f"{path.name} cannot be read ({err.strerror}). Check that you can open it.") from err


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong with a picture into a ValueError that names it."""
    try:
        yield
    except Image.DecompressionBombError as err:
        raise ValueError(f"{path.name} is too large to open safely ({err}). Make it smaller.") from err
    except Exception as err:  # pillow's decoders raise nearly every kind of error for a broken file
        if isinstance(err, ValueError) and str(err).startswith(path.name):
            raise
        what = str(err) or type(err).__name__
        raise ValueError(f"{path.name} cannot be read as a picture ({what}). Replace it or save it anew.") from err


def upright(path: Path, data: bytes) -> Image.Image:
    """Decodes a picture from its file's content and turns it as its EXIF data says. It has 8 bits a channel."""
    with _opened(path, data) as image:
        image.load()
        return _turned(_eight_bits(image), _orientation(image))


def on_page(image: Image.Image, color: str) -> Image.Image:
    """Returns a picture with `color` where it is transparent."""
    if not image.has_transparency_data:
        return image
    page = Image.new("RGBA", image.size, color)
    page.alpha_composite(image.convert("RGBA"))
    return page


def box(size: tuple[int, int], bucket: tuple[int, int], view: View) -> tuple[int, int, int, int]:
    """Returns the part of a picture of `size` (width, height) that is scaled to `bucket`: left, top, right and bottom
    in its pixels."""
    scale = min(size[0] / bucket[0], size[1] / bucket[1])
    width, height = max(1, round(bucket[0] * scale)), max(1, round(bucket[1] * scale))
    left, top = round((size[0] - width) * view.x), round((size[1] - height) * view.y)
    return left, top, left + width, top + height


def _cut(image: Image.Image, bucket: tuple[int, int], view: View) -> Tensor:
    """Returns the pixels of an RGB picture, cut and scaled, (h, w, 3) uint8. The filter is bicubic and antialiased as
    pillow's is, but several times faster."""
    left, top, right, bottom = box(image.size, bucket, view)
    pixels = torch.from_numpy(np.array(image))[top:bottom, left:right]
    if (right - left, bottom - top) != bucket:
        pixels = torch.nn.functional.interpolate(pixels.permute(2, 0, 1)[None], size=(bucket[1], bucket[0]),
                                                 mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    return (pixels.flip(1) if view.flip else pixels).contiguous()


def _opened(path: Path, data: bytes) -> Image.Image:
    """Opens a picture without decoding it. Its content tells what it is, not its name. Raises ValueError if its format
    cannot be read, or if it has too many pixels."""
    brand = data[4:12].removeprefix(b"ftyp")
    if brand in HEIC_BRANDS and not _can_heic():
        raise ValueError(f"{path.name} is a HEIC picture, which needs the Python package pillow-heif. Install it (pip "
                         "install pillow-heif) and restart ComfyUI, or save the picture as JPEG or PNG.")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=known)
    except Image.UnidentifiedImageError as err:
        if brand == b"avif" and not features.check("avif"):
            raise ValueError(f"{path.name} is an AVIF picture, which this pillow cannot read. Update it (pip install "
                             "-U pillow) and restart ComfyUI, or save the picture as JPEG or PNG.") from err
        raise ValueError(f"its content is none of {', '.join(known)}") from err
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{path.name} is {image.width}×{image.height} pixels, more than {MAX_PIXELS // 10**6} "
                         "megapixels. Make it smaller: training scales it down anyway.")
    return image


def _check(image: Image.Image, data: bytes) -> None:
    """Raises ValueError for damage that pillow passes over, and for a raw file of a camera, of which pillow reads the
    preview. pillow does not look at the checksums of a PNG's pixels, nor for the end of a JPEG if another custom node
    has set LOAD_TRUNCATED_IMAGES."""
    if isinstance(image, TiffImageFile) and image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1:
        raise ValueError("it is a small preview of another picture, as raw files of cameras have. Develop it, and save "
                         "it as JPEG or PNG")
    format = image.format
    if format == "PNG":
        offset = 8
        while offset + 12 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, offset)
            end = offset + 8 + length
            checksum = struct.pack(">I", zlib.crc32(memoryview(data)[offset + 4:end]))
            if kind[:1].isupper() and checksum != data[end:end + 4]:
                raise ValueError(f"it is damaged: the checksum of its {kind.decode('latin-1')} is wrong")
            if kind == b"IEND":
                return
            offset = end + 4
    elif ImageFile.LOAD_TRUNCATED_IMAGES and format in ("JPEG", "MPO"):
        if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise ValueError("image file is truncated")


def _can_heic() -> bool:
    """Registers pillow-heif with pillow and returns True, or returns False if it is not installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    importlib.import_module("pillow_heif").register_heif_opener()
    return True


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's Orientation, 1 to 8. It is 1 if there is no such number or the EXIF data is broken."""
    with contextlib.suppress(Exception):  # broken data raises errors of many kinds, and the picture can still be good
        found = image.getexif().get(0x0112)
        return found if found in TURNS else 1
    return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns a picture with 8 bits a channel. 16-bit greys are scaled. pillow's `convert` would clip them, which makes
    most of them white. Raises ValueError for floating-point numbers or more than 16 bits."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and nothing says which of them is white. Save it with "
                         "8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    deep = np.asarray(image)
    if deep.size and not (deep.min() >= 0 and deep.max() <= 65535):
        raise ValueError("its pixels have more than 16 bits. Save it with 8 or 16 bits")
    grey = Image.fromarray((deep / 257).round().astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8))))
    grey.info |= {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _plain(image: Image.Image) -> Image.Image:
    """Returns a picture on white, in the colour space of its profile: grey, RGB or CMYK."""
    mode = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    return _as(mode, on_page(image, "white"))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Turns a grey, RGB or CMYK picture into sRGB. A profile that is broken or meant for other modes counts as none."""
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            known: Any = source.profile
            if not (known.profile_description or "").startswith("sRGB"):
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    return _as("RGB", image)


def _as(mode: str, image: Image.Image) -> Image.Image:
    """Does what pillow's `convert` does, but makes no copy where nothing is to be done."""
    return image if image.mode == mode else image.convert(mode)
