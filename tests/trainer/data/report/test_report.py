"""Every finding is there when it should be, and not otherwise."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import skimage
from livelora.trainer.data.captions.rules import CaptionRules
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.data.report import findings as pictures
from livelora.trainer.data.report import report
from livelora.trainer.data.report.caption_findings import is_tags, spellings
from livelora.trainer.data.report.findings import _near
from PIL import Image, ImageEnhance, ImageFilter
from reading import read

FOLDER = Path("/data/cats")
PHOTOS = Path(skimage.__file__).parent / "data"
PROSE = "a photo of ohwx, a cat that sits on the sofa number {}"
draw = random.Random(5)


def item(name: str, caption: str | None = None, **facts) -> Item:
    """A sharp picture that looks like no other."""
    facts = {"num_repeats": 1, "size": (600, 600), "bucket": (512, 512), "digest": name, "sharpness": 400.0,
             "perceptual_hash": draw.getrandbits(64), **facts}
    return Item(FOLDER / name, PROSE.format(name) if caption is None else caption, **facts)


def dataset(*items: Item, **facts) -> Dataset:
    """With twelve good ones before."""
    good = [item(f"good{i}.png") for i in range(12)]
    return Dataset(**{"folder": FOLDER, "resolution": 512, "trigger_word": "ohwx", "items": (*good, *items), **facts})


def findings(data: Dataset, **options) -> dict[str, report.Finding]:
    return {finding.kind: finding for finding in report.make(data, **options).findings}


def test_a_good_dataset_has_a_short_report():
    made = report.make(dataset())
    assert made.findings == () and len(made.text.splitlines()) <= 6
    assert made.text.startswith(f"12 images in {FOLDER}\n12 × 512×512\n")


def test_counts_sizes_and_what_was_skipped():
    data = dataset(item("tall.png", size=(600, 900), bucket=(448, 640), num_repeats=4, mask=Path("m.png"), weight=0.5),
                   item("class.png", regularization=True), skipped=("a.png is broken.",))
    text = report.make(data).text
    assert "14 images in" in text and "17 with repeats" in text
    assert "13 × 512×512\n1 × 448×640" in text and "Skipped: a.png is broken." in text
    assert "1 with masks" in text and "1 with a weight of their own" in text and "1 for regularization" in text


def test_an_image_at_several_resolutions_is_one_image():
    data = dataset(item("a.png", digest="same"), item("a.png", digest="same", bucket=(256, 256)))
    assert findings(data) == {}
    assert "13 images in" in report.make(data).text and "at several resolutions 14" in report.make(data).text


def test_the_report_is_json():
    data = dataset(item("b.png", size=(9, 9)), item("c.png", "", has_caption=False), skipped=("x",))
    told = json.loads(json.dumps(report.make(data, len).as_dict()))
    assert told["buckets"] == [{"width": 512, "height": 512, "pictures": 14}]
    assert {"kind", "what", "files", "advice", "groups"} == {*told["findings"][0]} and told["repeats"] == [10, 15]


@pytest.mark.parametrize(("images", "repeats"), [(1, (10, 15)), (19, (10, 15)), (20, (5, 8)), (50, (5, 8)),
                                                 (51, (3, 5)), (4000, (3, 5))])
def test_repeats_are_suggested_by_the_rule_of_thumb(images, repeats):
    """The issue: 10–15 for fewer than 20 images, 5–8 for 20–50, 3–5 above."""
    assert report.suggested_repeats(images) == repeats


def test_few_images_count_by_content():
    data = dataset()
    assert "few" not in findings(data)
    same = replace(data, items=tuple(replace(i, digest="one") for i in data.items))
    assert findings(same)["few"].what == "only 1 different image"


def test_small_images_enlarged_or_not():
    found = findings(dataset(item("up.png", size=(300, 700)), item("own.png", size=(300, 300), bucket=(256, 256))))
    assert found["enlarged"].files == ("up.png",) and found["small"].files == ("own.png",)
    assert "smaller than the training size" in found["enlarged"].what


def test_copies_and_pictures_that_look_alike_are_told_apart():
    first = draw.getrandbits(64)
    found = findings(dataset(item("a.png", digest="x", perceptual_hash=first),
                             item("b.png", digest="x", perceptual_hash=first),
                             item("c.png", perceptual_hash=first ^ 0b10110),  # 3 bits from a
                             item("d.png", perceptual_hash=first ^ (0b11111 << 40) ^ 0b10110)))  # 5 from c, 8 from a
    assert found["copies"].groups == (("a.png", "b.png"),)
    [group] = found["similar"].groups
    assert group[1:] == ("c.png", "d.png") and group[0] in ("a.png", "b.png")
    assert "a.png ~ b.png" in report.make(dataset(item("a.png", digest="x"), item("b.png", digest="x"))).text


def test_plain_pictures_do_not_look_alike():
    """A white and a red page have the same hash, 0, which says only that nothing is on them."""
    assert "similar" not in findings(dataset(item("white.png", perceptual_hash=0), item("red.png", perceptual_hash=1)))


def test_pairs_are_those_that_python_counts():
    base = [draw.getrandbits(64) for _ in range(40)]
    hashes = [h ^ sum(1 << draw.randrange(64) for _ in range(k)) & (2**64 - 1) for h in base for k in range(9)]
    different = list(dict.fromkeys(hashes))
    expected = {frozenset((a, b)) for a, b in itertools.combinations(different, 2) if bin(a ^ b).count("1") <= 5}
    assert {frozenset(pair) for pair in _near(different)} == expected and len(expected) > 100


def test_comparing_folders_and_pictures_takes_no_time_that_grows_with_the_square(monkeypatch):
    """2,000 pictures, half of which look alike, each in a folder of its own: each folder is looked at once, and each
    hash is compared with few others."""
    compared, looked_at, really, parent = [], [], pictures._near_of, Path.parent.fget
    monkeypatch.setattr(pictures, "_near_of", lambda table: compared.append(len(table)**2) or really(table))
    monkeypatch.setattr(Path, "parent", property(lambda path: looked_at.append(path) or parent(path)))
    hashes = [draw.getrandbits(64) for _ in range(1000)] + [0xF0F0F0F0F0F0F0F0] * 1000
    items = [item(f"{i}/a.png", perceptual_hash=h, num_repeats=5 if i else 50) for i, h in enumerate(hashes)]
    found = findings(dataset(items=tuple(items)))
    assert len(found["similar"].files) == 1000 and len(found["unbalanced"].files) == 2000
    assert sum(compared) < 100 * len(hashes) and len(looked_at) < 10 * len(hashes)


def test_real_photos_saved_anew_look_alike_and_others_do_not(tmp_path):
    for name in ("astronaut", "camera", "coffee", "motorcycle_left", "motorcycle_right", "brick", "grass", "gravel"):
        Image.open(PHOTOS / f"{name}.png").convert("RGB").save(tmp_path / f"{name}.png")
    photo = Image.open(PHOTOS / "astronaut.png")
    photo.resize((256, 256)).save(tmp_path / "astronaut-small.jpg", quality=50)
    ImageEnhance.Brightness(photo).enhance(1.15).save(tmp_path / "astronaut-bright.png")
    Image.open(PHOTOS / "coffee.png").resize((900, 600)).filter(ImageFilter.GaussianBlur(5)).save(tmp_path / "soft.png")
    found = findings(read(tmp_path, on_missing_caption="use the trigger word"))
    assert {frozenset(group) for group in found["similar"].groups} == {
        frozenset({"astronaut.png", "astronaut-small.jpg", "astronaut-bright.png"}),
        frozenset({"coffee.png", "soft.png"})}
    assert found["blurred"].files == ("soft.png",)
    assert len(found["uncaptioned"].files) == 11


def test_blur_is_far_below_the_others_or_below_the_floor():
    soft = item("soft.png", sharpness=35.0)
    assert findings(dataset(soft))["blurred"].files == ("soft.png",)  # the others have 400
    all_soft = dataset(items=tuple(item(f"{i}.png", sharpness=35.0) for i in range(12)))
    assert "blurred" not in findings(all_soft)
    with_blurred = replace(all_soft, items=(*all_soft.items, item("x.png", sharpness=3.0)))
    assert findings(with_blurred)["blurred"].files == ("x.png",)
    assert "blurred" not in findings(dataset(item("icon.png", sharpness=3.0, size=(128, 128), bucket=(128, 128))))


def test_folders_that_come_much_oftener():
    more = [item(f"10_cat/{i}.png", num_repeats=10) for i in range(4)]  # 40 against 12
    found = findings(dataset(*more))["unbalanced"]
    assert "'10_cat' comes 3.3 times as often as 'cats' (40 and 12 with repeats)" in found.what
    assert "unbalanced" not in findings(dataset(*more[:3]))  # 30: less than 3 ×
    assert "unbalanced" not in findings(dataset(*(replace(i, regularization=True) for i in more)))


def test_captions_that_are_too_long_are_counted_with_what_is_around_them():
    rules = CaptionRules(caption_prefix="two words", caption_suffix="end")
    data = dataset(items=(item("a.png", "ohwx and three more", rules=rules), item("b.png", "ohwx and three more")))

    def count(text: str) -> int:
        return len(text.split())

    assert findings(data, count_tokens_of=count, most_tokens=6)["long"].files == ("a.png",)
    assert "(up to 7)" in findings(data, count_tokens_of=count, most_tokens=6)["long"].what
    assert "long" not in findings(data, count_tokens_of=count, most_tokens=7)
    assert "long" not in findings(data, most_tokens=1)


def test_the_trigger_word_is_missed():
    found = findings(dataset(item("a.png", "a cat on the sofa"), item("b.png", "a ohwxy cat on the sofa")))
    assert found["no trigger word"].files == ("a.png", "b.png")
    assert "no trigger word" not in findings(dataset(item("a.png", "a cat"), trigger_word=""))
    rules = CaptionRules(caption_prefix="ohwx")
    assert "no trigger word" not in findings(dataset(item("a.png", "a cat on the sofa", rules=rules)))
    assert "no trigger word" not in findings(dataset(item("a.png", "a cat on the sofa", regularization=True)))


@pytest.mark.parametrize(("caption", "found"), [
    ("ohwx_person", ["ohwx_person"]), ("photo of Ohwx Person, ohwxperson", ["Ohwx Person", "ohwxperson"]),
    ("OHWX-PERSON.", ["OHWX-PERSON"]), ("ohwx persona", []), ("a person", []), ("myohwx_person", []),
])
def test_spellings_of_the_trigger_word(caption, found):
    assert spellings(caption, "ohwx_person") == found


def test_several_spellings_are_listed():
    texts = ("Ohwx Person on the sofa", "the ohwxperson is here", "the ohwx_person is here")
    data = dataset(items=tuple(item(f"{i}.png", text) for i, text in enumerate(texts)), trigger_word="ohwx_person")
    found = findings(data)["trigger word spelled differently"]
    assert found.files == ("0.png", "1.png")
    assert all(f"'{way}' (1)" in found.what for way in ("Ohwx Person", "ohwxperson", "ohwx_person"))


@pytest.mark.parametrize("caption", [
    "1girl, solo, long hair, blue eyes, smile", "1girl, long_hair, blue_eyes, looking_at_viewer",
    "masterpiece, best quality, red dress, outdoors, night sky, city lights",
    "long_hair blue_eyes red_dress"])
def test_lists_of_tags(caption):
    assert is_tags(caption)


@pytest.mark.parametrize("caption", [
    "a cat", "flatmoji, red apple", "A woman with long hair sits on a bench, reading a book, in the evening sun.",
    "ohwx, in the park, on a bench, with a dog, near the lake", "The cat. The dog. The bird.", ""])
def test_sentences_are_no_tags(caption):
    assert not is_tags(caption)


def test_tags_are_told_when_most_captions_are():
    tags = [item(f"{i}.png", "ohwx, solo, red hair, smile, park") for i in range(13)]
    assert len(findings(dataset(*tags))["tags"].files) == 13
    assert "tags" not in findings(dataset(*tags[:5]))


def test_one_caption_for_all():
    same = dataset(items=tuple(item(f"{i}.png", "ohwx") for i in range(12)))
    assert "all 12 captions are the same: “ohwx”" in findings(same)["same caption"].what
    uncaptioned = replace(same, items=tuple(replace(i, has_caption=False) for i in same.items))
    assert {*findings(uncaptioned)} == {"uncaptioned"}


@pytest.mark.parametrize(("caption", "found"), [
    ("ohwx, miku (vocaloid)", True), (r"ohwx, miku \(vocaloid\)", False), ("ohwx, (red:1.3) dress", True),
    ("ohwx smiles :)", False), ("ohwx [sketch]", False)])
def test_brackets_that_are_weights(caption, found):
    made = report.make(dataset(item("a.png", caption)))
    assert [(f.kind, f.files) for f in made.findings] == ([("weights", ("a.png",))] if found else [])
    assert (r"Write \( and \) for brackets that are part of the text" in made.text) == found


@pytest.mark.parametrize("trigger", ["miku (vocaloid)", r"miku \(vocaloid\)"])
def test_a_trigger_word_is_found_with_and_without_backslashes(trigger):
    data = dataset(item("a.png", r"miku \(vocaloid\), 1girl"), trigger_word=trigger)
    found = findings(data)
    assert "a.png" not in found["no trigger word"].files and "trigger word spelled differently" not in found
    assert ("trigger word with weights" in found) == ("\\" not in trigger)
    assert (r"Write it as 'miku \(vocaloid\)', here and in prompts." in report.make(data).text) == ("\\" not in trigger)


def test_what_was_encoded_elsewhere_is_not_looked_at():
    encoded = item("0001.latents.safetensors", "(encoded)", latents=Path("l"), text=Path("t"), size=(64, 64),
                   bucket=(64, 64), sharpness=None, perceptual_hash=None)
    assert findings(dataset(encoded), count_tokens_of=lambda text: 600 if "enc" in text else 1) == {}


def test_names_are_below_the_folder_that_holds_all():
    first, second = Item(Path("/x/1_a/p.png"), "c", 1, (9, 9), (16, 16), "0"), item("p.png")
    data = Dataset(Path("/elsewhere/set.toml"), 16, "", (first, replace(second, path=Path("/x/2_b/p.png"))))
    assert [name for _, name in report.make(data).captions] == ["1_a/p.png", "2_b/p.png"]


def test_alike_pictures_are_found_among_a_thousand():
    """Hashes are compared in blocks; random ones of 64 bits never come near each other."""
    draw = random.Random(0)
    hashes = [draw.getrandbits(64) for _ in range(1000)]
    hashes[900] = hashes[3] ^ 0b101
    items = tuple(item(f"{i}.png", f"ohwx, park {i}", digest=f"{i}", perceptual_hash=h) for i, h in enumerate(hashes))
    assert findings(dataset(items=items))["similar"].files == ("3.png", "900.png")
