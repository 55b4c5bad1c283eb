"""Prompt lines are read as their authors mean them, or refused with every problem named."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.trainer.model.host import SampleSettings
from livelora.trainer.samples.prompts import check, parse_all

DEFAULTS = SampleSettings(width=512, height=640, steps=25, cfg=2.0, guidance=4.0, sampler_name="heun",
                          scheduler="beta", seed=9, strength=0.5)


def parse(line: str):
    [sample] = parse_all(line, "ugly", DEFAULTS)
    return sample


def read(line: str) -> tuple[str, str, dict]:
    """The prompt, the negative prompt and what is not as in DEFAULTS."""
    sample, defaults = parse(line), asdict(DEFAULTS)
    return sample.prompt, sample.negative, {k: v for k, v in asdict(sample.settings).items() if v != defaults[k]}


def problems(text: str) -> list[str]:
    with pytest.raises(ValueError) as caught:
        parse_all(text, "", DEFAULTS)
    first, *rest = str(caught.value).splitlines()
    assert first == "LoRA Sample Preview cannot draw these prompts:"
    assert all(line.startswith("- ") for line in rest)
    return [line[2:] for line in rest]


LINES = [
    ("a cat on a roof", ("a cat on a roof", "ugly", {})),
    ("a cat --w 768 --h 1024 --d 42 --s 20 --l 1.0 --g 3.5 --m 0.8 --n blurry, ugly",  # every option there is
     ("a cat", "blurry, ugly", {"width": 768, "height": 1024, "seed": 42, "steps": 20, "cfg": 1.0, "guidance": 3.5,
                                "strength": 0.8})),
    ("a cat --n blurry, ugly --s 20", ("a cat", "blurry, ugly", {"steps": 20})),  # in any order
    ("  a cat   --w   768  ", ("a cat", "ugly", {"width": 768})),
    ("a cat\t--w\t768", ("a cat", "ugly", {"width": 768})),
    ("a cat --W 768 --N fog", ("a cat", "fog", {"width": 768})),  # sd-scripts matches with re.IGNORECASE
    ("a cat --n", ("a cat", "", {})),
    ("a cat --n --m 0", ("a cat", "", {"strength": 0.0})),
    ("a cat --l 7", ("a cat", "ugly", {"cfg": 7.0})),
    ("a cat --d 18446744073709551615", ("a cat", "ugly", {"seed": 2**64 - 1})),
    ("black--white -- a cat --- and 1--2 dogs", ("black--white -- a cat --- and 1--2 dogs", "ugly", {})),
    ("a cat -- asleep --n low--quality -- bad", ("a cat -- asleep", "low--quality -- bad", {})),
    ("a --5 sticker, -w 5", ("a --5 sticker, -w 5", "ugly", {})),
    ("猫 🐈 --s 3", ("猫 🐈", "ugly", {"steps": 3})),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[line for line, _ in LINES])
def test_a_line_is_read(line, expected):
    assert read(line) == expected


def test_numbers_have_the_kind_that_samplers_want():
    settings = parse("a --w 64 --h 64 --d 1 --s 1 --l 1 --g 1 --m 1").settings
    assert [type(v) for v in (settings.width, settings.height, settings.seed, settings.steps)] == [int] * 4
    assert [type(v) for v in (settings.cfg, settings.guidance, settings.strength)] == [float] * 3


def test_empty_lines_and_comments_are_passed_over():
    text = "\n# ohwx, swimming --q 5\r\n  ohwx, asleep --d 1\n\n   # and\nohwx #2\n"
    assert [s.prompt for s in parse_all(text, "", DEFAULTS)] == ["ohwx, asleep", "ohwx #2"]


def test_one_line_does_not_change_the_next():
    one, two = parse_all("a --w 768 --n fog\nb", "ugly", DEFAULTS)
    assert (one.settings.width, one.negative) == (768, "fog")
    assert (two.settings, two.negative) == (DEFAULTS, "ugly")


WIDTH = "width must be a multiple of 16 from 64 to 4096."
SEED = "seed must be a whole number from 0 to 18446744073709551615."
STEPS = "steps must be a whole number from 1 to 200."
STRENGTH = "strength must be a number from 0 to 2."
WRONG = [
    ("--w 500", WIDTH), ("--w 48", WIDTH), ("--w 4112", WIDTH), ("--w 512.0", WIDTH), ("--w 512px", WIDTH),
    ("--w", WIDTH), ("--w 512 768", WIDTH), ("--h 8", "height" + WIDTH.removeprefix("width")),
    ("--d -1", SEED), ("--d 18446744073709551616", SEED), ("--s 0", STEPS), ("--s 201", STEPS), ("--s 2.5", STEPS),
    ("--l 30.1", "cfg must be a number from 0 to 30."), ("--g nan", "guidance must be a number from 0 to 30."),
    ("--g inf", "guidance must be a number from 0 to 30."), ("--m 2.01", STRENGTH), ("--m -0.5", STRENGTH),
    ("--m 0,8", STRENGTH),
]


@pytest.mark.parametrize(("option", "problem"), WRONG, ids=[option for option, _ in WRONG])
def test_a_value_that_cannot_be_is_refused(option, problem):
    assert problems(f"a cat {option}") == [f"line 1: {option}: {problem}"]


@pytest.mark.parametrize("option", ["q 4", "ss euler", "w512", "seed 4", "with a hat"])
def test_an_unknown_option_is_refused(option):
    name = option.split()[0]
    assert problems(f"a cat --{option}") == [
        f"line 1: --{option}: there is no such option. Use --w, --h, --d, --s, --l, --g, --m or --n, each with a space "
        f"behind it; if it belongs to the prompt, write '-- {name}'."]


def test_an_option_twice_is_refused():
    assert problems("a cat --w 512 --n fog --w 768") == ["line 1: --w is there 2 times. Keep one."]


def test_options_without_a_prompt_are_refused():
    assert problems("--w 512") == ["line 1: has no prompt. Write it in front of the options."]


def test_all_problems_of_all_lines_are_named_at_once():
    text = "a cat\n\n# --w 1\nb --w 5 --s 0\nc --m 1\nd --q 1 --d x"
    found = problems(text)
    assert [p.split(":")[:2] for p in found] == [["line 4", " --w 5"], ["line 4", " --s 0"], ["line 6", " --q 1"],
                                                 ["line 6", " --d x"]]
    with pytest.raises(ValueError) as caught:
        check(text)
    assert [line[2:] for line in str(caught.value).splitlines()[1:]] == found


@given(st.integers(1, 30_000), st.sampled_from(["q{}", "w", "{}" * 9]))
@settings(max_examples=10, deadline=2000)
def test_of_many_problems_some_are_named(count, name):
    found = problems("a cat " + " ".join(f"--a{name.format(*[i] * 9)}" for i in range(count)) + " --" + "b" * count)
    assert len(found) <= 21 and max(map(len, found)) < 400
    assert len(found) < 21 or re.fullmatch(r"and \d+ more\.", found[-1])


@pytest.mark.parametrize("text", ["", " \n\t\n", "# only a comment"])
def test_no_prompts_are_refused(text):
    for read_all in (check, lambda lines: parse_all(lines, "", DEFAULTS)):
        with pytest.raises(ValueError, match="^LoRA Sample Preview has no prompts. Write one a line, or remove"):
            read_all(text)


@pytest.mark.parametrize(("text", "negative"), [("a \ud83d", ""), ("a --n \udc00", ""), ("a", "\ud83d")])
def test_half_a_character_is_refused(text, negative):
    with pytest.raises(ValueError, match="has half of a character in it"):
        parse_all(text, negative, DEFAULTS)
