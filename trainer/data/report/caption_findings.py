"""Finds what a person should look at in the captions of a dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...model.family import FAR_TOO_LONG
from ..captions import brackets
from ..item import Dataset, Item
from .findings import Finding

SENTENCE_WORDS = frozenset("a an and are as at by for from has have her his in into is it its near of on over that the "
                           "their there this to under wearing which while who with".split())
"""English words that sentences have and lists of tags hardly have."""
TAG_PARTS = 4
"""The fewest parts between commas that make a list of tags. Fewer may be a short sentence."""
TAG_WORDS = 3.0
"""The most words that the tags of a list have on average."""
MOST_SENTENCE_WORDS = 0.08
"""The largest share of SENTENCE_WORDS in a list of tags. In English prose it is about a third."""
MANY = 0.5
"""The share of captions that must be lists of tags before the report mentions them."""


def about_missing_captions(dataset: Dataset, names: dict[Path, str]) -> Iterator[Finding]:
    """Yields a finding if images have no caption: whether LoRA Train takes them so, and what else can be done."""
    missing = tuple(names[item.path] for item in dataset.uncaptioned)
    if missing and dataset.takes_uncaptioned:
        yield Finding("uncaptioned", f"{len(missing)} without a caption, trained with the trigger word alone",
                      missing, f"{dataset.how_to_caption}, or let LoRA Captioner do it.")
    elif missing:
        yield Finding("uncaptioned", f"{len(missing)} without a caption, which LoRA Train refuses", missing,
                      dataset.caption_choices)


def about_captions(dataset: Dataset, names: dict[Path, str], tokens: dict[str, int], most: int) -> Iterator[Finding]:
    """Yields every finding about captions but those that are missing. Captions that were encoded elsewhere are not
    looked at.

    `tokens`: how many tokens each caption has, by its text as `whole` gives it, where that is known. `most`: how many
    tokens the model is made for."""
    items = list({item.path: item for item in dataset.items if item.text is None}.values())
    captioned = [item for item in items if item.has_caption and item.caption.strip()]
    if long := [names[i.path] for i in captioned if tokens.get(whole(i), 0) > most]:
        yield Finding("long", f"{len(long)} with a caption of more than the {most} tokens that the model is made for "
                      f"(up to {max(tokens.values())})", tuple(long), "Shorten them, and put what matters first. "
                      f"LoRA Train takes at most {FAR_TOO_LONG * most} tokens.")
    learned = [item for item in captioned if not item.regularization]
    yield from _trigger(learned, dataset.trigger_word.strip(), names)
    yield from _same(learned, names)
    if weighted := [names[i.path] for i in captioned if has_weights(whole(i))]:
        yield Finding("weights", f"{len(weighted)} with a caption whose brackets are read as weights", tuple(weighted),
                      "In ComfyUI 'miku (vocaloid)' is miku with a stronger vocaloid. Write \\( and \\) for brackets "
                      "that are part of the text.")
    if has_weights(word := dataset.trigger_word.strip()):
        yield Finding("trigger word with weights", f"the brackets of the trigger word '{word}' are read as weights",
                      (), f"Write it as '{brackets.escape(word)}', here and in prompts.")
    if tags := [names[i.path] for i in learned if is_tags(i.caption, dataset.trigger_word)]:
        if len(tags) > MANY * len(learned):
            yield Finding("tags", f"{len(tags)} with a list of tags for a caption", tuple(tags),
                          "Most models of today were trained on sentences: 'a woman with long hair sits on a bench' "
                          "teaches them more than '1girl, long_hair, bench'.")


def whole(item: Item) -> str:
    """Returns a caption with what its rules always put around it."""
    parts = (item.rules.caption_prefix, item.caption, item.rules.caption_suffix) if item.rules else (item.caption,)
    return " ".join(part for part in parts if part)


def count_tokens(items: Sequence[Item], count: Callable[[str], int]) -> dict[str, int]:
    """Returns how many tokens each different caption has, by its text as `whole` gives it."""
    return {text: count(text) for text in dict.fromkeys(whole(i) for i in items if i.text is None)}


def has_weights(caption: str) -> bool:
    """Tells whether ComfyUI reads brackets of a caption as weights: those without a backslash that open outside of
    others and are closed again, or that the caption ends with."""
    depth, opened = 0, False
    text = caption.replace("\\)", "\0").replace("\\(", "\0")
    for letter in text:
        opened = opened or (letter == "(" and depth == 0)
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0 and opened:
            return True
    return opened and depth > 0 and text.endswith(")")


def is_tags(caption: str, trigger_word: str = "") -> bool:
    """Tells whether a caption is a list of tags: several short parts between commas that are no sentence, or words such
    as `long_hair`. The rule knows English; other languages are judged by the length of the parts alone."""
    text = re.sub(brackets.phrase(trigger_word), " ", caption) if trigger_word else caption
    parts = [part.split() for part in re.split(r"[,\n]", text) if part.strip(" .")]
    words = [word.lower().strip(".") for part in parts for word in part]
    if sum("_" in word.strip("_") for word in words) >= 3:
        return True
    if len(parts) < TAG_PARTS or len(words) > TAG_WORDS * len(parts):
        return False
    return sum(word in SENTENCE_WORDS for word in words) <= MOST_SENTENCE_WORDS * len(words)


def spellings(caption: str, trigger_word: str) -> list[str]:
    """Returns each spelling of the trigger word in a caption. Case, spaces, `_`, `-` and backslashes before brackets
    may differ. Only whole words count."""
    letters = [brackets.letter(letter) for letter in brackets.bare(trigger_word) if not re.match(r"[\s_-]", letter)]
    pattern = r"(?<![\w\\])" + r"[\s_-]{0,2}".join(letters) + r"(?!\w)"
    return re.findall(pattern, caption, re.IGNORECASE) if letters else []


def _trigger(items: Sequence[Item], trigger_word: str, names: dict[Path, str]) -> Iterator[Finding]:
    if not trigger_word:
        return
    word = brackets.bare(trigger_word)
    found = {names[i.path]: [*map(brackets.bare, spellings(whole(i), word))] for i in items}
    if without := [name for name, ways in found.items() if not ways]:
        what = "no caption has the" if len(without) == len(found) else f"{len(without)} with a caption that lacks the"
        yield Finding("no trigger word", f"{what} trigger word '{trigger_word}'", tuple(without),
                      "LoRA Captioner adds it with the template {trigger}, {caption}. A style can do without it.")
    if other := [name for name, ways in found.items() if any(way != word for way in ways)]:
        ways = Counter(way for those in found.values() for way in those)
        listed = ", ".join(f"'{way}' ({count})" for way, count in ways.most_common())
        yield Finding("trigger word spelled differently", f"the trigger word '{trigger_word}' is spelled as {listed}",
                      tuple(other), "Spell it in one way: LoRA Caption Review replaces text in all captions.")


def _same(items: Sequence[Item], names: dict[Path, str]) -> Iterator[Finding]:
    if len(items) > 1 and len({whole(i) for i in items}) == 1:
        yield Finding("same caption", f"all {len(items)} captions are the same: “{shortened(items[0].caption)}”",
                      tuple(names[i.path] for i in items),
                      "This text then stands for all that the images share. Describe what differs between them, so "
                      "that a prompt can change it.")


def shortened(text: str, most: int = 80) -> str:
    """Returns a text as one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most - 1] + "…"
