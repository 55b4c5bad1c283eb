"""Cleans and edits the words of an engine before they become a caption."""

from __future__ import annotations

import re

from ..data.captions import brackets
from ..disk.text import check_text

_KIND = r"(?:caption|description|prompt)\b"
_PREFACES = [re.compile(pattern, re.IGNORECASE) for pattern in (
    r"^(?:sure|certainly|of course|absolutely|okay)\b(?: thing)?[,.!]+ *",
    rf"^(?:here(?:'s|’s| is| are)|this is) (?:[\w'-]+ ){{0,5}}?{_KIND}[^:.]{{0,80}}: *",
    rf"^(?:the |an? )?(?:[\w'-]+ ){{0,2}}?{_KIND} *: *",
)]
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "`": "`"}
_ARROW = re.compile("→|->|=>")


def plain(text: str) -> str:
    """Returns a language model's answer as one line, without its thoughts (also those it did not finish), without
    Markdown, an introduction such as "Here is a caption:", and quotation marks around all of it."""
    text = re.sub(r"^.*</think(?:ing)?>", "", text, flags=re.DOTALL)  # the opening tag can be part of the question
    text = re.sub(r"<think(?:ing)?>.*$", "", text, flags=re.DOTALL)
    text = " ".join(_without_markdown(text).split())
    for preface in _PREFACES:
        text = preface.sub("", text)
    return _without_quotes(text)


def _without_markdown(text: str) -> str:
    text = re.sub(r"^\s*```.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:#{1,6}|[-*•>])\s+", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    for mark in (r"\*\*", "__", r"\*", "`"):
        text = re.sub(rf"(?<![\w*]){mark}(?=\S)(.+?)(?<=\S){mark}(?![\w*])", r"\1", text)
    return text


def _without_quotes(text: str) -> str:
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & {*text[1:-1]}:
        text = text[1:-1].strip()
    return text


def word_list(text: str) -> tuple[str, ...]:
    """Returns the words or phrases that stand between commas or on lines of their own."""
    return tuple(word for part in re.split(r"[,\n]", text) if (word := " ".join(part.split())))


def replacements(text: str) -> tuple[tuple[str, str], ...]:
    """Returns the pairs (old, new) of a text with `old → new` on each line. `->` and `=>` will do as well. Raises
    ValueError for a line that is something else."""
    pairs = []
    check_text("replace", text)
    for line in filter(None, map(str.strip, text.splitlines())):
        old, *new = map(str.strip, _ARROW.split(line))
        if not old or len(new) != 1:
            raise ValueError(f"replace: '{line[:80]}' does not read like: old → new. Write one such pair on each line.")
        pairs.append((old, new[0]))
    return tuple(pairs)


def edit(text: str, banned: tuple[str, ...], replaced: tuple[tuple[str, str], ...]) -> str:
    """Replaces words and phrases, then removes the banned ones, and tidies up the commas around what is gone. Finds
    them in upper and lower case and with or without backslashes before brackets, but only as whole words."""
    for old, new in (*replaced, *((word, "") for word in banned)):
        text = re.sub(brackets.phrase(old), lambda _, new=new: new, text, flags=re.IGNORECASE)
    return tidy(text) if banned or replaced else text


def tidy(text: str) -> str:
    """Removes spaces before a comma or full stop, and commas that have no words between them."""
    text = re.sub(r"\s+([,.;!?])", r"\1", " ".join(text.split()))
    text = re.sub(r"([,;])(?:\s*[,;])+", r"\1", text)
    return re.sub(r"[,;]+(?=[.!?])", "", text).strip(" ,;")


def join(present: str, new: str) -> str:
    """Adds words to the end of a caption: a sentence after a sentence, a tag after a tag."""
    if not (present and new) or present.endswith(new):
        return present or new
    return f"{present} {new}" if present[-1] in ".!?" else f"{present.rstrip(' ,;')}, {new}"
