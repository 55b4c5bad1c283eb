"""Captions the images of a dataset, and keeps each caption as soon as it is there."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..data.captions import brackets
from ..data.captions import files as captions
from ..data.item import Dataset, Item, check_editable, check_writable
from ..data.pictures import images
from ..disk.text import check_text, counted
from . import clean
from .engine import Describe, Engine
from .journal import Journal

log = logging.getLogger(__name__)

Scope = Literal["all", "missing only", "append"]
MOST_NAMED = 20
"""The most images whose problem an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Says which captions are written, and how they read."""

    template: str = "{trigger}, {caption}"
    which: Scope = "all"
    write_files: bool = False
    banned: tuple[str, ...] = ()
    """Words and phrases that are taken out."""
    replaced: tuple[tuple[str, str], ...] = ()
    """Words and phrases, and what stands in their place."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Captioned:
    """Holds what a run over a dataset has changed."""

    dataset: Dataset
    changes: tuple[tuple[str, str, str], ...]
    """The images whose captions changed: the name, the caption before, and the caption after."""
    problems: tuple[str, ...]
    """A sentence for each image that should have a new caption and has none."""


def caption(dataset: Dataset, plan: Plan, engine: Engine | None, scratch: Path,
            tell: Callable[[int, int], None] = lambda done, total: None) -> Captioned:
    """Writes captions with an engine, or edits those that are there if no engine is given.

    If a run is interrupted, the files written so far stay, and the next run with the same engine, settings and seed
    goes on from what `scratch` holds. `tell` is called with the number of images that are done and the number of all.
    Raises ValueError for a template or a plan that is impossible, and RuntimeError if the engine fails on every image.
    """
    captions.check_template(plan.template)
    for part in (plan.template, *plan.banned, *(word for pair in plan.replaced for word in pair)):
        check_text("The template, banned or replace", part)
    for value in engine.settings if engine else ():
        check_text("The prompt", str(value))
    if plan.which == "append" and engine is None:
        raise ValueError("which is 'append', but no engine is chosen whose words could be added. Choose an engine, or "
                         "set which to 'all' and write the words into the template: {caption}, more words.")
    wanted = [item for item in {item.path: item for item in dataset.items}.values()
              if plan.which != "missing only" or not item.own_caption]
    check_editable(wanted)
    if plan.write_files:
        check_writable(wanted)
    texts: dict[Path, str] = {}
    problems: list[str] = []
    with contextlib.closing(_words(wanted, plan, engine, scratch, problems)) as spoken:  # always unloads the engine
        for done, (item, words) in enumerate(spoken, start=1):
            if words is not None:
                text = texts[item.path] = _compose(item, words, plan, dataset.trigger_word)
                if plan.write_files and item.caption_file and text != item.own_caption:
                    captions.write(item.caption_file, text)
            tell(done, len(wanted))
    changed = tuple((i.path.name, i.own_caption, texts[i.path]) for i in wanted
                    if i.path in texts and texts[i.path] != i.own_caption)
    items = tuple(i.captioned(texts[i.path], dataset.trigger_word) if i.path in texts else i for i in dataset.items)
    return Captioned(replace(dataset, items=items), changed, tuple(problems))


def _compose(item: Item, words: str, plan: Plan, trigger: str) -> str:
    present, words = item.own_caption, clean.edit(words, plan.banned, plan.replaced)
    if plan.which == "append" and present:
        return clean.join(present, words)
    return captions.apply_template(plan.template, trigger=trigger, caption=words, name=item.path.stem)


def _words(items: list[Item], plan: Plan, engine: Engine | None, scratch: Path,
           problems: list[str]) -> Generator[tuple[Item, str | None]]:
    """Yields each image with what the template's {caption} stands for. Where there is nothing, yields None instead and
    adds a sentence to `problems`."""
    if engine is None:
        yield from ((item, item.own_caption) for item in items)
        return
    journal = Journal(scratch / "captioning", engine, plan.seed)
    said = journal.read()
    with contextlib.ExitStack() as stack:
        describe: Describe | None = None
        for item in items:
            if item.digest not in said:
                describe = describe or stack.enter_context(engine.opened())
                said |= _ask(describe, item, engine.max_side, plan.seed, problems)
                if item.digest in said:
                    journal.note(item.digest, said[item.digest])
            yield item, said.get(item.digest)
    if items and len(problems) == len(items):
        raise RuntimeError("\n".join([f"{engine.name} failed on {counted(len(items), 'image')}, on each:",
                                      *problems[:MOST_NAMED]]))
    if not problems:
        journal.remove()


def _ask(describe: Describe, item: Item, max_side: int, seed: int, problems: list[str]) -> dict[str, str]:
    try:
        if item.latents is not None:
            raise ValueError("it was given as latents, and there is no picture to look at. Wire in the images.")
        picture = images.load(item.path, shown_size(item.size, max_side))
        words = brackets.escape(describe(picture, seed_of(seed, item.digest)))
        if words:
            return {item.digest: words}
        problems.append(f"{item.path.name}: the engine said nothing about it. Its caption stays as it is.")
    except Exception as err:  # whatever a model does with one picture, the others can still be described
        log.warning("No caption for %s", item.path.name, exc_info=True)
        problems.append(f"{item.path.name}: {err or type(err).__name__}")
    return {}


def shown_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Returns the width and height with the longer side at most `max_side`, in proportion. Enlarges nothing."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def seed_of(seed: int, digest: str) -> int:
    """Returns an image's own seed, below 2⁶³. It is the same wherever the image stands in the dataset."""
    return int.from_bytes(hashlib.sha256(f"{seed} {digest}".encode()).digest()[:8], "big") >> 1
