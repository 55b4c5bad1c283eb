"""The pictures of a dataset show what they should, where they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.data.report import report
from livelora.trainer.data.report.sheet import LINES, contact_sheet, report_picture, wrapped
from PIL import Image, ImageFont
from reading import read

FONT = ImageFont.load_default(13)


@pytest.fixture
def items(tmp_path):
    for name in ("red", "lime", "blue"):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name} page")
    return read(tmp_path).items  # in the order of their names: blue, lime, red


def test_pictures_lie_side_by_side(items):
    sheet = contact_sheet(items, edge=32)
    assert sheet.shape == (32, 96, 3) and sheet.dtype == torch.float32
    assert [sheet[16, x].tolist() for x in (16, 48, 80)] == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert contact_sheet(items, edge=32, most=2).shape == (32, 64, 3)


def test_captions_stand_below_their_own_pictures(items):
    plain, sheet = contact_sheet(items), contact_sheet(items, captions=True)
    assert torch.equal(sheet[:128], plain) and sheet.shape[1] == plain.shape[1] and sheet.shape[0] > 128 + 3 * 13
    below = sheet[128:]
    assert all((below[:, 128 * i:128 * (i + 1)] < 0.5).any() for i in range(3))
    without = contact_sheet([Item(i.path, "", 1, i.size, i.bucket, i.digest) for i in items], captions=True)
    assert (without[128:] == 1).all()


def test_what_is_no_picture_is_a_tile_with_its_name():
    latents = Item(Path("/x/0001.latents.safetensors"), "c", 1, (64, 64), (64, 64), "0")
    sheet = contact_sheet([latents])
    assert sheet[4, 64].tolist() == pytest.approx([0xd1 / 255, 0xd5 / 255, 0xdb / 255]) and (sheet < 0.4).any()


@pytest.mark.parametrize("text", ["word " * 60, "a" * 300, "猫" * 300, "two words", "x\ny\tz"])
def test_text_is_wrapped_into_its_width(text):
    lines = wrapped(text, FONT, 100, LINES)
    assert 0 < len(lines) <= LINES and all(FONT.getlength(line) <= 100 for line in lines)
    assert lines[-1].endswith("…") == (len(text) > 20)


def test_nothing_is_lost_between_lines():
    text = "the quick brown fox jumps over the lazy dog"
    assert " ".join(wrapped(text, FONT, 90, 9)) == text
    assert "".join(wrapped("abcdefghijklmnopqrstuvwxyz", FONT, 50, 9)) == "abcdefghijklmnopqrstuvwxyz"


def test_letters_that_the_font_lacks_are_seen_to_be_there():
    """pillow's own font has ASCII: accents go, and each other character is the box that it draws for what it lacks."""
    [line] = wrapped("Café 512×512 猫\u200d🎉", FONT, 400, 1)
    assert line.startswith("Cafe 512x512 ")
    assert len(line) == len("Cafe 512x512 ") + 2 and FONT.getmask(line[-1]).getbbox()


def test_the_report_as_a_picture(items):
    data = Dataset(Path("/data/x"), 64, "ohwx", items)
    few, many = report_picture(report.make(data)), report_picture(report.make(data, lambda text: 600))
    assert few.shape[1:] == many.shape[1:] == (960, 3) and few.shape[0] < many.shape[0]  # one more finding
    assert ((few[..., 2] > 0.9) & (few[..., 0] < 0.3)).sum() > 5000  # a blue bar
    assert (few[-16:] == 1).all() and (few[:, -8:] == 1).all(), "nothing runs over the edge"


def test_many_sizes_and_long_names_stay_in_the_picture():
    items = tuple(Item(Path(f"/data/x/{'long' * 60}{i}.png"), "c", 1, (9, 9), (64 + 16 * i, 64), "0" * i,
                       mask=Path("m")) for i in range(40))
    made = report.make(Dataset(Path("/data/x"), 64, "ohwx", items, skipped=("broken " * 80,) * 9))
    picture = report_picture(made)
    assert picture.shape[0] < 1500 and (picture[-16:] == 1).all() and (picture[:, -8:] == 1).all()
