"""Pictures of the nasty corpus that are damaged, disguised, too large, or strangely named."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from nasty_case import FORMATS, LOSS, NAMES, UNREADABLE, Case, Corpus, encoded, noise, png, rows, scene
from PIL import Image


def animated(corpus: Corpus) -> None:
    """Several pictures in a file: the first is meant."""
    others = [Image.fromarray(scene()[::-1]), Image.fromarray(scene()[:, ::-1])]
    for extension, format in {**{e: f for e, f in FORMATS.items() if f != "BMP"}, "jpg": "MPO"}.items():
        options = {"quality": 95, "subsampling": 0} if format == "MPO" else {}
        fresh = [image.copy() for image in others]  # pillow leaves settings of one format in them for the next
        content = encoded(scene(), format, save_all=True, append_images=fresh, **options)
        corpus.add(f"animated.{extension}", content, scene(), tolerance={**LOSS, "MPO": 4}.get(format, 0))
    content = encoded(scene(), "GIF", save_all=True, append_images=others)
    corpus.add("animated_cut.gif", content[:-30], scene(), tolerance=1)


def sizes(corpus: Corpus) -> None:
    """Tiny ones, long ones, and those that are too large to decode."""
    for extension, format in FORMATS.items():
        loss = 8 if format in LOSS else 0
        for name, pixels in (("dot", np.full((1, 1, 3), 200, np.uint8)), ("line", np.full((1, 500, 3), 90, np.uint8))):
            corpus.add(f"{name}.{extension}", encoded(pixels, format), pixels, tolerance=loss)
        corpus.add(f"long.{extension}", encoded(scene(12000, 80), format), scene(12000, 80), tolerance=loss)
    corpus.add("tall.png", encoded(scene(80, 12000), "PNG"), scene(80, 12000))
    corpus.add("huge.png", png(20000, 10000, 1, 0, bytes(2501 * 10000)), error="too large to open safely")
    corpus.add("large.png", png(10001, 10000, 1, 0, bytes(1252 * 10000)), error="more than 100 megapixels")
    corpus.add("claims.png", png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"), error="too large to open safely")
    corpus.add("nothing.png", png(0, 0, 8, 2, b""), error=UNREADABLE)
    corpus.add("claims.gif", b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
               error="too large to open safely")
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
    corpus.add("claims.bmp", bmp, error="too large to open safely")
    jpeg = bytearray(encoded(scene(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at:at + 4] = struct.pack(">HH", 65500, 65500)
    corpus.add("claims.jpg", bytes(jpeg), error="too large to open safely")
    text = (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(80_000_000)))
    corpus.add("text_bomb.png", png(48, 32, 8, 2, rows(scene()), text), scene(), error=UNREADABLE)


def truncated(corpus: Corpus) -> None:
    """Each format, cut off at several places."""
    pixels = noise(96, 64)
    files = {extension: encoded(pixels, format) for extension, format in FORMATS.items()}
    files |= {"progressive.jpg": encoded(pixels, "JPEG", progressive=True),
              "lzw.tif": encoded(pixels, "TIFF", compression="tiff_lzw"),
              "lossy.webp": encoded(pixels, "WEBP", lossless=False, quality=90),
              "cmyk.jpg": encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG")}
    for name, content in files.items():
        for percent in (1, 5, 20, 50, 80, 95):
            corpus.add(f"cut_{percent}.{name}", content[:max(3, len(content) * percent // 100)], error=UNREADABLE)


def damaged(corpus: Corpus) -> None:
    """Broken inside, or with too much behind."""
    good = encoded(scene(), "PNG")
    at = good.index(b"IDAT")
    corpus.add("checksum.png", good[:at + 10] + bytes([good[at + 10] ^ 1]) + good[at + 11:], error=UNREADABLE)
    corpus.add("no_pixels.png", good[:at - 4] + good[-12:], error=UNREADABLE)
    corpus.add("no_end.png", good[:-12], scene(), error=UNREADABLE)
    corpus.add("more.png", good + b"more" * 100, scene())
    jpeg = encoded(scene(), "JPEG")
    corpus.add("more.jpg", jpeg + b"more" * 100, scene(), tolerance=4)
    corpus.add("no_end.jpg", jpeg[:-2], scene(), tolerance=4, error=UNREADABLE)
    corpus.add("no_tables.jpg", jpeg.replace(b"\xff\xc4", b"\xff\xfe"), scene(), tolerance=4, error=UNREADABLE)
    corpus.add("two.jpg", jpeg + jpeg, scene(), tolerance=4)
    draw = np.random.default_rng(1)
    for number in range(20):
        place = int(draw.integers(8, len(good)))
        flipped = good[:place] + bytes([good[place] ^ (1 << int(draw.integers(8)))]) + good[place + 1:]
        corpus.add(f"flipped_{number}.png", flipped, scene(), error=UNREADABLE)
    for extension in (*NAMES, "heic", "heif"):
        corpus.add(f"empty.{extension}", b"", error="it is empty")
        corpus.add(f"text.{extension}", b"not a picture", error=UNREADABLE)
        (corpus.folder / f"folder.{extension}").mkdir()
        corpus.cases.append(Case(corpus.folder / f"folder.{extension}", error="is not a file"))


def disguised(corpus: Corpus) -> None:
    """Content of one kind under the name of another; programs and documents are not opened at all."""
    kinds = [("png", "JPEG"), ("jpg", "PNG"), ("webp", "GIF"), ("gif", "WEBP"), ("bmp", "AVIF"), ("tif", "BMP"),
             ("heic", "JPEG")]
    for extension, format in kinds:
        corpus.add(f"really_{format.lower()}.{extension}", encoded(scene(), format), scene(),
                   tolerance=LOSS.get(format, 0))
    others = {"eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
              "svg": b"<svg xmlns='x'/>", "pdf": b"%PDF-1.7\n", "html": b"<!doctype html><title>404</title>",
              "zip": b"PK\x05\x06" + bytes(18),
              "mp4": b"\0\0\0\x18ftypisom" + bytes(40), "psd": b"8BPS\0\x01" + bytes(60), "ppm": b"P6 1 1 255\nabc",
              "ico": encoded(scene(), "ICO"), "exe": b"MZ" + bytes(200),
              "lfs": b"version https://git-lfs.github.com/spec/v1\n"}
    for name, content in others.items():
        for extension in ("png", "jpg"):
            corpus.add(f"really_{name}.{extension}", content, error=UNREADABLE)


STRANGE = [
    "a name with spaces", " leading", "trailing ", "dot.", "dots..", "..two", "...", "a.b.c", "-rf", "$HOME", "#1",
    "~", "%s%n{0}{x}", "quote'\"`", "new\nline", "tab\t", "back\\slash", "*?<>|", "[a]", "a;b&c", ".hidden", "CON",
    "emoji \U0001f408\u200d\u2b1b", "\u732b\u306e\u5199\u771f", "na\u00efve", "nai\u0308ve", "rtl \u202egnp",
    "zero\u200bwidth", "n" * 251, "\u00e9" * 125]


def names(corpus: Corpus) -> None:
    """Everything that a disk takes for a name; what this one does not take is passed over."""
    content = encoded(scene(), "PNG")
    for number, name in enumerate(STRANGE):
        place = corpus.folder / f"name {number}"
        place.mkdir()
        try:
            corpus.add(f"name {number}/{name}.png", content, scene())
        except OSError:
            continue


def links(corpus: Corpus) -> None:
    """To a picture, to nothing, and to each other. Passed over where there are none."""
    folder = corpus.folder
    try:
        (folder / "link.png").symlink_to(folder / "plain.png")
    except OSError:
        return
    (folder / "nowhere.png").symlink_to(folder / "missing.png")
    (folder / "loop_a.png").symlink_to(folder / "loop_b.png")
    (folder / "loop_b.png").symlink_to(folder / "loop_a.png")
    corpus.cases.append(Case(folder / "link.png", scene()))
    for name in ("nowhere.png", "loop_a.png", "missing.png"):
        corpus.cases.append(Case(folder / name, error="is not a file"))
