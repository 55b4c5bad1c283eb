"""Pictures of the nasty corpus that are as they should be, but not what a naive reader expects."""

from __future__ import annotations

import struct

import numpy as np
from nasty_case import FORMATS, LOSS, NAMES, Corpus, Pixels, encoded, icc, png, rows, scene, srgb
from PIL import Image


def formats(corpus: Corpus) -> None:
    """Every kind of file that is read, under each of its names and in its variants."""
    for extension, format in NAMES.items():
        for name in (f"plain.{extension}", f"upper.{extension.upper()}"):
            corpus.add(name, encoded(scene(), format), scene(), tolerance=LOSS.get(format, 0))
    variants = {"progressive.jpg": ("JPEG", {"progressive": True}), "cmyk_sub.jpg": ("JPEG", {"subsampling": 2}),
                "optimized.jpg": ("JPEG", {"optimize": True}), "restart.jpg": ("JPEG", {"restart_marker_blocks": 1}),
                "lossy.webp": ("WEBP", {"lossless": False, "quality": 95}), "interlaced.gif": ("GIF", {"interlace": 1}),
                "best.png": ("PNG", {"optimize": True}), "subsampled.avif": ("AVIF", {"subsampling": "4:2:0"})}
    variants |= {f"{kind}.tif": ("TIFF", {"compression": kind})
                 for kind in ("tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "lzma", "zstd")}
    for name, (format, options) in variants.items():
        loss = 8.0 if "sub" in name or "lossy" in name else LOSS.get(format, 0)
        corpus.add(name, encoded(scene(), format, **options), scene(), tolerance=loss)


TURNED = {1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
          5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, 1), 7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
          8: lambda p: np.rot90(p, -1)}
"""EXIF orientation → how an upright picture lies in the file (JEITA CP-3451, 4.6.4: what row 0 and column 0 show)."""


def orientations(corpus: Corpus) -> None:
    """All eight in every format that has them, and EXIF data that is none."""
    for format, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif")):
        for number, lie in TURNED.items():
            exif = Image.Exif()
            exif[0x0112] = number
            options = {"tiffinfo": {274: number}} if format == "TIFF" else {"exif": exif.tobytes()}
            content = encoded(np.ascontiguousarray(lie(scene())), format, **options)
            corpus.add(f"turned_{number}.{extension}", content, scene(), tolerance=LOSS.get(format, 0))
    good = Image.Exif()
    good[0x0112] = 6
    wrong = {"short": good.tobytes()[:14], "noise": b"Exif\0\0" + bytes(range(200)), "empty": b"Exif\0\0",
             "endless": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40,
             "loop": b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0"}
    for number in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = number
        wrong[str(number)] = exif.tobytes()
    for name, data in wrong.items():
        for format, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
            corpus.add(f"exif_{name}.{extension}", encoded(scene(), format, exif=data), scene(),
                       tolerance=LOSS.get(format, 0))


def whitened(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Over white."""
    part = alpha[..., None] / 255
    return pixels * part + 255 * (1 - part)


def modes(corpus: Corpus) -> None:
    """Other channels and depths. Of a grey picture all three channels are alike."""
    image, ramp = Image.fromarray(scene()), np.linspace(0, 255, 48 * 32).reshape(32, 48)
    grey, alpha = np.round(ramp).astype(np.uint8), np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))
    three = np.repeat(grey[..., None], 3, axis=2)
    for extension, format in FORMATS.items():
        corpus.add(f"grey.{extension}", encoded(Image.fromarray(grey), format), three, tolerance=LOSS.get(format, 0))
    bits = Image.fromarray(grey > 127)
    for extension, format in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP"), ("gif", "GIF")):
        corpus.add(f"one_bit.{extension}", encoded(bits, format), (three > 127) * 255.0)
    rgba = np.dstack([scene(), alpha])
    for extension, format in (("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"), ("avif", "AVIF")):
        options = {"exact": True} if format == "WEBP" else {}
        corpus.add(f"alpha.{extension}", encoded(Image.fromarray(rgba), format, **options), whitened(scene(), alpha),
                   tolerance=max(0.6, LOSS.get(format, 0)))
    corpus.add("grey_alpha.png", encoded(Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha))), "PNG"),
               whitened(three, alpha), tolerance=0.6)
    palette = image.quantize(4)
    clear = palette.getpixel((0, 0))
    shown = scene().copy()
    shown[:16, :24] = 255
    for extension, format in (("png", "PNG"), ("gif", "GIF")):
        corpus.add(f"palette.{extension}", encoded(palette, format), scene(), tolerance=1)
        corpus.add(f"palette_clear.{extension}", encoded(palette, format, transparency=clear), shown, tolerance=1)
    table = bytes(255 if i != clear else 0 for i in range(4))
    corpus.add("palette_alpha.png", encoded(palette, "PNG", transparency=table), shown, tolerance=1)
    corpus.add("color_key.png", encoded(image, "PNG", transparency=(200, 40, 40)), shown)
    corpus.add("grey_key.png", encoded(Image.fromarray(grey), "PNG", transparency=0), np.where(three == 0, 255, three))
    deep(corpus, ramp)
    ink(corpus)


def deep(corpus: Corpus, ramp: Pixels) -> None:
    """16 bits and more. What 16 bits of grey show is the ramp itself."""
    sixteen = np.round(ramp * 257).astype(np.uint16)
    three = np.repeat(ramp[..., None], 3, axis=2)
    corpus.add("deep_grey.png", encoded(Image.fromarray(sixteen), "PNG"), three, tolerance=0.6)
    corpus.add("deep_grey.tif", encoded(Image.fromarray(sixteen), "TIFF"), three, tolerance=0.6)
    big = Image.frombytes("I;16B", (48, 32), sixteen.astype(">u2").tobytes())
    corpus.add("deep_grey_big_endian.tif", encoded(big, "TIFF"), three, tolerance=0.6)
    corpus.add("deep_grey_key.png", png(48, 32, 16, 0, rows(sixteen), (b"tRNS", struct.pack(">H", 0))),
               np.where(np.repeat(sixteen[..., None], 3, axis=2) == 0, 255, three), tolerance=0.6)
    colors = scene().astype(np.uint16) * 257
    corpus.add("deep_color.png", png(48, 32, 16, 2, rows(colors)), scene())
    key = struct.pack(">3H", *colors[0, 0])
    shown = scene().copy()
    shown[:16, :24] = 255
    corpus.add("deep_color_key.png", png(48, 32, 16, 2, rows(colors), (b"tRNS", key)), shown)
    alpha = np.tile(np.arange(48, dtype=np.uint16) * 5, (32, 1))
    corpus.add("deep_alpha.png", png(48, 32, 16, 6, rows(np.dstack([colors, alpha * 257]))), whitened(scene(), alpha),
               tolerance=0.6)
    corpus.add("deep_grey_alpha.png", png(48, 32, 16, 4, rows(np.dstack([sixteen, alpha * 257]))),
               whitened(three, alpha), tolerance=0.9)
    for depth in (2, 4):
        levels = np.tile(np.arange(48) % 2**depth, (32, 1))
        bits = np.unpackbits(levels.astype(np.uint8)[..., None], axis=2)[..., -depth:]
        packed = np.packbits(bits.reshape(32, -1), axis=1)
        corpus.add(f"grey_{depth}_bit.png", png(48, 32, depth, 0, rows(packed[..., None])),
                   np.repeat(levels[..., None] * 255 / (2**depth - 1), 3, axis=2))
    for name, samples, error in (("floating.tif", (ramp / 255).astype(np.float32), "floating-point"),
                                 ("thirty_two.tif", (ramp * 8421504).astype(np.int32), "more than 16 bits"),
                                 ("negative.tif", ramp.astype(np.int32) - 9, "more than 16 bits")):
        corpus.add(name, encoded(Image.fromarray(samples), "TIFF"), error=error)


def ink(corpus: Corpus) -> None:
    """CMYK without a profile: light is what no ink takes away, (255 - C)(255 - K) ÷ 255."""
    inks = np.zeros((32, 48, 4), np.uint8)
    inks[:, :24], inks[:, 24:] = (200, 40, 10, 30), (0, 90, 220, 60)
    light = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    image = Image.fromarray(inks, "CMYK")
    for extension, format in (("jpg", "JPEG"), ("tif", "TIFF")):
        corpus.add(f"ink.{extension}", encoded(image, format), light, tolerance=2.0)
        other = encoded(image, format, icc_profile=icc(b"RGB ", 1.0))
        corpus.add(f"ink_profile.{extension}", other, light, tolerance=2.0)
    corpus.add("ycbcr.tif", encoded(Image.fromarray(scene()).convert("YCbCr"), "TIFF"), scene(), tolerance=2)
    corpus.add("lab.tif", encoded(Image.new("LAB", (48, 32)), "TIFF"), error="conversion from LAB")


def profiles(corpus: Corpus) -> None:
    """ICC profiles that say what the numbers mean, and some that say nothing."""
    pixels = scene()
    light = srgb(pixels / 255.0)
    for extension, format in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("tif", "TIFF"), ("avif", "AVIF")):
        loss = 2 * LOSS.get(format, 0) + 1.5
        corpus.add(f"linear.{extension}", encoded(pixels, format, icc_profile=icc(b"RGB ", 1.0)), light, tolerance=loss)
        corpus.add(f"profile_broken.{extension}", encoded(pixels, format, icc_profile=b"no profile" * 20), pixels,
                   tolerance=LOSS.get(format, 0))
        corpus.add(f"profile_short.{extension}", encoded(pixels, format, icc_profile=icc(b"RGB ", 1.0)[:150]), pixels,
                   tolerance=LOSS.get(format, 0))
    swapped = encoded(pixels, "PNG", icc_profile=icc(b"RGB ", 1.0, (1, 2, 0)))  # its red is green, its green is blue
    corpus.add("swapped.png", swapped, light[..., [2, 0, 1]], tolerance=1.5)
    grey = np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))
    three = np.repeat(grey[..., None], 3, axis=2)
    corpus.add("linear_grey.png", encoded(Image.fromarray(grey), "PNG", icc_profile=icc(b"GRAY", 1.0)),
               srgb(three / 255.0), tolerance=1.5)
    corpus.add("profile_of_colors.png", encoded(Image.fromarray(grey), "PNG", icc_profile=icc(b"RGB ", 1.0)), three)
    corpus.add("profile_of_greys.png", encoded(pixels, "PNG", icc_profile=icc(b"GRAY", 1.0)), pixels)
    clear = np.dstack([pixels, np.full((32, 48), 255, np.uint8)])
    clear[:16, :24, 3] = 0
    shown = light.copy()
    shown[:16, :24] = 255
    corpus.add("linear_clear.png", encoded(Image.fromarray(clear), "PNG", icc_profile=icc(b"RGB ", 1.0)), shown,
               tolerance=1.5)
