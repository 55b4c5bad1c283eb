"""Values for single blocks, read as people write them."""

from __future__ import annotations

import re

import pytest
from livelora.trainer.comfy.families.flux1 import FLUX1
from livelora.trainer.recipe.blocks import FORMAT, parse_blocks, problem_with_regex


@pytest.mark.parametrize(("text", "module", "value"), [
    ("", "double_blocks.0.img_attn.qkv", 5.0),
    ("double: 8", "double_blocks.0.img_attn.qkv", 8.0),
    ("double: 8", "double_blocks.18.txt_mlp.2", 8.0),
    ("double: 8", "single_blocks.0.linear1", 5.0),
    ("single 7: 64", "single_blocks.7.linear1", 64.0),
    ("single 7: 64", "single_blocks.17.linear1", 5.0),
    ("single 7: 64", "single_blocks.70.linear1", 5.0),
    ("single 7: 64", "double_blocks.7.img_mlp.0", 5.0),
    ("double 3-5: 8", "double_blocks.2.img_mlp.0", 5.0),
    ("double 3-5: 8", "double_blocks.3.img_mlp.0", 8.0),
    ("double 3-5: 8", "double_blocks.5.img_mlp.0", 8.0),
    ("double 3-5: 8", "double_blocks.6.img_mlp.0", 5.0),
    ("double 4-4: 8", "double_blocks.4.img_mlp.0", 8.0),
    ("single: 32, single 7: 64", "single_blocks.7.linear2", 64.0),
    ("single 7: 64, single: 32", "single_blocks.7.linear2", 32.0),
    ("double: 0", "double_blocks.1.img_mlp.0", 0.0),
    ("single: 0.25", "single_blocks.1.linear2", 0.25),
    (" double  0 - 9 :8 ,single:32,, ", "double_blocks.9.img_mlp.0", 8.0),
    (" double  0 - 9 :8 ,single:32,, ", "single_blocks.37.linear2", 32.0),
    ("double: 8, single: 9", "final_layer.linear", 5.0),
    ("double: 8", "model.double_blocks.0.img_mlp.0", 5.0),
])
def test_a_block_has_the_last_number_that_is_given_for_it(text, module, value):
    parsed = parse_blocks(text)
    assert parsed.of(FLUX1.block_of(module), 5.0) == value
    assert not parsed.problems


def test_all_numbers_are_listed():
    assert parse_blocks("double 0-9: 8, single: 0.5").numbers == [8.0, 0.5]
    assert parse_blocks("").numbers == []


@pytest.mark.parametrize("part", ["8", "double", "double 8", "double: eight", "double: -1", "double: 1e3",
                                  "double 1-: 8", "double -1: 8", "double0: 8", "double 1.5: 8", "Double: 8",
                                  "double: 8; single: 9"])
def test_what_cannot_be_read_is_named(part):
    parsed = parse_blocks(f"single: 4, {part}")
    assert parsed.problems == (f"'{part}' cannot be read. {FORMAT}.",)
    assert parsed.numbers == [4.0]


def test_the_kinds_of_blocks_are_the_familys_matter():
    """Any word is read; whether the model has such blocks is asked when there is a model."""
    assert parse_blocks("triple 2: 8, double: 4").kinds == {"triple", "double"}
    assert not parse_blocks("triple 2: 8").problems


def test_every_problem_is_named():
    assert parse_blocks("double 9-3: 8, x").problems == (
        f"'double 9-3: 8' ends before it begins. {FORMAT}.", f"'x' cannot be read. {FORMAT}.")


@pytest.mark.parametrize("pattern", [r"double_blocks\.\d+\..*", "", "a|b"])
def test_a_regular_expression_has_no_problem(pattern):
    assert problem_with_regex(pattern) == ""
    re.compile(pattern)


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<n"])
def test_what_is_no_regular_expression_says_why(pattern):
    with pytest.raises(re.error) as caught:
        re.compile(pattern)
    assert problem_with_regex(pattern) == str(caught.value) != ""
