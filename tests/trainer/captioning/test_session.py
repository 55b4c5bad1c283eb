"""A run over a small dataset, with an engine whose words are known."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from livelora.trainer.captioning.session import Plan, caption, seed_of, shown_size
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.data.review import recaptioned
from PIL import Image

COLORS = ("red", "green", "blue")


class Stopped(BaseException):
    """As ComfyUI's interruption, which is no Exception either."""


@dataclass
class ByColor:
    """Names the colour that fills a picture."""

    name: str = "ByColor"
    settings: tuple = ()
    max_side: int = 32
    seen: list = field(default_factory=list)
    opened_times: int = 0
    is_open: bool = False
    fails_on: tuple = ()
    silent_on: tuple = ()

    @contextlib.contextmanager
    def opened(self):
        self.opened_times, self.is_open = self.opened_times + 1, True
        try:
            yield self.describe
        finally:
            self.is_open = False

    def describe(self, picture, seed):
        color = COLORS[picture[0, 0].argmax()]
        self.seen.append((color, tuple(picture.shape), seed))
        if color in self.fails_on:
            raise RuntimeError(f"no word for {color}")
        return "" if color in self.silent_on else f"a {color} field"


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Three pictures, of which the green one has a caption. 64 × 48 pixels."""
    items = []
    for color in COLORS:
        path = tmp_path / "images" / f"{color}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), {"green": "lime"}.get(color, color)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        text = "an old one." if color == "green" else "ohwx"
        items.append(Item(path, text, 1, (64, 48), (64, 48), digest, has_caption=color == "green",
                          caption_file=path.with_suffix(".txt")))
    items[1].path.with_suffix(".txt").write_text("an old one.\n")
    return Dataset(tmp_path / "images", 64, "ohwx", tuple(items))


def texts(dataset: Dataset) -> list[str]:
    return [item.caption for item in dataset.items]


def files(dataset: Dataset) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in sorted(dataset.folder.glob("*.txt*"))}


def journals(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "scratch").rglob("*.jsonl"))


def run(dataset, tmp_path, engine, tell=lambda done, total: None, **wish):
    return caption(dataset, Plan(**wish), engine, tmp_path / "scratch", tell)


def test_all_captions_are_written_anew_in_memory(dataset, tmp_path):
    done = run(dataset, tmp_path, ByColor())
    assert texts(done.dataset) == ["ohwx, a red field", "ohwx, a green field", "ohwx, a blue field"]
    assert all(item.has_caption for item in done.dataset.items)
    assert done.changes[1] == ("green.png", "an old one.", "ohwx, a green field")
    assert files(dataset) == {"green.txt": "an old one."}


def test_only_missing_ones(dataset, tmp_path):
    engine = ByColor()
    done = run(dataset, tmp_path, engine, which="missing only", write_files=True, template="{caption}")
    assert texts(done.dataset) == ["a red field", "an old one.", "a blue field"]
    assert [color for color, *_ in engine.seen] == ["red", "blue"]
    assert files(dataset) == {"blue.txt": "a blue field", "green.txt": "an old one.", "red.txt": "a red field"}


def test_words_are_appended(dataset, tmp_path):
    done = run(dataset, tmp_path, ByColor(), which="append", write_files=True)
    assert texts(done.dataset) == ["ohwx, a red field", "an old one. a green field", "ohwx, a blue field"]
    assert files(dataset)["green.txt.bak"] == "an old one."


def test_words_are_banned_and_replaced_in_what_is_new(dataset, tmp_path):
    done = run(dataset, tmp_path, ByColor(), banned=("a",), replaced=(("field", "meadow"),))
    assert texts(done.dataset)[0] == "ohwx, red meadow"


def test_without_an_engine_the_captions_that_are_there_are_edited(dataset, tmp_path):
    done = run(dataset, tmp_path, None, template="{trigger}, {caption}", replaced=(("old", "new"),))
    assert texts(done.dataset) == ["ohwx", "ohwx, an new one.", "ohwx"]


def test_appending_needs_an_engine(dataset, tmp_path):
    with pytest.raises(ValueError, match="which is 'append', but no engine is chosen"):
        run(dataset, tmp_path, None, which="append")


def test_a_picture_is_shown_whole_and_scaled_down(dataset, tmp_path):
    engine = ByColor()
    run(dataset, tmp_path, engine)
    assert {shape for _, shape, _ in engine.seen} == {(24, 32, 3)}


@pytest.mark.parametrize(("size", "shown"), [((1024, 768), (512, 384)), ((100, 50), (100, 50)), ((9000, 3), (512, 1))])
def test_the_longer_side_is_at_most_that(size, shown):
    assert shown_size(size, 512) == shown


def test_each_image_has_its_own_seed(dataset, tmp_path):
    engine, other = ByColor(), ByColor()
    run(dataset, tmp_path, engine, seed=1)
    run(dataset, tmp_path, other, seed=2)
    seeds = [seed for *_, seed in engine.seen + other.seen]
    assert len({*seeds}) == 6 and all(0 <= seed < 2**63 for seed in seeds)
    # the first 8 bytes of `printf '1 abc' | sha256sum`, halved
    assert seed_of(1, "abc") == int(hashlib.sha256(b"1 abc").hexdigest()[:16], 16) // 2


def test_a_run_that_is_stopped_keeps_what_is_done_and_goes_on_there(dataset, tmp_path):
    def stop(done, total):
        assert total == 3
        if done == 2:
            raise Stopped

    first, second = ByColor(), ByColor()
    with pytest.raises(Stopped):
        run(dataset, tmp_path, first, stop, write_files=True)
    assert not first.is_open
    assert files(dataset) == {"green.txt": "ohwx, a green field", "green.txt.bak": "an old one.",
                              "red.txt": "ohwx, a red field"}
    assert len(journals(tmp_path)) == 1
    done = run(dataset, tmp_path, second, write_files=True)
    assert [color for color, *_ in second.seen] == ["blue"]
    assert texts(done.dataset) == ["ohwx, a red field", "ohwx, a green field", "ohwx, a blue field"]
    assert not journals(tmp_path)


def test_another_seed_or_other_settings_do_not_go_on_from_it(dataset, tmp_path):
    def stop(done, total):
        raise Stopped

    with pytest.raises(Stopped):
        run(dataset, tmp_path, ByColor(), stop)
    for engine, seed in ((ByColor(), 1), (ByColor(settings=("other",)), 0)):
        run(dataset, tmp_path, engine, seed=seed)
        assert len(engine.seen) == 3


def test_a_line_that_a_crash_cut_off_is_asked_again(dataset, tmp_path):
    def stop(done, total):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(dataset, tmp_path, ByColor(), stop)
    [journal] = journals(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-5])
    engine = ByColor()
    run(dataset, tmp_path, engine)
    assert [color for color, *_ in engine.seen] == ["green", "blue"]


def test_stopping_while_appending_appends_nothing_twice(dataset, tmp_path):
    def stop(done, total):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(dataset, tmp_path, ByColor(), stop, which="append", write_files=True)
    loaded = recaptioned(dataset, [files(dataset).get(f"{color}.txt", "") for color in COLORS])
    done = run(loaded, tmp_path, ByColor(), which="append", write_files=True)
    assert texts(done.dataset) == ["ohwx, a red field", "an old one. a green field", "ohwx, a blue field"]


def test_a_picture_on_which_the_engine_fails_is_named_and_the_others_go_on(dataset, tmp_path):
    done = run(dataset, tmp_path, ByColor(fails_on=("red",), silent_on=("green",)), write_files=True)
    assert texts(done.dataset) == ["ohwx", "an old one.", "ohwx, a blue field"]
    assert [item.has_caption for item in done.dataset.items] == [False, True, True]
    assert done.problems == ("red.png: no word for red",
                             "green.png: the engine said nothing about it. Its caption stays as it is.")
    again = ByColor()
    run(dataset, tmp_path, again)
    assert [color for color, *_ in again.seen] == ["red", "green"]


def test_an_engine_that_fails_on_all_is_an_error(dataset, tmp_path):
    with pytest.raises(RuntimeError, match="ByColor failed on 3 images, on each:\nred.png: no word for red"):
        run(dataset, tmp_path, ByColor(fails_on=COLORS))


def test_an_engine_that_is_not_needed_is_not_loaded(dataset, tmp_path):
    engine = ByColor()
    run(recaptioned(dataset, ["a", "b", "c"]), tmp_path, engine, which="missing only")
    assert engine.opened_times == 0


def test_an_image_that_is_trained_at_two_sizes_is_described_once(dataset, tmp_path):
    twice = Dataset(dataset.folder, 64, "ohwx", dataset.items[:1] * 2)
    engine = ByColor()
    done = run(twice, tmp_path, engine)
    assert texts(done.dataset) == ["ohwx, a red field"] * 2
    assert len(engine.seen) == len(done.changes) == 1


def test_a_caption_that_is_encoded_is_not_edited(dataset, tmp_path):
    """The new words would be trained by nobody."""
    items = tuple(replace(item, text=tmp_path / "text.safetensors") for item in dataset.items)
    with pytest.raises(ValueError, match="encoded already cannot be edited, 3 captions"):
        run(replace(dataset, items=items), tmp_path, ByColor(), which="all")


@pytest.mark.parametrize("plan", [Plan(template="{caption}\ud83d"), Plan(banned=("\ud83d",)),
                                  Plan(replaced=(("a", "\udc00"),))])
def test_half_a_character_is_refused(tmp_path, plan):
    with pytest.raises(ValueError, match="has half of a character in it"):
        caption(Dataset(tmp_path, 64, "ohwx", ()), plan, ByColor(), tmp_path)
    with pytest.raises(ValueError, match="The prompt has half of a character in it"):
        caption(Dataset(tmp_path, 64, "ohwx", ()), Plan(), ByColor(settings=("\ud83d",)), tmp_path)
