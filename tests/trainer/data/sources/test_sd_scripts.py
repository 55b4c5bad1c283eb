"""Dataset configurations of sd-scripts, against tables that sd-scripts itself made of them.

`sd_scripts.json` says how. Where we differ on purpose: images without captions and class tokens have no caption (there
an empty one); of regularization images the repeats are as written (there they are balanced at once, here when training
starts); .txt is read where there is no .caption and no caption_extension; `a_1_2_3_4.png` does not take the caption of
`a.png`; image_dir begins at the TOML file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from livelora.trainer.data.captions import table
from livelora.trainer.data.captions.rules import variants
from livelora.trainer.data.pictures.augment import Augment
from livelora.trainer.data.pictures.buckets import Buckets
from livelora.trainer.data.sources.sd_scripts import read_toml

TABLES = json.loads(Path(__file__).with_name("sd_scripts.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in TABLES["cases"]}
HEAD = "[general]\nenable_bucket = true\n[[datasets]]\nresolution = 512\n"
SUBSET = "[[datasets.subsets]]\nimage_dir = 'cats'\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that sd-scripts was given; pictures without pixels, which nobody opens."""
    folder = tmp_path_factory.mktemp("sd_scripts")
    for name, text in {**dict.fromkeys(TABLES["sizes"], ""), **TABLES["files"]}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def cats(tmp_path):
    (tmp_path / "cats").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "cats" / name).touch()
    return tmp_path


def read(folder, toml):
    (folder / "data.toml").write_text(toml, encoding="utf-8")
    return read_toml(folder / "data.toml")


def refusal(folder, toml):
    with pytest.raises(ValueError) as caught:
        read(folder, toml)
    assert str(folder / "data.toml") in str(caught.value)
    return str(caught.value)


def text_of(entry):
    if entry.caption is not None:
        return entry.caption
    return entry.caption_file.read_text(encoding="utf-8") if entry.caption_file.is_file() else ""


@pytest.mark.parametrize("name", CASES)
def test_images_repeats_and_sizes_are_those_of_sd_scripts(folder, name):
    found, _ = read(folder, CASES[name]["toml"])
    ours, theirs = Counter(), Counter()
    for entry in found:
        key = entry.path.relative_to(folder).as_posix()
        (buckets,) = entry.buckets
        ours[key, buckets.choose(tuple(TABLES["sizes"][key])), entry.num_repeats, entry.regularization] += 1
    for images in CASES[name]["datasets"]:
        for key, image in images.items():
            reg = image.get("is_reg", False)
            theirs[key, tuple(image["bucket"]), image["subset_repeats" if reg else "repeats"], reg] += 1
    assert ours == theirs


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "captions" in next(iter(c["datasets"][0].values()))])
def test_captions_are_those_that_sd_scripts_draws(folder, name):
    """All of them, since none of these images has more than 120."""
    found, _ = read(folder, CASES[name]["toml"])
    theirs = [(key, image["captions"]) for images in CASES[name]["datasets"] for key, image in images.items()]
    ours = []
    for entry in found:
        draw = torch.Generator().manual_seed(0)
        assert entry.rules
        count = 2000 if entry.rules.caption_tag_dropout_rate else 200
        captions = variants(text_of(entry), entry.rules, count, draw)
        ours.append((entry.path.relative_to(folder).as_posix(), sorted({*captions})))
    assert sorted(ours) == sorted(theirs)


def test_settings_are_inherited_and_the_innermost_counts(cats):
    found, _ = read(cats, "[general]\nnum_repeats = 2\nflip_aug = true\ncaption_prefix = 'x'\n[[datasets]]\n"
                    "resolution = 512\ncaption_prefix = 'y'\n" + SUBSET + "num_repeats = 3\nrandom_crop = true\n")
    assert {f.num_repeats for f in found} == {3}
    assert {f.rules.caption_prefix for f in found} == {"y"}
    assert {f.augment for f in found} == {Augment(crop="random", flip=True)}


def test_what_is_not_said_is_left_to_the_loader(cats):
    (first, _), notes = read(cats, "[[datasets]]\n" + SUBSET)
    assert (first.buckets, first.augment, first.masked, first.caption) == ((), None, None, None)
    assert any("LoRA Dataset Loader" in note for note in notes)


def test_the_alpha_channel_and_mask_pictures_say_what_counts(cats):
    (cats / "masks").mkdir()
    for name in ("a.jpg", "b.png"):
        (cats / "masks" / name).touch()
    assert {f.masked for f in read(cats, HEAD + SUBSET + "alpha_mask = true\n")[0]} == {True}
    found, _ = read(cats, HEAD + SUBSET + "conditioning_data_dir = 'masks'\n")
    assert [(f.masked, f.masks[0].name) for f in found] == [(True, "a.jpg"), (True, "b.png")]
    (cats / "masks" / "a.jpg").unlink()
    assert "No mask for a.png" in refusal(cats, HEAD + SUBSET + "conditioning_data_dir = 'masks'\n")


def test_an_extension_is_read_with_and_without_its_dot(cats):
    for given in ("cap", ".cap"):
        found, _ = read(cats, HEAD + SUBSET + f"caption_extension = '{given}'\n")
        assert {f.caption_file.suffix for f in found} == {".cap"}


def test_limits_are_brought_to_steps_as_in_sd_scripts(cats):
    found, _ = read(cats, HEAD + "min_bucket_reso = 300\nmax_bucket_reso = 1000\n" + SUBSET)
    assert found[0].buckets == (Buckets((512, 512), 64, 256, 1024),)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_with_a_byte_order_mark_are_read(cats, encoding):
    (cats / "data.toml").write_bytes((HEAD + SUBSET + "metadata_file = 'm.json'\n").encode(encoding))
    (cats / "m.json").write_bytes(b'{"a.png": {"caption": "A"}}'.decode().encode(encoding))
    assert [f.caption for f in read_toml(cats / "data.toml")[0]] == ["A"]


def test_metadata_as_lines_is_read(cats):
    (cats / "cats" / "all.jsonl").write_text('{"image_path": "a.png", "caption": "A"}\n\n{"image_path": "b.png"}\n')
    found, _ = read(cats, HEAD + SUBSET + "metadata_file = 'cats/all.jsonl'\n")
    assert [(f.path.name, f.caption) for f in found] == [("a.png", "A"), ("b.png", "")]


def test_other_formats_and_subfolders_are_passed_over_and_that_is_said(cats):
    (cats / "cats" / "c.gif").touch()
    (cats / "cats" / "more").mkdir()
    (cats / "cats" / "more" / "d.png").touch()
    found, notes = read(cats, HEAD + SUBSET)
    assert [f.path.name for f in found] == ["a.png", "b.png"]
    assert any("c.gif" in note for note in notes)
    told = "1 folder with pictures not read, because of lying in the folder of another subset: cats/more."
    assert any(told in note for note in notes)
    _, notes = read(cats, HEAD + SUBSET + SUBSET.replace("cats", "cats/more"))
    assert not any("folders with pictures" in note for note in notes)


@pytest.mark.parametrize(("setting", "said"), [
    ("batch_size = 4", "LoRA Train"), ("validation_split = 0.1", "held_out"), ("token_warmup_step = 10", "first step"),
    ("cache_info = true", "always kept"), ("network_multiplier = 0.5", "strength 1"),
    ("face_crop_aug_range = [2.0, 4.0]", "faces"), ("caption_dropout_every_n_epochs = 2", "caption_dropout_rate"),
])
def test_what_is_not_followed_is_said(cats, setting, said):
    _, notes = read(cats, HEAD + setting + "\n" + SUBSET)
    assert [note for note in notes if setting.split(" ")[0] in note and said in note]


def test_usual_values_of_what_is_not_followed_are_no_news(cats):
    usual = "batch_size = 1\ncache_info = false\nnetwork_multiplier = 1.0\ntoken_warmup_min = 1\n"
    assert not [note for note in read(cats, HEAD + usual + SUBSET)[1] if "not followed" in note]


@pytest.mark.parametrize(("extra", "said"), [
    ("captoin_prefix = 'x'", "'captoin_prefix' (dataset 1, subset 1) is no setting of [[datasets.subsets]]; did you "
                             "mean 'caption_prefix'"),
    ("resolution = 512", "'resolution' (dataset 1, subset 1) is no setting of [[datasets.subsets]]; it belongs in "
                         "[[datasets]]"),
    ("num_repeats = '3'", "num_repeats (dataset 1, subset 1) must be a whole number, got '3'"),
    ("num_repeats = true", "num_repeats (dataset 1, subset 1) must be a whole number, got True"),
    ("keep_tokens = -1", "keep_tokens (dataset 1, subset 1) must be at least 0, got -1"),
    ("num_repeats = 1000000000000", "num_repeats (dataset 1, subset 1) must be 0 to 100000"),
    ("caption_dropout_rate = 10", "caption_dropout_rate (dataset 1, subset 1) must be 0 to 1, got 10"),
    ("caption_separator = ''", "caption_separator (dataset 1, subset 1) is empty"),
    ("metadata_file = 'none.json'", "none.json' is no file. Correct its path"),
])
def test_a_setting_that_cannot_be_used_is_refused(cats, extra, said):
    assert said in refusal(cats, HEAD + SUBSET + extra + "\n")


def test_all_unknown_settings_are_named_at_once(cats):
    said = refusal(cats, "optimizer = 1\n[general]\nshufle_caption = true\n[[datasets]]\nresolutoin = 512\n" + SUBSET)
    assert all(name in said for name in ("optimizer", "'shuffle_caption'", "'resolution'"))


@pytest.mark.parametrize(("toml", "said"), [
    ("learning_rate = 1e-4\n", "--config_file"),
    ("datasets = 3\n", "has no [[datasets]]"),
    ("[[datasets]]\nimage_directory = 'cats'\n", "data.toml' is a configuration of musubi-tuner, which is not read. "
     "Choose the images' folder, which is 'cats'."),
    ("[[directory]]\npath = 'cats'\n", "data.toml' is a configuration of diffusion-pipe"),
    ("[[datasets]]\nresolution = 512\n", "Dataset 1 has no [[datasets.subsets]]"),
    ("[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nnum_repeats = 1\n", "no image_dir"),
    (HEAD + SUBSET.replace("cats", "dogs"), "dogs' does not exist"),
    (HEAD + SUBSET.replace("cats", "data.toml"), "data.toml' is a file"),
    (HEAD + SUBSET.replace("cats", "c" * 500), "ccc' does not exist"),
    (HEAD + SUBSET.replace("'cats'", r'"c\u0000"'), "does not exist"),
    ("[[datasets]]\nresolution = 1600000\n" + SUBSET, "at most 16384, got 1600000"),
    (HEAD + "max_bucket_reso = 1000000000\n" + SUBSET, "max_bucket_reso (dataset 1) must be 0 to 16384"),
    pytest.param("a = " + "[" * 100000, "is not TOML", id="deep"),
    (HEAD + "bucket_reso_steps = 8\n" + SUBSET, "bucket_reso_steps must be a multiple of 16, got 8"),
    (HEAD + "min_bucket_reso = 32\n" + SUBSET, "at least bucket_reso_steps (64)"),
    (HEAD + "min_bucket_reso = 1024\n" + SUBSET, "at most the shorter edge of the resolution (512), got 1024"),
    (HEAD + "max_bucket_reso = 256\n" + SUBSET, "at least the longer edge of the resolution (512), got 256"),
    ("[[datasets]]\nresolution = 500\n" + SUBSET, "multiples of 16, got 500"),
    ("[[datasets]]\nresolution = [512]\n" + SUBSET, "resolution (dataset 1) must be a whole number or two"),
    ("[[datasets]]\nresolution = 512\nresolution = 512\n", "line 3"),
    (HEAD + '[[datasets.subsets]]\nimage_dir = "C:\\Users\\me"\n', "between apostrophes"),
    (HEAD + SUBSET + "num_repeats = 0\n", "No subset has images"),
    pytest.param(HEAD + SUBSET + f"num_repeats = {'9' * 5000}\n", "data.toml' is not TOML: it has a whole number of "
                 "more than 18 digits", id="decimal"),
    pytest.param(HEAD + SUBSET + f"num_repeats = 0x{'f' * 5000}\n", "data.toml' is not TOML: it has a whole number of "
                 "more than 18 digits", id="hexadecimal"),
])
def test_a_configuration_that_cannot_be_used_is_refused(cats, toml, said):
    assert said in refusal(cats, toml)


def test_an_empty_folder_is_refused(cats):
    (cats / "none").mkdir()
    assert "Dataset 1, subset 1: No images in the image_dir" in refusal(cats, HEAD + SUBSET.replace("cats", "none"))


def test_a_file_that_is_no_text_is_refused(cats):
    (cats / "data.toml").write_bytes("[general]".encode("utf-16-le"))
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_toml(cats / "data.toml")
    with pytest.raises(ValueError, match="none.toml is no file"):
        read_toml(cats / "none.toml")


@pytest.mark.parametrize(("text", "told"), [
    ("a" * 2**18, "data.toml has 0.2 MB, too much for what it should hold (at most 0.125 MB)"),
    (".".join("a" * 60_000) + "=1", "line 1 has 59999 dots, and no setting needs over 100"),
    ("\n[" + ".".join(["'a'"] * 20_000) + "]", "line 2 has 19999 dots"),
])
def test_what_would_take_minutes_to_parse_is_refused(cats, text, told):
    (cats / "data.toml").write_text(text)
    with pytest.raises(ValueError) as caught:
        read_toml(cats / "data.toml")
    assert told in str(caught.value)


def test_a_metadata_file_is_no_larger_than_a_table(cats, monkeypatch):
    monkeypatch.setattr(table, "MOST_BYTES", 20)
    (cats / "meta.json").write_text('{"a.png": {"caption": "a cat"}}')
    assert "meta.json has 0.0 MB, too much" in refusal(cats, HEAD + SUBSET + "metadata_file = 'meta.json'\n")


def test_masks_beside_images_are_passed_over(cats):
    for name in ("a_mask.png", "B-MASKLABEL.jpg", "c_mask.png"):
        (cats / "cats" / name).touch()
    meta = {name: {"caption": "x"} for name in ("a.png", "b.png", "a_mask.png", "B-MASKLABEL.jpg", "c_mask.png")}
    (cats / "meta.json").write_text(json.dumps(meta))
    for more in ("", "metadata_file = 'meta.json'\n"):
        found, notes = read(cats, HEAD + SUBSET + more)
        assert [f.path.name for f in found] == ["a.png", "b.png", "c_mask.png"] and not any(f.masks for f in found)
        assert [n for n in notes if "2 masks beside images passed over: only those in conditioning_data_dir are used: "
                "B-MASKLABEL.jpg, a_mask.png." in n]


def test_an_image_with_the_longest_name_is_read(cats):
    """Of 255 bytes, as much as Linux, macOS and Windows allow; its .caption would have more."""
    (cats / "cats" / f"{'c' * 251}.png").touch()
    found, _ = read(cats, HEAD + SUBSET + "class_tokens = 'cat'\n")
    assert [f.caption for f in found] == ["cat"] * 3


@pytest.mark.parametrize(("content", "said"), [
    ("[]", "it must be like {\"cat.png\""), ("{", "it is not JSON like"), ("{}", "it has no images"),
    ('{"a.png": 3}', 'got {"a.png": 3}. Correct it'), ('{"a.png": "a cat"}', 'got {"a.png": "a cat"}. Correct it'),
    ('{"a.png": null}', 'got {"a.png": null}. Correct it'), ('{"c.png": {}}', "1 image not to be found in"),
    ('{"a.png": {"caption": 3}}', "the captions and tags of a.png must be text, got 3."),
    ('{"a.png": {"tags": NaN}}', "must be text, got NaN"), ('{"a.png": {"caption": false}}', "must be text, got false"),
    ('{"a.png": {"caption": "\\ud83d"}}', "half of a character"), ("9" * 5000, "more than 18 digits"),
    ('{"%s.png": {}}' % ("n" * 3000), "nnn…nnn"),
    ('{"a.png": {}, "a.png": {"caption": "A"}}', "a.png stands in it twice, with different values; take one out"),
    ('{"a.png": {}, "A.PNG": {"caption": "A"}}', "it has several captions for a.png. Take all but one of them out."),
    pytest.param("[" * 100000, "nested too deep", id="deep")])
def test_metadata_that_cannot_be_used_is_refused(cats, content, said):
    (cats / "meta.json").write_text(content)
    told = refusal(cats, HEAD + SUBSET + "metadata_file = 'meta.json'\n")
    assert "meta.json" in told and said in told and len(told) < 1000 and "object has" not in told


@pytest.mark.parametrize(("lines", "said"), [
    ('\n{"image_path": 5}', "line 2 must be like"), ('{"image_path": null}', 'got {"image_path": null}'),
    ('{"file_name": "a.png"}', "line 1 must be like"),
    ("5", "line 1 must be like"), ("{", "line 1 is not JSON"),
    ('{"image_path": "a.png", "caption": "A"}\n{"image_path": "A.PNG", "caption": "B"}', "several captions for a.png")])
def test_lines_that_cannot_be_used_are_refused(cats, lines, said):
    (cats / "meta.jsonl").write_text(lines)
    assert said in refusal(cats, HEAD + SUBSET + "metadata_file = 'meta.jsonl'\n")


def test_names_are_found_in_another_writing_and_pictures_without_a_name_are_told(cats):
    (cats / "meta.json").write_text('{"A.PNG": {"caption": "A"}}')
    found, notes = read(cats, HEAD + SUBSET.replace("'cats'", "\"\\u202acats\"") + "metadata_file = 'meta.json'\n")
    assert [(f.path.name, f.caption) for f in found] == [("a.png", "A")]
    assert [note for note in notes if "does not name: b.png." in note]


def test_captions_and_masks_are_found_in_another_writing_and_lost_ones_are_told(cats):
    for name in ("cats/A.TXT", "cats/b.caption", "cats/c.txt", "cats/d.jxl", "masks/A.JPG", "masks/B.png"):
        (cats / name).parent.mkdir(exist_ok=True)
        (cats / name).write_text("x")
    found, notes = read(cats, HEAD + SUBSET + "conditioning_data_dir = 'masks'\n")
    assert [(f.caption_file.name, f.masks[0].name) for f in found] == [("A.TXT", "A.JPG"), ("b.caption", "B.png")]
    told = "\n".join(notes)
    assert "another file goes before: c.txt." in told and "a format that cannot be read: d.jxl." in told
