"""Views are few, different, the same each time; colours change a little."""

from __future__ import annotations

import numpy as np
import pytest
from livelora.trainer.data.pictures.augment import Augment, View, recolor, views
from PIL import Image


@pytest.mark.parametrize(("augment", "count"), [
    (Augment(), 1), (Augment(crop="top"), 1), (Augment(flip=True), 2), (Augment(color=True), 2),
    (Augment(crop="random"), 4), (Augment(crop="random", flip=True), 8),
    (Augment(crop="random", flip=True, color=True), 16),
])
def test_there_are_as_many_different_views_as_choices_and_the_plainest_is_first(augment, count):
    found = views(augment, "a" * 64)
    assert len(found) == len(set(found)) == count
    assert found[0] == View(y=0.0 if augment.crop == "top" else 0.5)
    assert sum(v.flip for v in found) == (count // 2 if augment.flip else 0)
    assert sum(v.color > 0 for v in found) == (count // 2 if augment.color else 0)
    assert all(0 <= v.x <= 1 and 0 <= v.y <= 1 for v in found)


def test_views_depend_on_the_picture_alone():
    augment = Augment(crop="random", flip=True, color=True)
    assert views(augment, "a" * 64) == views(augment, "a" * 64) != views(augment, "b" * 64)


def test_random_crops_are_uniform():
    """Of 3,000 numbers between 0 and 1 the mean is within 4 deviations (0.0053 each) of 0.5, a quarter below 0.25."""
    drawn = np.array([v.x for number in range(1000) for v in views(Augment(crop="random"), str(number))[1:]])
    assert abs(drawn.mean() - 0.5) < 0.022 and abs((drawn < 0.25).mean() - 0.25) < 0.032


def test_colors_change_a_little_and_the_same_each_time():
    """At most 5 % of brightness, of contrast and of saturation each, and 16 degrees of hue."""
    pixels = np.random.default_rng(0).integers(40, 216, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    changed = [np.asarray(recolor(image, "a" * 64, number), float) for number in range(1, 9)]
    assert np.array_equal(changed[0], np.asarray(recolor(image, "a" * 64, 1)))
    assert not np.array_equal(changed[0], np.asarray(recolor(image, "b" * 64, 1)))
    assert len({c.tobytes() for c in changed}) == 8
    assert all(0.5 < np.abs(c - np.asarray(image)).mean() < 40 for c in changed)
    assert all(abs(c.mean() / np.asarray(image).mean() - 1) < 0.12 for c in changed)


def test_grey_stays_grey_and_hue_turns_by_at_most_sixteen_degrees():
    grey = Image.new("RGB", (4, 4), (128, 128, 128))
    red = Image.new("RGB", (4, 4), (200, 60, 60))
    hues = []
    for number in range(1, 200):
        shown = np.asarray(recolor(grey, "a" * 64, number), int)
        assert np.ptp(shown) == 0 and abs(shown[0, 0, 0] - 128) <= 8
        hue = recolor(red, "a" * 64, number).convert("HSV").getpixel((0, 0))[0]
        hues.append((hue + 128) % 256 - 128)
    assert 8 <= max(hues) <= 13 and -13 <= min(hues) <= -8  # 16 degrees are 11.4 of 256, and rounding twice
