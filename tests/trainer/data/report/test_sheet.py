"""The pictures of a dataset show what they should, where they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.data.report import report
from livelora.trainer.data.report.sheet import contact_sheet, report_picture
from PIL import Image
from reading import read


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
    path = Path("/x/0001.latents.safetensors")
    latents = Item(path, "c", 1, (64, 64), (64, 64), "0", latents=path)
    sheet = contact_sheet([latents])
    assert sheet[4, 64].tolist() == pytest.approx([0xd1 / 255, 0xd5 / 255, 0xdb / 255]) and (sheet < 0.4).any()


def test_captions_in_other_letters_are_written_with_a_font_of_the_system(items, system_font):
    sheets = [contact_sheet([replace(items[0], caption=caption)], captions=True) for caption in ("я", "ж")]
    assert not torch.equal(*sheets), "else both are the same box"


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
