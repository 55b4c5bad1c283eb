"""A folder is read rightly or refused with one clear sentence that names the files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.data.pictures import images
from livelora.trainer.data.report import report, sheet
from PIL import Image
from reading import read


def picture(path, size=(48, 32), color="red", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png", color=(ord(name), 0, 0))
        (tmp_path / f"{name}.txt").write_text(f"ohwx, picture {name}\n")
    return tmp_path


def test_images_and_captions_are_found(folder):
    dataset = read(folder)
    assert [i.path.name for i in dataset.items] == ["a.png", "b.png", "c.png"]
    assert [i.caption for i in dataset.items] == ["ohwx, picture a", "ohwx, picture b", "ohwx, picture c"]
    assert dataset.items[0].size == (48, 32) and dataset.items[0].bucket == (80, 48)
    assert "3 images" in report.make(dataset).text and "3 × 80×48" in report.make(dataset).text
    assert "3 smaller than the training size" in report.make(dataset).text


def test_kohya_repeats(folder):
    picture(folder / "10_cat" / "x.jpg")
    (folder / "10_cat" / "x.txt").write_text("a cat")
    picture(folder / "0_off" / "y.jpg")
    picture(folder / "notes" / "z.jpg")
    dataset = read(folder)
    assert {i.path.name: i.num_repeats for i in dataset.items} == {"a.png": 1, "b.png": 1, "c.png": 1, "x.jpg": 10}
    assert "13 with repeats" in report.make(dataset).text
    assert "folder 'notes': only subfolders named like 10_name" in report.make(dataset).text


def refusal(folder, **options) -> str:
    with pytest.raises(ValueError) as caught:
        read(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("part", ["\ud83d", "\0"])
@pytest.mark.parametrize(("name", "content", "source"), [
    ("metadata.jsonl", {"file_name": "a.png", "text": None}, ""),
    ("table.jsonl", {"file_name": "a.png", "caption": None}, "table.jsonl"),
    ("meta.json", {"a.png": {"tags": None}}, "set.toml"),
    ("meta.jsonl", {"image_path": "a.png", "caption": None}, "set.toml"),
    ("a.json", {"caption": None}, "set.yaml"),
    ("set.yaml", {"folder_path": ".", "default_caption": None}, "set.yaml"),
])
def test_what_no_file_can_hold_is_refused_wherever_a_caption_stands(tmp_path, part, name, content, source):
    picture(tmp_path / "a.png")
    (tmp_path / "set.toml").write_text(f"[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '{name}'\n")
    (tmp_path / "set.yaml").write_text("{folder_path: ., caption_ext: json}")
    (tmp_path / name).write_text(json.dumps(content).replace("null", json.dumps(f"a {part} cat")))
    told = refusal(tmp_path / source)
    assert ("has half of a character" if part == "\ud83d" else "has a zero character") in told
    assert name in told or "a.png" in told


def test_missing_folder(tmp_path):
    assert re.search(r"The dataset folder '.*nowhere' does not exist\. Choose a folder", refusal(tmp_path / "nowhere"))


def test_a_file_for_a_folder(folder):
    assert "is a file. Choose a folder" in refusal(folder / "a.png")


def test_empty_folder(tmp_path):
    assert "No images in" in refusal(tmp_path) and "(it is empty)" in refusal(tmp_path)


def test_folder_without_images(tmp_path):
    for name in ("a.txt", "b.txt", "c.zip"):
        (tmp_path / name).write_text("x")
    assert "(it holds no image, but a.txt, b.txt, c.zip)" in refusal(tmp_path)


def test_missing_captions_are_found_and_said_first(folder):
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_text("  \n")
    dataset = read(folder)
    assert [item.path.name for item in dataset.uncaptioned] == ["b.png", "c.png"] and not dataset.takes_uncaptioned
    finding = report.make(dataset).findings[0]
    assert finding.what == "2 without a caption, which LoRA Train refuses"
    assert finding.files == ("b.png", "c.png")


def test_the_choices_name_the_files_that_are_read(folder):
    (folder / "b.txt").unlink()
    assert read(folder).caption_choices == (
        "Write one .txt file for each image (b.png → b.txt), let LoRA Captioner write them, or set missing_captions to "
        "'use the trigger word'.")
    config = folder / "dataset.json"
    config.write_text(json.dumps({"datasets": [{"folder_path": str(folder), "caption_ext": "json"}]}))
    assert read(config, trigger_word="").caption_choices == (
        "Write one .json file for each image (a.png → a.json), let LoRA Captioner write them, or set missing_captions "
        "to 'use the trigger word' and fill in trigger_word.")
    (folder / "m.json").write_text('{"a.png": {}}')
    (folder / "c.toml").write_text("[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '.'\n"
                                   "metadata_file = 'm.json'\n")
    assert read(folder / "c.toml").caption_choices.startswith("Write them into the metadata_file, let LoRA Captioner")


def test_half_a_character_in_the_trigger_word_is_refused(folder):
    assert "trigger_word has half of a character in it" in refusal(folder, trigger_word="ohwx\ud83d")


def test_missing_captions_train_with_the_trigger_word_if_asked(folder):
    (folder / "b.txt").unlink()
    dataset = read(folder, on_missing_caption="use the trigger word")
    assert [(i.caption, i.has_caption) for i in dataset.items][1] == ("ohwx", False)
    assert dataset.takes_uncaptioned
    without_word = read(folder, on_missing_caption="use the trigger word", trigger_word="")
    assert not without_word.takes_uncaptioned and without_word.caption_choices.endswith("or fill in trigger_word.")


def test_a_truncated_image_is_named_and_can_be_skipped(folder):
    path = picture(folder / "broken.jpg", size=(300, 300))
    path.write_bytes(path.read_bytes()[:700])
    (folder / "broken.txt").write_text("x")
    assert "1 of 4 images" in refusal(folder) and "broken.jpg cannot be read as a picture" in refusal(folder)
    assert "set bad_images to 'skip'" in refusal(folder)
    dataset = read(folder, on_bad_image="skip")
    assert len(dataset.items) == 3 and "broken.jpg" in report.make(dataset).text


def test_a_text_file_called_png(folder):
    (folder / "fake.png").write_text("not a picture")
    assert "fake.png cannot be read as a picture" in refusal(folder)


def test_a_huge_image_is_refused_before_it_is_decoded(folder, monkeypatch):
    picture(folder / "huge.png", size=(1100, 1000))
    (folder / "huge.txt").write_text("x")
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)  # stands for a picture of more than 100 megapixels
    assert "huge.png is 1100×1000 pixels, more than 1 megapixels" in refusal(folder)


def test_a_decompression_bomb(folder):
    picture(folder / "bomb.png", size=(20000, 10000), color="black")
    (folder / "bomb.txt").write_text("x")
    assert "bomb.png" in refusal(folder) and "smaller" in refusal(folder)


def test_nothing_left_when_all_are_skipped(tmp_path):
    (tmp_path / "fake.png").write_text("x")
    assert "1 image in" in refusal(tmp_path, on_bad_image="skip")


@pytest.mark.parametrize("content", [b"caf\xe9", "schön".encode("utf-16-le")])
def test_a_caption_that_is_not_utf8_is_named(folder, content):
    (folder / "a.txt").write_bytes(content)
    assert "a.txt is not UTF-8 text" in refusal(folder) and "Save it again with the encoding UTF-8" in refusal(folder)


def test_a_caption_with_a_byte_order_mark(folder):
    (folder / "a.txt").write_bytes("\ufeffschön,\nmit Zeilen".encode())
    assert read(folder).items[0].caption == "schön, mit Zeilen"


def test_the_fingerprint_follows_content_not_place(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("copy")
    for file in folder.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    assert read(folder).fingerprint() == read(elsewhere).fingerprint()
    (elsewhere / "a.txt").write_text("another")
    assert read(folder).fingerprint() != read(elsewhere).fingerprint()


def test_the_fingerprint_is_that_of_earlier_versions():
    """Computed by version 0.1.0 (commit 3cf4f91), whose finished jobs must be found again."""
    items = (Item(Path("a.png"), "ohwx, cat", 3, (10, 10), (16, 16), "0" * 64),
             Item(Path("b.png"), "", 1, (20, 10), (32, 16), "f" * 64, has_caption=False))
    assert (Dataset(Path("d"), 16, "ohwx", items).fingerprint()
            == "2397c128698f43a411f4528588142ee48e50a2b6979fd290a2ec69a00162f868")


def test_sixteen_bits_are_not_clipped_to_white(tmp_path):
    Image.fromarray(np.full((16, 16), 16448, dtype=np.uint16)).save(tmp_path / "deep.png")  # 16448 / 65535 = 64 / 255
    assert images.load(tmp_path / "deep.png", (16, 16)).unique().tolist() == pytest.approx([64 / 255])


def test_exif_rotation_and_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture(tmp_path / "turned.jpg", size=(60, 20), exif=exif)
    assert images.examine(tmp_path / "turned.jpg").size == (20, 60)
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert images.load(tmp_path / "clear.png", (16, 16)).unique().tolist() == [1.0]


def test_a_picture_is_cut_around_its_centre(tmp_path):
    image = Image.new("RGB", (96, 32), "blue")
    image.paste("white", (32, 0, 64, 32))
    image.save(tmp_path / "wide.png")
    cut = images.load(tmp_path / "wide.png", (32, 32))
    assert cut.shape == (32, 32, 3) and cut.dtype == torch.float32
    assert cut.min() == 1.0
    shown = sheet.contact_sheet(scan_one(tmp_path).items)
    assert shown.shape == (128, 128, 3)


def scan_one(folder):
    return read(folder, on_missing_caption="use the trigger word")
