"""What captions become. The expected ones follow from sd-scripts' documentation (docs/config_README-en.md) by hand;
those that it drew itself are in test_sd_scripts.py."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from livelora.trainer.data.captions.rules import CaptionRules, longest, variants


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def of(text, count=50, seed=0, **rules):
    return variants(text, CaptionRules(**rules), count, draw(seed))


def test_rules_that_change_nothing_give_the_first_line():
    assert of("a cat, {red|blue} \nanother line") == ["a cat, {red|blue}"]


def test_prefix_and_suffix_stand_around_a_caption():
    assert of("a cat", caption_prefix="photo of", caption_suffix="35mm") == ["photo of a cat 35mm"]


def test_all_orders_come_once_if_they_are_few():
    found = of("a, b, c", shuffle_caption=True)
    assert found[0] == "a, b, c"
    assert sorted(found) == sorted(", ".join(order) for order in permutations("abc"))


def test_there_are_no_more_than_asked_for_and_all_are_different():
    found = of("a, b, c, d, e, f, g", count=8, shuffle_caption=True)
    assert len(found) == len({*found}) == 8


def test_tags_before_the_separator_stay_in_front_and_those_behind_the_second_at_the_end():
    found = of("ohwx, woman ||| hat;;;red hat, smile ||| 35mm", shuffle_caption=True, keep_tokens_separator="|||",
               secondary_separator=";;;")
    assert {*found} == {"ohwx, woman, hat,red hat, smile, 35mm", "ohwx, woman, smile, hat,red hat, 35mm"}


def test_of_wildcards_each_choice_comes_and_doubled_braces_are_braces():
    found = of("{red|blue} {{hat}}\na {cat|dog}", enable_wildcard=True)
    assert found[0] == "red {hat}"
    assert {*found} == {"red {hat}", "blue {hat}", "a cat", "a dog"}


def test_tags_are_left_out_as_often_as_asked_for_but_not_those_that_are_kept():
    """Of 2,000 draws, 100 ± 5σ leave the one tag out: σ = √(2000 · 0.05 · 0.95) ≈ 9.7."""
    found = of("ohwx, hat", count=2000, keep_tokens=1, caption_tag_dropout_rate=0.05)
    assert len(found) == 2000
    assert found[0] == "ohwx, hat"
    assert {*found} == {"ohwx, hat", "ohwx"}
    assert 51 <= found.count("ohwx") <= 149


def test_a_rate_of_one_leaves_all_tags_out():
    assert of("ohwx, hat, smile", keep_tokens=1, caption_tag_dropout_rate=1) == ["ohwx"]


@pytest.mark.parametrize("rules", [{"shuffle_caption": True}, {"caption_tag_dropout_rate": 0.3}])
def test_the_same_draw_gives_the_same_captions(rules):
    text = "a, b, c, d, e, f, g, h"
    assert of(text, 8, 1, **rules) == of(text, 8, 1, **rules)
    assert of(text, 8, 1, **rules) != of(text, 8, 2, **rules)


PARTS = st.sampled_from(["a", "猫", "{a|bb}", "{|ccc|{{}", "\n", ", ", "{{", "}}", ";;;"])


@given(st.lists(PARTS, max_size=8).map("".join),
       st.builds(CaptionRules, enable_wildcard=st.booleans(), shuffle_caption=st.booleans(),
                 secondary_separator=st.sampled_from(["", ";;;"]), caption_prefix=st.sampled_from(["", "{x|yy}"]),
                 caption_tag_dropout_rate=st.sampled_from([0, 0.5])), st.integers(0, 99))
def test_no_caption_is_longer_than_the_longest(text, rules, seed):
    most = max(len(caption.encode()) for caption in longest(text, rules))
    assert all(len(caption.encode()) <= most for caption in variants(text, rules, 8, draw(seed)))


@pytest.mark.parametrize("text", ["", "a", "  \n ", "{", "}{|}", "{{", "|||", ",,,"])
def test_captions_with_nothing_to_choose_end(text):
    found = of(text, enable_wildcard=True, shuffle_caption=True, keep_tokens_separator="|||")
    assert len({*found}) == len(found) <= 2
