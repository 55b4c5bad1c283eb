"""What counts is what the mask shows, cut as the image is cut; a mask that cannot be meant is refused."""

from __future__ import annotations

import hashlib
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reading
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.data.pictures import images, masks
from livelora.trainer.data.pictures.augment import Augment, View
from livelora.trainer.data.pictures.listing import bases, list_pictures
from livelora.trainer.data.sources.folder import with_masks
from PIL import Image

WIDE = (96, 32)
"""Trained at 32 × 32 it is cut to the columns 32 to 64; at a resolution of 64 it becomes 112 × 32."""


def picture(path, size=WIDE, color="red", white=None, **options):
    """A picture with a white box (left, top, right, bottom)."""
    image = Image.new("RGB" if isinstance(color, str) else "RGBA", size, color)
    if white:
        image.paste("white", white)
    image.save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("ohwx")
    return tmp_path


def read(folder, **options):
    return reading.read(folder, **{"masks": "use", **options})


def refusal(folder, **options) -> str:
    with pytest.raises(ValueError) as caught:
        read(folder, **options)
    return str(caught.value)


def test_masks_are_found_in_their_order(folder):
    """OneTrainer's name, then the other one, then transparency, then none."""
    picture(folder / "cat.png", color=(255, 0, 0, 128))
    picture(folder / "cat_mask.png", color="white")
    picture(folder / "cat-masklabel.png", color="gray")
    assert read(folder).items[0].mask == folder / "cat-masklabel.png"
    (folder / "cat-masklabel.png").unlink()
    assert read(folder).items[0].mask == folder / "cat_mask.png"
    (folder / "cat_mask.png").unlink()
    assert read(folder).items[0].mask == folder / "cat.png"
    picture(folder / "cat.png", color=(255, 0, 0, 255))
    assert read(folder).items[0].mask is None


@pytest.mark.parametrize("setting", ["ignore", "use"])
@pytest.mark.parametrize("name", ["cat_mask.png", "cat-masklabel.png", "cat_mask.PNG"])
def test_a_mask_picture_is_no_training_image(folder, setting, name):
    picture(folder / name, color="white")
    assert [i.path.name for i in read(folder, masks=setting).items] == ["cat.png"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.sampled_from(["a", "Photo", "José", "É 2", "v1.5"]), st.sampled_from([*masks.SUFFIXES, "mask/", "Masks/"]),
       st.sampled_from([".png", ".jpg", ".WEBP", ".bmp", ".png.download"]), st.sampled_from(["NFC", "NFD"]),
       st.sampled_from([str, str.upper, str.lower]), st.data())
def test_a_mask_is_a_mask_however_its_name_is_written(tmp_path, stem, kind, extension, form, case, data):
    """It is called after its picture as a caption is: cat.png.download has cat.txt and cat_mask.png."""
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    image = place / (stem + data.draw(st.sampled_from([".jpg", ".jpg.png", ".png.download", ".1"])))
    base = data.draw(st.sampled_from(sorted({stem, *bases(image.name)})) if image.suffix != ".1" else
                     st.just(image.name))
    written = case(unicodedata.normalize(form, base if kind.endswith("/") else base + kind)) + extension
    mask = (place / kind if kind.endswith("/") else place) / written
    mask.parent.mkdir(exist_ok=True)
    for path in (image, mask):
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert with_masks(place, list_pictures(place)[0])[0] == {image: (mask,)}


def test_each_of_several_pictures_has_the_mask_of_its_whole_name(tmp_path):
    (tmp_path / "mask").mkdir()
    names = ("img.1", "img.2", "a.jpg", "a.jpg.png")
    for name in names:
        for folder in (tmp_path, tmp_path / "mask"):
            (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    found = masks.beside(tmp_path, [tmp_path / name for name in names])[0]
    assert {image.name: own[0].name for image, own in found.items()} == {name: name for name in names}


def test_masks_above_the_folder_of_their_images_are_told(folder):
    (folder / "mask").mkdir()
    (folder / "10_dogs").mkdir()
    picture(folder / "10_dogs" / "dog.png")
    (folder / "10_dogs" / "dog.txt").write_text("a dog")
    picture(folder / "mask" / "dog.png", color="white")
    for _ in ("cat.png is there", "and then no more"):
        assert "1 mask in 'mask' not used, because no image has that name: dog.png." in read(folder).skipped
        (folder / "cat.png").unlink(missing_ok=True)
        (folder / "cat.txt").unlink(missing_ok=True)


def test_of_masks_in_several_writings_the_exact_one_counts_and_none_is_trained(folder):
    near = [picture(folder / name, color="white") for name in ("cat_mask.png", "cat_mask.jpg", "Cat_Mask.png")]
    assert with_masks(folder, list_pictures(folder)[0])[0] == {folder / "cat.png": tuple(near)}
    near[0].unlink()
    near[1].unlink()
    picture(folder / "CAT_mask.webp", color="white")
    assert "There is no cat_mask, but CAT_mask, Cat_Mask" in refusal(folder)


def test_a_mask_that_is_exactly_another_images_is_only_that_ones(folder):
    other, mask = picture(folder / "CAT.png"), picture(folder / "cat_mask.png", color="white")
    assert with_masks(folder, list_pictures(folder)[0])[0] == {folder / "cat.png": (mask,), other: ()}


@pytest.mark.parametrize("setting", ["ignore", "use"])
def test_an_image_that_is_only_called_a_mask_is_trained(tmp_path, setting):
    picture(tmp_path / "wolf_mask.png")
    (tmp_path / "wolf_mask.txt").write_text("a mask of a wolf")
    assert [(i.path.name, i.mask) for i in read(tmp_path, masks=setting).items] == [("wolf_mask.png", None)]


def test_a_mask_in_another_folder_is_not_an_images_mask(folder):
    (folder / "2_dogs").mkdir()
    picture(folder / "2_dogs" / "cat_mask.png")
    (folder / "2_dogs" / "cat_mask.txt").write_text("a mask of a cat")
    assert [(i.path.name, i.mask) for i in read(folder).items] == [("cat.png", None), ("cat_mask.png", None)]


def test_ignored_masks_change_nothing_and_are_reported(folder):
    plain = read(folder, masks="ignore").fingerprint()
    picture(folder / "cat_mask.png", color="white")
    dataset = read(folder, masks="ignore")
    assert dataset.fingerprint() == plain and dataset.items[0].mask is None
    assert dataset.skipped == ("1 mask picture, because masks is 'ignore': cat_mask.png",)
    assert read(folder).items[0].mask and not read(folder).skipped


def test_the_fingerprint_follows_the_masks_content(folder):
    found = {read(folder).fingerprint()}
    for color in ("white", "gray", "white"):
        picture(folder / "cat_mask.png", color=color)
        found.add(read(folder).fingerprint())
    assert len(found) == 3
    (folder / "cat_mask.png").unlink()
    picture(folder / "cat.png", color=(255, 0, 0, 128))
    assert read(folder).fingerprint() != read(folder, masks="ignore").fingerprint()


def item_of(folder, bucket):
    """The one image, at another size."""
    [item] = read(folder).items
    return replace(item, bucket=bucket)


def test_a_mask_is_cut_around_its_centre(folder):
    """The middle third of the columns is what remains of 96 × 32 at 32 × 32."""
    picture(folder / "cat_mask.png", color="black", white=(32, 0, 64, 16))
    mask = item_of(folder, (32, 32)).load_mask()
    assert mask.shape == (32, 32) and mask.dtype == torch.float32
    assert mask[:16].eq(1).all() and mask[16:].eq(0).all()


@pytest.mark.parametrize("size", [(100, 60), (61, 97), (40, 200), (640, 480)])
def test_a_mask_lies_on_what_it_masks(folder, size):
    """The image shows its own mask, so both have the same centre of mass and area; only the blur of edges differs."""
    box = (size[0] // 3, size[1] // 5, size[0] * 3 // 4, size[1] * 2 // 3)
    picture(folder / "cat.png", size, "black", box)
    picture(folder / "cat_mask.png", size, "black", box)
    item = read(folder).items[0]
    image, mask = images.load(item.path, item.bucket)[..., 0], item.load_mask()
    assert mask.shape == image.shape and 0.1 < mask.mean() < 0.9
    assert float(mask.mean()) == pytest.approx(float(image.mean()), rel=0.01)
    for axis in (0, 1):
        assert centre(mask, axis) == pytest.approx(centre(image, axis), abs=0.1)


def centre(picture, axis) -> float:
    """The centre of mass in pixels."""
    places = torch.arange(picture.shape[axis], dtype=torch.float32)
    return float((picture.sum(1 - axis) * places).sum() / picture.sum())


def test_a_mask_is_painted_on_the_upright_image(folder):
    """Orientation 6: the first row of the file is the right-hand column of what a person sees."""
    (folder / "cat.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "cat.jpg", (64, 32), "black", (0, 0, 64, 16), exif=exif)
    picture(folder / "cat_mask.png", (32, 64), "black", (16, 0, 32, 64))
    item = item_of(folder, (32, 64))
    mask = item.load_mask()
    assert mask[:, 16:].eq(1).all() and mask[:, :16].eq(0).all()
    assert torch.equal(mask > 0.5, images.load(item.path, item.bucket)[..., 0] > 0.5)


def test_transparency_is_turned_upright_with_its_image(folder):
    """As above: the first rows of the file are what is seen on the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "cat.png", (64, 32), (0, 0, 0, 0), (0, 0, 64, 16), exif=exif)
    mask = item_of(folder, (32, 64)).load_mask()
    assert mask[:, 16:].eq(1).all() and mask[:, :16].eq(0).all()


@pytest.mark.parametrize(("color", "expected"), [
    ((255, 255, 255, 51), 0.2),
    ((0, 0, 0, 51), 0.2),
])
def test_of_an_image_the_transparency_counts(folder, color, expected):
    picture(folder / "cat.png", color=color)
    assert read(folder).items[0].load_mask().unique().tolist() == pytest.approx([expected])


@pytest.mark.parametrize(("color", "expected"), [
    ("white", 1.0),
    ("#333333", 0.2),
    ((255, 255, 255, 51), 0.2),
    ((255, 255, 255, 255), 1.0),
    ((51, 51, 51, 255), 0.2),
])
def test_of_a_mask_picture_the_brightness_counts(folder, color, expected):
    picture(folder / "cat_mask.png", color=color)
    assert read(folder).items[0].load_mask().unique().tolist() == pytest.approx([expected])


@pytest.mark.parametrize(("pixels", "expected"), [
    (np.full((32, 96), 13107, dtype=np.uint16), 0.2),
    (np.full((32, 96), True), 1.0),
])
def test_other_depths_of_mask_pictures(folder, pixels, expected):
    Image.fromarray(pixels).save(folder / "cat_mask.png")
    assert read(folder).items[0].load_mask().unique().tolist() == pytest.approx([expected])


def test_a_latent_counts_as_much_as_the_pixels_it_stands_for():
    mask = torch.rand(48, 80, generator=torch.Generator().manual_seed(0))
    expected = mask.numpy().reshape(6, 8, 10, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(masks.to_latents(mask, (6, 10)).numpy(), expected, atol=1e-6)


def test_a_mask_of_another_size_is_refused(folder):
    picture(folder / "cat_mask.png", (48, 16), "white")
    assert "cat_mask.png is 48×16 pixels and its image cat.png 96×32. Save the mask at the size" in refusal(folder)
    assert len(read(folder, masks="ignore").items) == 1


def test_an_unreadable_mask_is_refused(folder):
    (folder / "cat_mask.png").write_text("not a picture")
    assert "cat_mask.png cannot be read as a picture" in refusal(folder)


def test_a_mask_that_leaves_out_everything_is_refused(folder):
    picture(folder / "cat_mask.png", color="black")
    assert "cat_mask.png is black in the whole part of cat.png that is trained" in refusal(folder)
    assert "Make some of it white." in refusal(folder)


def test_a_mask_that_shows_only_what_is_cut_off_is_refused(folder):
    """500 × 32 is trained at a ratio of 4 to 1, so the 186 columns at either end are cut off."""
    picture(folder / "cat.png", (500, 32))
    picture(folder / "cat_mask.png", (500, 32), "black", (0, 0, 100, 32))
    assert "nothing counts" in refusal(folder)


def test_an_image_that_is_wholly_transparent_is_refused(folder):
    picture(folder / "cat.png", color=(255, 0, 0, 0))
    assert "cat.png is transparent in the whole part of cat.png that is trained" in refusal(folder)
    assert "Make some of it opaque" in refusal(folder)
    assert len(read(folder, masks="ignore").items) == 1


def test_an_image_with_a_bad_mask_can_be_skipped(folder):
    picture(folder / "dog.png")
    (folder / "dog.txt").write_text("a dog")
    picture(folder / "cat_mask.png", (48, 16), "white")
    dataset = read(folder, on_bad_image="skip")
    assert [i.path.name for i in dataset.items] == ["dog.png"] and "cat_mask.png is 48×16" in dataset.skipped[0]


@pytest.mark.parametrize("place", ["mask", "masks", "Masks"])
@pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat.bmp"])
def test_a_mask_folder_holds_masks_of_the_same_names(folder, place, name):
    (folder / place).mkdir()
    found = picture(folder / place / name, color="white")
    picture(folder / place / "other.png", color="white")
    own, said = masks.beside(folder, [folder / "cat.png"])
    assert own == {folder / "cat.png": (found,)}
    assert said == [f"1 mask in '{place}' not used, because no image has that name: other.png."]


def test_what_lies_beside_the_image_comes_before_a_mask_folder_and_png_before_others(folder):
    (folder / "masks").mkdir()
    inside = [picture(folder / "masks" / name, color="white") for name in ("cat.jpg", "cat.png")]
    assert masks.beside(folder, [folder / "cat.png"])[0][folder / "cat.png"] == (inside[1],)
    near = picture(folder / "cat_mask.png", color="white")
    assert masks.beside(folder, [folder / "cat.png", near])[0][folder / "cat.png"] == (near, inside[1])


def test_masks_that_cannot_be_read_are_told(folder):
    (folder / "masks").mkdir()
    (folder / "masks" / "cat.jxl").write_bytes(b"\xff\x0a")
    assert read(folder).skipped == ("1 picture in 'masks' left out for a format that cannot be read: cat.jxl. "
                                    "Save as PNG, JPEG or WebP.",)


@pytest.mark.parametrize("view", [View(), View(x=0.0), View(x=1.0, flip=True), View(x=0.25, flip=True), View(x=0.7)])
def test_a_view_of_a_mask_is_cut_as_that_of_its_image(folder, view):
    """Both are the same stripes, at the same size, so nothing is blurred and they are the same pixels."""
    stripes = np.random.default_rng(0).integers(0, 2, (32, 96), dtype=np.uint8) * 255
    Image.fromarray(stripes).convert("RGB").save(folder / "cat.png")
    Image.fromarray(stripes).save(folder / "cat_mask.png")
    item = item_of(folder, (32, 32))
    assert torch.equal(item.load_mask(view), images.load(item.path, item.bucket, view)[..., 0])


def test_a_mask_must_show_something_in_one_of_the_views(folder):
    """White at the top of a tall image alone: nothing around the centre, all of it in a crop at the top."""
    picture(folder / "cat.png", (32, 320))
    picture(folder / "cat_mask.png", (32, 320), "black", (0, 0, 32, 60))
    assert "nothing counts" in refusal(folder)
    assert read(folder, augment=Augment(crop="top")).items[0].mask


def test_a_mask_is_decoded_once_for_each_size_and_again_when_it_changes(folder, tmp_path_factory, monkeypatch):
    """What fails is looked at again: it is mended in between."""
    decoded, really, scratch = [], masks.grey, tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(masks, "grey", lambda mask, *args, **more: decoded.append(mask) or really(mask, *args, **more))
    mask = picture(folder / "cat_mask.png", color="white")
    for resolution, times in ((32, 1), (32, 1), (64, 2), (32, 2)):
        item = read(folder, resolution=resolution, scratch=scratch).items[0]
        assert item.mask_digest == hashlib.sha256(mask.read_bytes()).hexdigest() and len(decoded) == times
    picture(mask, color="black")
    for times in (3, 4):
        assert "nothing counts" in refusal(folder, resolution=32, scratch=scratch) and len(decoded) == times
    picture(mask, color="gray")
    digest = read(folder, resolution=32, scratch=scratch).items[0].mask_digest
    assert digest == hashlib.sha256(mask.read_bytes()).hexdigest() and len(decoded) == 5


def test_an_image_without_a_mask_asks_nothing(folder):
    item = read(folder, masks="ignore").items[0]
    assert item.with_mask((), transparent=False) is item and item.with_mask((), transparent=True).mask == item.path
