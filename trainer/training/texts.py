"""Finds the captions of a task that are missing, and its texts that are far too long, before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..data.captions import rules as caption_rules
from ..data.captions.files import with_class
from ..data.item import Dataset
from ..data.naming import name_some
from ..disk.text import counted
from ..model.host import Host
from ..recipe.config import TrainConfig


def caption_problems(datasets: Sequence[Dataset | None]) -> Iterator[str]:
    """Yields a sentence for each dataset with images that have no caption, unless the trigger word stands in."""
    for dataset in filter(None, datasets):
        if (missing := dataset.uncaptioned) and not dataset.takes_uncaptioned:
            images = counted(len({item.path for item in dataset.items}), "image")
            verb = "has" if len(missing) == 1 else "have"
            yield (f"{len(missing)} of {images} in '{dataset.folder}' {verb} no caption: "
                   f"{name_some([item.path.name for item in missing])}. {dataset.caption_choices}")


def length_problems(host: Host, config: TrainConfig, datasets: Sequence[Dataset | None],
                    prompts: Sequence[str]) -> Iterator[str]:
    """Yields a sentence if captions or preview prompts have more tokens than are encoded. It names them."""
    made_for, most = host.family.caption_tokens, host.family.most_tokens
    tokens: dict[str, int] = {}
    for name, text in _texts(config, datasets, prompts):
        # Counting takes milliseconds, and a token stands for at least a byte.
        if len(text.encode(errors="replace")) > most and (found := host.count_tokens(text)) > most:
            tokens[name] = max(found, tokens.get(name, 0))
    if tokens:
        named = name_some([f"{name} (at least {found} tokens)" for name, found in tokens.items()])
        yield (f"{counted(len(tokens), 'text')} far too long: {named}. {host.family.name} is made for {made_for} "
               f"tokens, and at most {most} are encoded, because memory grows with their square. Shorten them.")


def _texts(config: TrainConfig, datasets: Sequence[Dataset | None],
           prompts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields each text in its longest forms, with the name of its image or of where it stands."""
    for dataset in filter(None, datasets):
        captions = ((i, text) for i in dataset.items if i.text is None
                    for text in (caption_rules.longest(i.caption, i.rules) if i.rules else [i.caption]))
        for item, caption in captions:
            yield f"the caption of {item.path.name}", caption
            if config.preservation_class:
                yield "a caption with preservation_class", with_class(caption, dataset.trigger_word,
                                                                      config.preservation_class)
    yield from (("a prompt of LoRA Sample Preview", text) for text in prompts)
