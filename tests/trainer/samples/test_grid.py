from __future__ import annotations

import numpy as np
import pytest
from livelora.trainer.samples.grid import compose
from PIL import Image

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def solid(color: tuple[int, int, int], width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def box(page: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of all pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(page) == color).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def ink(page: Image.Image) -> np.ndarray:
    """Where something dark and grey is: text."""
    pixels = np.asarray(page).astype(int)
    return (pixels.max(-1) - pixels.min(-1) < 10) & (pixels.max(-1) < 160)


def test_each_picture_is_in_its_cell_pixel_for_pixel():
    """Small pictures: text of 13 pixels, of which a quarter, but no less than 4, is between pictures, and twice that
    around them. A narrow or low picture stands in the middle of its cell."""
    cells = [[noise(0, 64, 48), noise(1, 64, 48)], [noise(2, 32, 96), noise(3, 64, 80)]]
    page = compose(cells, ["a", "b"], ["1", "2"], labels=False)
    assert page.size == (8 + 64 + 4 + 64 + 8, 8 + 48 + 4 + 96 + 8)
    for picture, (x, y) in zip([*cells[0], *cells[1]], [(8, 8), (76, 8), (8 + 16, 60), (76, 60 + 8)], strict=True):
        assert page.crop((x, y, x + picture.width, y + picture.height)).tobytes() == picture.tobytes()
    assert not ink(compose([[solid(RED)]], ["a"], ["1"], labels=False)).any()


def test_titles_stand_beside_their_pictures_and_never_on_them():
    cells = [[solid(RED), solid(GREEN)], [solid(BLUE), solid((9, 99, 9))]]
    long = "a photograph of a lighthouse on a rock by the sea at sunset, " * 5 + "x" * 90
    page = compose(cells, [long, "b"], ["step 100", "a title that is much wider than its column"], labels=True)
    left, top, right, bottom = box(page, RED)
    assert (right - left, bottom - top) == (64, 64)
    text = ink(page)
    assert not text[top:, left:].any(), "on the pictures or below them"
    assert text[top:bottom, :left].any() and text[bottom + 4:, :left].any(), "a title for each row"
    assert text[:top, left:right].any() and text[:top, right + 4:].any(), "a title for each column"
    assert not text[bottom:bottom + 4].any(), "a long prompt ends with its row"
    assert not text[:, right:right + 4].any(), "a long title ends with its column"
    assert not text[:4].any() and not text[:, :4].any() and not text[:, -4:].any()


def test_a_missing_picture_is_an_empty_cell_that_says_so():
    """A row without any is as tall as the tallest."""
    page = compose([[solid(RED, 128, 96), None], [solid(GREEN, 128, 64), solid(GREEN, 128, 64)], [None, None]],
                   ["a", "b", "c"], ["1", "2"], labels=False)
    assert page.size == (8 + 2 * 128 + 4 + 8, 8 + 96 + 4 + 64 + 4 + 96 + 8)
    empty = page.crop((140, 8, 268, 104))
    assert empty.getpixel((0, 0)) == empty.getpixel((127, 95)) == (0xF1, 0xF1, 0xF1)
    across, down = ink(empty).any(0).nonzero()[0], ink(empty).any(1).nonzero()[0]
    assert across.min() + across.max() == pytest.approx(127, abs=4), "in the middle"
    assert down.min() + down.max() == pytest.approx(95, abs=6)
    assert empty.tobytes() == page.crop((8, 176, 136, 272)).tobytes()


def test_without_a_single_picture_there_is_no_grid():
    with pytest.raises(ValueError, match="There is no picture to put into the grid"):
        compose([[None]], ["a"], ["1"], labels=True)


def test_text_grows_with_the_pictures():
    """A grid of large pictures is shown small."""
    def height(edge: int) -> int:
        page = compose([[solid(RED, edge, edge)]], ["prompt"], ["step 1"], labels=True)
        rows = ink(page)[:, :box(page, RED)[0]].any(1).nonzero()[0]
        return rows.max() - rows.min() + 1

    assert height(1024) == pytest.approx(8 * height(128), rel=0.25)


def test_letters_that_the_font_lacks_are_taken_from_the_system(system_font):
    """Else both would be the same box."""
    pages = [compose([[solid(RED)]], [title], ["step 1"], labels=True) for title in ("é", "я", "ñ")]
    assert len({page.tobytes() for page in pages}) == 3
