"""The held-out images: so many of each folder, the same ones in every run, none of them in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.data.review import recaptioned

ROOT = Path("data")
DIGESTS = st.text(alphabet="0123456789abcdef", min_size=3, max_size=3)


def dataset(**folders: list[str]) -> Dataset:
    """Images by folder (`root` is the folder itself), each with its digest."""
    places = {name: ROOT if name == "root" else ROOT / f"5_{name}" for name in folders}
    items = [Item(places[name] / f"{n}.png", "ohwx", 1, (16, 16), (16, 16), digest)
             for name, digests in folders.items() for n, digest in enumerate(digests)]
    return Dataset(ROOT, 64, "ohwx", tuple(items), skipped=("one was bad",))


def digests(part: Dataset) -> list[str]:
    return [i.digest for i in part.items]


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"{n:03x}" for n in range(start, start + count)]


def test_without_a_held_out_set_nothing_changes():
    whole = dataset(root=["a"])
    assert whole.split(0) == (whole, None)


@pytest.mark.parametrize(("held_out", "counts"), [
    (1, (1, 1)), (3, (3, 3)),
    (0.01, (1, 1)), (0.1, (1, 2)), (0.24, (1, 5)), (0.25, (2, 5)), (0.5, (3, 10)),
])
def test_so_many_of_each_folder_are_held_out(held_out, counts):
    """6 and 20 images; a quarter of 6 is 1.5, to the nearest 2."""
    _, kept = dataset(root=numbered(6), cats=numbered(20, 100)).split(held_out)
    folders = [i.path.parent for i in kept.items]
    assert (folders.count(ROOT), folders.count(ROOT / "5_cats")) == counts


def test_a_lone_image_is_trained_when_a_share_is_held_out():
    train, kept = dataset(root=["a"], cats=["b", "c"]).split(0.1)
    assert digests(train) == ["a", "c"] and digests(kept) == ["b"]


@given(st.lists(DIGESTS, min_size=2, max_size=20, unique=True), st.randoms(use_true_random=False))
def test_the_choice_depends_on_content_alone(content, random):
    """Other names, another order, another seed or caption: the same pictures are held out."""
    shuffled = random.sample(content, len(content))
    one, other = dataset(root=content), recaptioned(dataset(cats=shuffled), ["another"] * len(content))
    assert {*digests(one.split(1)[1])} == {*digests(other.split(1)[1])}


@given(st.lists(DIGESTS, min_size=2, max_size=12), st.lists(DIGESTS, min_size=2, max_size=12),
       st.sampled_from([1, 2, 0.2, 0.4]))
def test_no_picture_is_on_both_sides_and_none_is_lost(root, cats, held_out):
    whole = dataset(root=root, cats=cats)
    try:
        train, kept = whole.split(held_out)
    except ValueError:
        # All of a folder would go: it has too few different pictures, or shares them with the other folder.
        assert min(len({*root}), len({*cats})) <= 2 * max(held_out, 1) or {*root} & {*cats}
        return
    assert not {*digests(train)} & {*digests(kept)}
    assert sorted(map(str, (*train.items, *kept.items))) == sorted(map(str, whole.items))
    assert {i.path.parent for i in train.items} == {ROOT, ROOT / "5_cats"}


def test_copies_of_a_picture_stay_together():
    """The smallest digest is held out, in the other folder as well; there it counts towards that folder's own."""
    train, kept = dataset(root=["1", "1", "2"], cats=["1", "3", "4"]).split(1)
    assert digests(kept) == ["1", "1", "1"] and digests(train) == ["2", "3", "4"]


def test_a_held_out_set_keeps_what_belongs_to_its_images():
    whole = dataset(root=["a", "b"])
    whole = replace(whole, items=tuple(replace(i, weight=0.5, mask=ROOT / "m.png") for i in whole.items))
    train, kept = whole.split(1)
    assert (train.items, kept.items) == (whole.items[1:], whole.items[:1])
    assert train.skipped == ("one was bad",) and kept.skipped == ()


def refusal(whole: Dataset, held_out: float) -> str:
    with pytest.raises(ValueError) as caught:
        whole.split(held_out)
    return str(caught.value)


def test_a_folder_with_nothing_left_is_named():
    told = refusal(dataset(root=numbered(9), cats=["a", "b", "b"], dogs=["c"]), 2)
    assert told == ("held_out 2 leaves nothing to train on in '5_cats' (different images: 2), '5_dogs' "
                    "(different images: 1). Lower held_out, or add images there.")
    assert "0.9 leaves nothing to train on" in refusal(dataset(root=["a", "b"]), 0.9)


def test_a_share_of_nothing_is_refused():
    assert "held_out 0.1 keeps no image of 2" in refusal(dataset(root=["a", "a"]), 0.1)
