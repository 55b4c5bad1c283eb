"""Buckets: sizes the model takes, near the picture's own shape, of about the same area.

That they are sd-scripts' own is seen in test_sd_scripts.py, by tables that it made."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from livelora.trainer.data.pictures.buckets import MAX_ASPECT, Buckets, for_resolution, step_for

EDGE = st.integers(1, 20000)


@pytest.mark.parametrize(("size", "resolution", "bucket"), [
    ((1000, 1000), 512, (512, 512)),
    ((1920, 1080), 1024, (1344, 768)),
    ((1080, 1920), 1024, (768, 1344)),
    ((128, 128), 128, (128, 128)),
    ((3000, 2000), 512, (640, 384)),
    ((12000, 80), 512, (1024, 256)),
])
def test_known_sizes(size, resolution, bucket):
    """1344 × 768 is SDXL's published bucket for 16:9; 640 × 384 and 1024 × 256 are sd-scripts' buckets at 512²."""
    assert for_resolution(resolution, upscale=True).choose(size) == bucket


@pytest.mark.parametrize(("size", "resolution", "bucket"), [
    ((300, 200), 512, (256, 192)),  # 300 = 4·64 + 44, 200 = 3·64 + 8
    ((1000, 1000), 512, (512, 512)),
    ((640, 384), 512, (640, 384)),
    ((1920, 1080), 1024, (1344, 768)),
    ((500, 100), 512, (384, 64)),  # 5:1 is cropped to 400 × 100
    ((60, 100), 512, (48, 96)),  # less than a step of 64: steps of 16
    ((5, 7), 512, (16, 16)),
    ((12000, 80), 512, (320, 64)),  # cropped to 320 × 80
])
def test_a_picture_that_may_not_be_enlarged_keeps_its_size_rounded_down(size, resolution, bucket):
    assert for_resolution(resolution, upscale=False).choose(size) == bucket


def test_a_picture_of_which_the_steps_of_sd_scripts_leave_nothing_gets_a_size():
    """There, 50 × 300 becomes 0 × 256, and 12000 × 80 a division by zero."""
    buckets = Buckets((512, 512), upscale=False)
    assert buckets.choose((50, 300)) == (48, 192)  # 50 × 200 in steps of 16
    assert buckets.choose((12000, 80)) == (320, 80)
    assert buckets.choose((1, 1)) == (16, 16)


def test_without_buckets_all_pictures_have_one_size():
    assert {Buckets((640, 384), enabled=False).choose(size) for size in ((9, 9), (3000, 10))} == {(640, 384)}


@given(st.integers(64, 2048), EDGE, EDGE, st.booleans())
@example(64, 12000, 80, False)
@example(100, 1, 1, False)
def test_every_bucket_can_be_trained(resolution, width, height, upscale):
    buckets = for_resolution(resolution, upscale)
    w, h = buckets.choose((width, height))
    assert w % 16 == h % 16 == 0
    # Scaled edges are rounded: the shorter by half a pixel at most, the longer by that times the aspect and once more.
    assert (min(w, h) - 0.5) * (max(w, h) - 0.5 * MAX_ASPECT - 0.5) <= resolution**2
    if upscale:
        assert w * h <= resolution**2
        assert w % step_for(resolution) == h % step_for(resolution) == 0
        assert max(w, h) <= MAX_ASPECT * min(w, h)
    elif min(width, height) >= 16:
        assert w <= width and h <= height


@given(EDGE, EDGE, st.sampled_from([128, 512, 768, 1024]))
def test_no_bucket_is_nearer_in_shape(width, height, resolution):
    """The distance between shapes is sd-scripts': of width ÷ height."""
    buckets = for_resolution(resolution, upscale=True)
    chosen = buckets.choose((width, height))
    off = abs(chosen[0] / chosen[1] - width / height)
    assert all(off <= abs(w / h - width / height) for w, h in buckets.sizes())


@given(EDGE, EDGE, st.sampled_from([128, 512, 768, 1024]))
def test_little_of_a_picture_that_may_not_be_enlarged_is_cut_off(width, height, resolution):
    """An edge loses less than two steps: one by rounding the scale, one by rounding the edge."""
    if max(width, height) > MAX_ASPECT * min(width, height) or min(width, height) < step_for(resolution):
        return
    scale = min(1, math.sqrt(resolution**2 / (width * height)))
    w, h = for_resolution(resolution, upscale=False).choose((width, height))
    assert max(width * scale - w, height * scale - h) < 2 * step_for(resolution) * MAX_ASPECT
    assert min(width * scale - w, height * scale - h) < 2 * step_for(resolution)
