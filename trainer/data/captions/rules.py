"""Varies a caption each time it is trained. The rules and their names are those of sd-scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

BRACES = {"{{": "\x00", "}}": "\x01"}
"""Braces that are written twice are plain braces, not wildcards. The characters that stand for them meanwhile occur in
no text."""
JOINT = ", "
"""What stands between the tags of a shuffled caption, whatever separated them before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRules:
    """Holds the caption rules of one subset. The defaults change nothing."""

    caption_prefix: str = ""
    caption_suffix: str = ""
    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    """A text such as "|||". What stands before its first occurrence stays in front, and what stands behind its second
    stays at the end."""
    secondary_separator: str = ""
    """A text such as ";;;" that joins tags, which are then moved and dropped as one."""
    enable_wildcard: bool = False
    """Whether `{a|b}` becomes a or b, and one of several lines is taken."""
    caption_dropout_rate: float | None = None
    """How often the whole caption is left out, 0 to 1. None: as often as the recipe says."""
    caption_tag_dropout_rate: float = 0.0
    """How often each tag is left out, 0 to 1."""


def variants(text: str, rules: CaptionRules, count: int, draw: torch.Generator) -> list[str]:
    """Returns up to `count` captions that sd-scripts (`BaseDataset.process_caption`) could draw from the text of a
    caption file. The plainest comes first: nothing is moved or left out, and the first of each choice is taken.

    The captions differ, and there are fewer if fewer are possible. If tags are left out, a caption that is likelier
    than others may come several times, because all are trained equally often. The trainer applies
    `caption_dropout_rate`."""
    text = _whole(text, rules)
    found = [_caption(text, rules, None)]
    if not rules.enable_wildcard and not rules.shuffle_caption and not rules.caption_tag_dropout_rate:
        return found
    if rules.caption_tag_dropout_rate:
        found += [_caption(text, rules, draw) for _ in range(count - 1)]
        return found if len({*found}) > 1 else found[:1]
    most = 50 + 20 * count  # after so many draws without a new caption there is hardly another one
    misses = 0
    while len(found) < count and misses < most:
        caption = _caption(text, rules, draw)
        misses = misses + 1 if caption in found else 0
        found += [] if misses else [caption]
    return found


def longest(text: str, rules: CaptionRules) -> list[str]:
    """Returns the longest captions, in bytes, that could be drawn from the text of a caption file: one for each line
    that could be taken."""
    lines = _whole(text, rules).split("\n") if rules.enable_wildcard else [_whole(text, rules)]
    fixed = replace(rules, enable_wildcard=False)
    return [_caption(_without_wildcards(line, _longest) if rules.enable_wildcard else line, fixed, None)
            for line in lines]


def _whole(text: str, rules: CaptionRules) -> str:
    """Returns the lines of a caption file that can be taken, with what stands around them."""
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    text = "\n".join(lines if rules.enable_wildcard else lines[:1])
    return " ".join(part for part in (rules.caption_prefix, text, rules.caption_suffix) if part)


def _caption(text: str, rules: CaptionRules, draw: torch.Generator | None) -> str:
    """Returns a caption that sd-scripts could draw. Without `draw` it is the plainest."""
    if rules.enable_wildcard:
        pick = partial(_pick, draw=draw)
        text = _without_wildcards(pick(text.split("\n")), pick)
    if rules.shuffle_caption or rules.caption_tag_dropout_rate:
        front, movable, end = _parts(text, rules)
        movable = _thinned(movable, rules.caption_tag_dropout_rate, draw)
        if rules.shuffle_caption and draw:
            movable = [movable[i] for i in torch.randperm(len(movable), generator=draw)]
        text = JOINT.join((*front, *movable, *end))
    if rules.secondary_separator:
        text = text.replace(rules.secondary_separator, rules.caption_separator)
    return text


def _without_wildcards(text: str, pick: Callable[[Sequence[str]], str]) -> str:
    for written, meant in BRACES.items():
        text = text.replace(written, meant)
    choices, last, rest = text.rpartition("}")  # searched on, a brace that nothing closes would cost its distance
    text = re.sub("{([^}]+)}", lambda found: pick(found[1].split("|")), choices + last) + rest
    for written, meant in BRACES.items():
        text = text.replace(meant, written[0])
    return text


def _parts(text: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """Returns the tags that stay in front, those that can be moved and left out, and those that stay at the end."""
    if rules.keep_tokens_separator and rules.keep_tokens_separator in text:
        parts = (text.split(rules.keep_tokens_separator, 2) + [""])[:3]
        front, movable, end = ([tag for tag in _tags(part, rules) if tag] for part in parts)
        return front, movable, end
    tags = _tags(text, rules)
    return tags[:rules.keep_tokens], tags[rules.keep_tokens:], []


def _tags(text: str, rules: CaptionRules) -> list[str]:
    return [tag.strip() for tag in text.split(rules.caption_separator)]


def _thinned(tags: list[str], rate: float, draw: torch.Generator | None) -> list[str]:
    """Returns the tags without those that are left out."""
    if rate <= 0 or (draw is None and rate < 1):
        return tags
    return [tag for tag in tags if draw and torch.rand((), generator=draw) >= rate]


def _longest(options: Sequence[str]) -> str:
    return max(options, key=lambda option: len(option.encode(errors="replace")))


def _pick(options: Sequence[str], draw: torch.Generator | None) -> str:
    return options[int(torch.randint(len(options), (), generator=draw))] if draw else options[0]
