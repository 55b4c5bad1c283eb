"""The order of images: complete, repeatable, seekable."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.training.batches import Batches

IMAGES = st.lists(st.tuples(st.sampled_from(["wide", "tall", "square"]), st.integers(1, 4)), min_size=1, max_size=20)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of a busy machine
@given(IMAGES, st.integers(1, 5), st.integers(0, 2**64 - 1))
def test_an_epoch_has_every_image_as_often_as_it_repeats(images, batch_size, seed):
    batches = Batches(images, batch_size, seed)
    for epoch in (0, 1):
        seen = [i for k in range(batches.per_epoch) for i in batches[epoch * batches.per_epoch + k]]
        assert Counter(seen) == Counter({i: n for i, (_, n) in enumerate(images)})


@given(IMAGES, st.integers(1, 5), st.integers(0, 2**64 - 1))
def test_a_batch_has_one_shape_and_no_more_than_its_size(images, batch_size, seed):
    batches = Batches(images, batch_size, seed)
    for k in range(batches.per_epoch):
        assert len({images[i][0] for i in batches[k]}) == 1
        assert 1 <= len(batches[k]) <= batch_size


@given(IMAGES, st.integers(0, 100))
def test_any_micro_batch_can_be_asked_for_first(images, k):
    straight, seeking = Batches(images, 2, 7), Batches(images, 2, 7)
    for place in range(k):
        straight[place]
    assert straight[k] == seeking[k]


def test_epochs_and_seeds_differ():
    images = [("square", 1)] * 30
    first, other = Batches(images, 1, 0), Batches(images, 1, 1)
    one, two = ([first[k] for k in range(e * 30, e * 30 + 30)] for e in (0, 1))
    assert one != two and one != [other[k] for k in range(30)]
