"""Buckets: sizes the model takes, near the picture's own shape, of about the same area."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livelora.trainer.data.buckets import MAX_ASPECT, buckets, choose, step_for


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
    assert choose(size, resolution) == bucket


@given(st.integers(64, 2048))
def test_every_bucket_can_be_trained(resolution):
    found = buckets(resolution)
    assert found
    for width, height in found:
        assert width % step_for(resolution) == height % step_for(resolution) == 0
        assert width % 16 == height % 16 == 0
        assert width * height <= resolution**2
        assert max(width, height) <= MAX_ASPECT * min(width, height)


@given(st.integers(1, 20000), st.integers(1, 20000), st.sampled_from([128, 512, 768, 1024]))
def test_no_bucket_is_nearer_in_shape(width, height, resolution):
    chosen = choose((width, height), resolution)
    off = abs(math.log(chosen[0] / chosen[1]) - math.log(width / height))
    assert all(off <= abs(math.log(w / h) - math.log(width / height)) + 1e-6 for w, h in buckets(resolution))
