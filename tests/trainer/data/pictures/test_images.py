"""What is known of a picture, and how it is cut. Whether every kind of file is read rightly: test_nasty.py."""

from __future__ import annotations

import hashlib
import importlib.util

import numpy as np
import pytest
from livelora.trainer.data.pictures import images
from livelora.trainer.data.pictures.augment import View
from nasty_case import encoded, noise, scene
from PIL import Image, ImageFile, ImageFilter, ImageOps
from scipy import ndimage


def landscape(width=800, height=600, seed=0) -> Image.Image:
    """Smooth hills and some grain."""
    draw = np.random.default_rng(seed)
    hills = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    hills = hills.resize((width, height), Image.Resampling.BICUBIC)
    grain = draw.normal(0, 12, (height, width, 3))
    return Image.fromarray((np.asarray(hills, float) + grain).clip(0, 255).astype(np.uint8))


def saved(image, path, **options):
    image.save(path, **options)
    return path


def bits_apart(one, other) -> int:
    return (images.examine(one).perceptual_hash ^ images.examine(other).perceptual_hash).bit_count()


def test_the_difference_hash_is_what_its_description_says():
    """Krawetz 2013: 9 × 8 greys; a bit for each pair of neighbours, here 1 where it becomes brighter, row by row."""
    greys = np.tile(np.array([0, 10, 5, 5, 9, 200, 100, 101, 0], np.uint8), (8, 1))
    greys[7] = range(9)
    row = 0b10011010  # +, -, =, +, +, -, +, -
    row = int("".join("1" if b > a else "0" for a, b in zip(greys[0], greys[0][1:], strict=False)), 2)
    assert format(row, "08b") == "10011010"
    expected = sum(row << 8 * place for place in range(1, 8)) + 0b11111111
    assert images.difference_hash(Image.fromarray(greys)) == expected


def test_pictures_that_look_alike_have_hashes_that_are_alike(tmp_path):
    """Another format, size and brightness: under 8 of 64 bits. Another picture: half of them, more or less."""
    picture = landscape()
    one = saved(picture, tmp_path / "a.png")
    assert bits_apart(one, saved(picture, tmp_path / "a.jpg", quality=70)) < 8
    assert bits_apart(one, saved(picture.resize((333, 250)), tmp_path / "small.webp")) < 8
    assert bits_apart(one, saved(picture.point(lambda v: v * 0.8), tmp_path / "dark.png")) < 8
    assert bits_apart(one, saved(landscape(seed=1), tmp_path / "b.png")) > 16
    assert bits_apart(one, saved(ImageOps.mirror(picture), tmp_path / "mirrored.png")) > 16


def test_the_hash_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = landscape()
    lying = saved(upright.transpose(Image.Transpose.ROTATE_90), tmp_path / "lying.png", exif=exif)
    assert images.examine(lying).size == (800, 600)
    assert bits_apart(lying, saved(upright, tmp_path / "upright.png")) <= 1


def test_sharpness_is_the_variance_of_the_laplacian():
    """scipy's Laplacian is the same five-point one."""
    grey = landscape(100, 60).convert("L")
    expected = ndimage.laplace(np.asarray(grey, float))[1:-1, 1:-1].var()
    assert images.sharpness(grey) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_blurred_picture_is_less_sharp_whatever_its_size(tmp_path, name):
    sharp, blurred = [], []
    for scale in (1, 2, 3):
        picture = landscape().resize((800 * scale, 600 * scale), Image.Resampling.BICUBIC)
        sharp.append(images.examine(saved(picture, tmp_path / name)).sharpness)
        soft = picture.filter(ImageFilter.GaussianBlur(4 * scale))
        blurred.append(images.examine(saved(soft, tmp_path / name)).sharpness)
    assert max(blurred) * 5 < min(sharp)
    assert max(sharp) < 2 * min(sharp)


def test_the_digest_is_the_files(tmp_path):
    path = saved(landscape(), tmp_path / "a.jpg")
    assert images.examine(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("color", "expected"), [((9, 9, 9, 255), False), ((9, 9, 9, 254), True), ((9, 9, 9, 0), True)])
def test_only_what_shows_through_is_transparent(tmp_path, color, expected):
    assert images.examine(saved(Image.new("RGBA", (8, 8), color), tmp_path / "a.png")).transparent == expected


@pytest.mark.parametrize(("size", "bucket"), [((800, 600), (384, 288)), ((801, 533), (256, 256)),
                                              ((90, 130), (192, 256))])
def test_a_picture_is_scaled_as_pillow_scales_it(tmp_path, size, bucket):
    """Its bicubic filter, around the centre. The cut is by whole pixels, and the rounding differs here and there."""
    picture = landscape(*size)
    expected = np.asarray(ImageOps.fit(picture, bucket, Image.Resampling.BICUBIC), float)
    got = images.load(saved(picture, tmp_path / "a.png"), bucket).numpy() * 255
    assert got.shape == expected.shape and np.abs(got - expected).mean() < 2.5
    exact = picture.crop(images.box(size, bucket, View())).resize(bucket, Image.Resampling.BICUBIC)
    assert np.abs(got - np.asarray(exact, float)).max() <= 2


def test_a_view_is_cut_where_it_says_and_mirrored(tmp_path):
    """Of 96 × 32, columns 0 … 31, 64 … 95, and 32 … 63 are what 32 × 32 shows at x = 0, 1 and 0.5."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 96, 3), dtype=np.uint8)
    path = saved(Image.fromarray(picture), tmp_path / "a.png")
    for x, left in ((0.0, 0), (1.0, 64), (0.5, 32)):
        part = picture[:, left:left + 32] / np.float32(255)
        assert np.array_equal(images.load(path, (32, 32), View(x=x)).numpy(), part)
        assert np.array_equal(images.load(path, (32, 32), View(x=x, flip=True)).numpy(), part[:, ::-1])
    tall = saved(Image.fromarray(picture.transpose(1, 0, 2)), tmp_path / "tall.png")
    part = picture[:, :32].transpose(1, 0, 2) / np.float32(255)
    assert np.array_equal(images.load(tall, (32, 32), View(y=0.0)).numpy(), part)


def test_another_node_cannot_make_cut_off_pictures_pass(tmp_path, monkeypatch):
    """LOAD_TRUNCATED_IMAGES is pillow's and global, and some custom nodes set it."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name, format in (("a.jpg", "JPEG"), ("a.png", "PNG")):
        content = encoded(noise(96, 64), format)
        (tmp_path / name).write_bytes(content)
        assert images.examine(tmp_path / name).size == (96, 64)
        (tmp_path / name).write_bytes(content[:len(content) // 2])
        with pytest.raises(ValueError, match=name):
            images.examine(tmp_path / name)


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_of_a_raw_file_the_preview_is_refused_whatever_the_file_is_called(tmp_path, kind):
    """Its lowest bit says that it shows another picture in small; the next one, that it is one of several pages."""
    Image.new("RGB", (160, 120)).save(tmp_path / "a", "TIFF", tiffinfo={254: kind})
    if kind & 1:
        with pytest.raises(ValueError, match=r"a cannot be read as a picture \(it is a small preview of another"):
            images.examine(tmp_path / "a")
    else:
        assert images.examine(tmp_path / "a").size == (160, 120)


def test_heic_without_its_package_says_which_one(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # stands for a machine without it
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(ValueError, match=r"photo\.jpg is a HEIC picture.*pip install pillow-heif"):
        images.examine(tmp_path / "photo.jpg")


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_read_with_its_package(tmp_path, orientation):
    """As phones write it, which turn pictures by a property of the file and say so in EXIF as well."""
    importlib.import_module("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(scene())
    jpeg = saved(lying, tmp_path / "photo.jpg", exif=exif.tobytes(), quality=95)
    heic = saved(lying, tmp_path / "photo.heic", format="HEIF", exif=exif.tobytes(), quality=95)
    size = images.examine(jpeg).size
    assert images.examine(heic).size == size
    difference = images.load(heic, size) - images.load(jpeg, size)
    assert difference.abs().mean() * 255 < 6
