"""ai-toolkit's configurations, as its documentation writes them.

What its settings mean was read in ostris/ai-toolkit: toolkit/config_modules.py (DatasetConfig), toolkit/data_loader.py,
toolkit/dataloader_mixins.py (captions, masks), toolkit/buckets.py, toolkit/prompt_utils.py (trigger words)."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.data.captions.rules import CaptionRules
from livelora.trainer.data.pictures.augment import Augment
from livelora.trainer.data.sources.ai_toolkit import ROUNDED, read_config

EXAMPLE = """---
job: extension
config:
  name: "my_first_flux_lora_v1"
  process:
    - type: 'sd_trainer'
      datasets:
        - folder_path: "cats"
          caption_ext: "txt"
          caption_dropout_rate: 0.05  # will drop out the caption 5% of time
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [ 512, 768, 1024 ]
      train: {batch_size: 1, lr: 1e-4}
"""

PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))


@pytest.fixture
def home(tmp_path):
    for name in ("a", "b", "deep/c", ".thumbs/d", "_controls/e", "masks/a"):
        path = tmp_path / "cats" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "cats" / "a.txt").write_text("a cat,\non a mat")
    return tmp_path


def read(home, text):
    (home / "c.yaml").write_text(text, encoding="utf-8")
    return read_config(home / "c.yaml")


def block(home, **entry):
    return read(home, json.dumps([{"folder_path": "cats", **entry}]))  # JSON is YAML


def refusal(home, text) -> str:
    with pytest.raises(ValueError) as caught:
        read(home, text)
    assert str(home / "c.yaml") in str(caught.value)
    return str(caught.value)


def test_the_example_for_flux(home):
    found, said = read(home, EXAMPLE)
    assert [f.path.relative_to(home / "cats").as_posix() for f in found] == ["a.png", "b.png", "deep/c.png"]
    assert [f.caption for f in found] == ["a cat, on a mat", "", ""] and said == [ROUNDED]
    assert found[0].rules == CaptionRules(caption_dropout_rate=0.05)
    assert (found[0].num_repeats, found[0].weight, found[0].masked, found[0].augment) == (1, 1, None, None)
    assert not found[0].regularization


@pytest.mark.parametrize(("size", "expected"), [
    ((1024, 1024), [(512, 512), (768, 768), (1024, 1024)]),
    ((2000, 1000), [(704, 352), (1056, 512), (1440, 704)]),
    ((500, 300), [(480, 288), (480, 288), (480, 288)]),
])
def test_the_sizes_of_its_pictures(home, size, expected):
    """By hand, as `get_bucket_for_image_size` with steps of 32 gives them, or one step less on an edge:
    2000×1000 has edges of √2 and 1/√2 times the resolution, 724×362, 1086×543 and 1448×724; 500×300 is not enlarged."""
    found, _ = read(home, EXAMPLE)
    for buckets, (width, height) in zip(found[0].buckets, expected, strict=True):
        got = buckets.choose(size)
        assert got[0] in (width, width + 32, width - 32) and got[1] in (height, height + 32, height - 32)
        assert got[0] % 32 == got[1] % 32 == 0 and got[0] * got[1] <= buckets.resolution[0] ** 2
        assert got[0] <= size[0] and got[1] <= size[1]


@pytest.mark.parametrize("text", [
    "folder_path: cats", "[{folder_path: cats}]", "datasets: [{folder_path: cats}]", "datasets: [{dataset_path: cats}]",
    "process: [{type: x}, {datasets: [{folder_path: cats}]}]", 
    "config: {datasets: [{folder_path: cats, mask_path: null}]}",
    "a: &a {folder_path: cats}\nconfig: {process: [{datasets: [{<<: *a, num_repeats: 1}]}]}"])
def test_ways_to_write_one_dataset(home, text):
    found, said = read(home, text)
    assert len(found) == 3 and found[0].buckets == () and found[0].rules is None and said == []


@pytest.mark.parametrize(("caption", "entry", "expected"), [
    ("a cat", {"trigger_word": "ohwx"}, "ohwx a cat"),
    ("an ohwx cat", {"trigger_word": "ohwx"}, "an ohwx cat"),
    ("[trigger] the cat", {"trigger_word": "ohwx"}, "ohwx the cat"),
    ("[name], [trigger]", {"trigger_word": "ohwx", "is_reg": True}, "ohwx, ohwx"),
    ("a cat", {"trigger_word": "ohwx", "is_reg": True}, "a cat"),
    ("a [trigger] cat", {}, "a  cat"),
    (" \n", {"default_caption": "some cat"}, "some cat"),
    (None, {"default_caption": "some cat", "trigger_word": "ohwx"}, "ohwx some cat"),
    (None, {"trigger_word": "ohwx"}, "ohwx"),
    (None, {}, ""),
])
def test_captions_and_their_trigger_word(home, caption, entry, expected):
    """`load_caption` and `inject_trigger_into_prompt`, followed by hand."""
    (home / "cats" / "a.txt").unlink()
    if caption is not None:
        (home / "cats" / "a.txt").write_text(caption)
    assert block(home, **entry)[0][0].caption == expected


def test_a_process_lends_its_trigger_word(home):
    found, _ = read(home, "process: [{trigger_word: ohwx, datasets: [{folder_path: cats, trigger_word: null}]}]")
    assert found[1].caption == "ohwx"


def test_all_that_is_followed(home):
    (home / "m").mkdir()
    (home / "m" / "a.jpg").write_bytes(b"")
    (home / "cats" / "a.tags").write_text("x")
    found, said = block(home, num_repeats=3, loss_multiplier="5e-1", is_reg=True, flip_x=True, random_crop=True,
                        mask_path="m", caption_ext=".tags", shuffle_tokens=True, token_dropout_rate=0.1,
                        caption_dropout_rate=0.2, resolution=[512, 512, 300], square_crop=True)
    first, other = found[:2]
    assert (first.num_repeats, first.weight, first.regularization, first.caption) == (3, 0.5, True, "x")
    assert first.augment == Augment(crop="random", flip=True)
    assert first.rules == CaptionRules(shuffle_caption=True, caption_tag_dropout_rate=0.1, caption_dropout_rate=0.2)
    assert (first.masks, first.masked) == ((home / "m" / "a.jpg",), True) and (other.masks, other.masked) == ((), False)
    assert [b.choose((900, 100)) for b in first.buckets] == [(512, 512), (288, 288)]
    assert said == [ROUNDED]


def test_an_alpha_channel_as_a_mask(home):
    first = block(home, alpha_mask=True)[0][0]
    assert first.masked and first.masks == ()


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("written", ["cats/deep", "cats/deep/", "./cats/../cats/deep", "link"])
def test_a_mask_folder_holds_no_images(home, alpha, written):
    (home / "link").symlink_to(home / "cats" / "deep")
    found, said = block(home, alpha_mask=alpha, mask_path=written)
    assert [f.path.name for f in found] == ["a.png", "b.png"] and [f.masked for f in found] == [alpha] * 2
    assert [s for s in said if "mask_path is not used, because alpha_mask goes before" in s] == (said if alpha else [])


def test_its_cached_texts_are_never_dropped(home):
    rules = block(home, caption_dropout_rate=0.2, token_dropout_rate=1, cache_text_embeddings=True)[0][0].rules
    assert rules == CaptionRules(caption_dropout_rate=0.0)


def test_a_dropout_that_is_not_said_is_left_to_the_recipe(home):
    rates = [block(home, keep_tokens=1, **said)[0][0].rules.caption_dropout_rate
             for said in ({}, {"caption_dropout_rate": 0}, {"caption_dropout_rate": 0.2})]
    assert rates == [None, 0.0, 0.2]


def test_what_is_not_followed_is_told(home):
    (home / "cats" / "b.jpg").write_bytes(b"")
    _, said = block(home, flip_y=True, controls=["depth"], augments=[], scale=1.0, mask_min_value=0.1, num_workers=4,
                    shuffle_tokens=True, keep_tokens=1)
    assert said == [
        "Dataset 1 ('cats'): flip_y is not followed.", "Dataset 1 ('cats'): controls is not followed.",
        "Dataset 1 ('cats'): keep_tokens holds the first tokens in front; in ai-toolkit they are never dropped, but "
        "shuffled.",
        "Dataset 1 ('cats'): 2 images that share a caption file, because their names differ only behind the dot: "
        "b.jpg, b.png. Rename one of each if they show different things."]


@pytest.mark.parametrize(("entry", "told"), [
    ({"num_repeat": 3, "zebra": 1}, "'num_repeat' (is num_repeats meant?). ai-toolkit has no setting 'zebra'."),
    ({"num_frames": 9}, "num_frames is '9', which cannot be trained here"),
    ({"invert_mask": True}, "invert_mask is 'True'"),
    ({"num_repeats": 0}, "num_repeats must be a whole number from 1 to 100000, got '0'"),
    ({"num_repeats": True}, "got 'True'"),
    ({"num_repeats": 1.5}, "got '1.5'"),
    ({"caption_dropout_rate": 5}, "caption_dropout_rate must be a number from 0 to 1, got '5'"),
    ({"loss_multiplier": "nan"}, "loss_multiplier must be a number"),
    ({"resolution": [512, "big"]}, "resolution must be a whole number from 64 to 4096, got 'big'"),
    ({"shuffle_tokens": "yes"}, "shuffle_tokens must be true or false, got 'yes'"),
    ({"caption_ext": 3}, "caption_ext must be text, got '3'"),
    ({"folder_path": "dogs"}, "dogs' does not exist"),
    ({"folder_path": None}, "it has no folder_path"),
    ({"folder_path": "empty"}, "no images in"),
    ({"mask_path": "nowhere"}, "nowhere' is no folder"),
])
def test_what_cannot_be_meant_is_refused(home, entry, told):
    (home / "empty").mkdir()
    text = json.dumps([{"folder_path": "cats"}, {"folder_path": "cats", **entry}])
    message = refusal(home, text)
    assert told in message and "Dataset 2: " in message and "Dataset 1" not in message


@pytest.mark.parametrize(("text", "told"), [
    ("", "has no datasets"), ("job: x", "has no datasets"), ("datasets: []", "has no datasets"),
    ("3", "has no datasets"),
    ("datasets: [cats]", "a dataset must have settings such as folder_path: cats, got 'cats'"),
    ("a: [", "cannot be read as YAML"), ("a: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    ("a: 1\n---\nb: 2", "cannot be read as YAML"), ("2001-99-99", "cannot be read as YAML"),
    ("[" * 5000, "nested too deep"), ("a: " + "9" * 5000, "YAML (it has a whole number of more than 18 digits)"),
    ("a: 0x" + "f" * 5000, "YAML (it has a whole number of more than 18 digits)"),
    ("&a [*a]", "its aliases stand for more than 100000 values"),
    ("a: &a [x, x]\n" + "\n".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]" for p, n in PAIRS),
     "its aliases stand for more than 100000 values"),
    ("a: &a {x: 1}\n" + "\n".join(f"{n}: &{n} {{<<: [{', '.join([f'*{p}'] * 9)}]}}" for p, n in PAIRS),
     "its aliases stand for more than 100000 values"),
])
def test_files_that_are_no_configuration_are_refused(home, text, told):
    assert told in refusal(home, text)


@pytest.mark.parametrize("text", ["a: 1" + ":1" * 2**17, "a: b\n" * 2**15])
def test_what_would_take_long_to_parse_is_refused(home, text):
    (home / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"c.yaml has 0.\d MB, too much for what it should hold"):
        read_config(home / "c.yaml")


def test_json_is_read_as_json(home):
    for text, told in (("{", "cannot be read as JSON"), ("[" * 200_000, "nested too deep"), ("{}", "has no datasets"),
                       ("9" * 5000, "more than 18 digits"), ('{"job": 1, "job": 2}', "job stands in it twice")):
        (home / "c.json").write_text(text)
        with pytest.raises(ValueError, match=told):
            read_config(home / "c.json")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.text(st.sampled_from("&*a<>[]{}:,-?!|'\"#%@=~0.9e_\n \tédatesfolrp"), max_size=60))
def test_no_text_crashes_it(home, text):
    with pytest.raises(ValueError):
        read(home, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(st.sampled_from(["", "\u202a"]), st.sampled_from(["{}", "'{}'", '"{}"']))
def test_a_path_may_be_pasted(home, mark, quoted):
    assert len(block(home, folder_path=mark + quoted.format(home / "cats"))[0]) == 3


def test_captions_as_json_are_read_as_ai_toolkit_reads_them(home):
    (home / "cats" / "A.JSON").write_text('{"caption": "a cat,\\non a mat", "caption_short": "cat"}')
    found, said = block(home, caption_ext="json", trigger_word="ohwx")
    assert [entry.caption for entry in found] == ["ohwx a cat, on a mat", "ohwx", "ohwx"] and "A.JSON" not in str(said)
    (home / "cats" / "A.JSON").write_text('{"text": "a cat"}')
    assert "the caption of a.png is not JSON like" in refusal(home, '[{"folder_path": "cats", "caption_ext": "json"}]')


@pytest.mark.parametrize(("content", "told"), [
    ([{"name": "c", "path": "/my/cats", "image": {}, "text": {"prompt_source": "sample"}}],
     "is a configuration of OneTrainer, which is not read. Choose the images' folder, which is '/my/cats'."),
    ({"concept_file_name": "c.json", "concepts": None}, "is a configuration of OneTrainer"),
    ([{"id": "c", "type": "local", "instance_data_dir": "/my/cats", "caption_strategy": "textfile"},
      {"id": "t", "dataset_type": "text_embeds"}],
     "is a configuration of SimpleTuner, which is not read. Choose the images' folder, which is '/my/cats'."),
    ({"a": {"caption": "x", "tags": "y"}, "b": {"tags": "z"}}, "is a list of captions for sd-scripts. Choose a .toml"),
    ({"--data_backend_config": "b.json"}, "is a configuration of SimpleTuner, which is not read. Choose the images'"),
    ({"train_data_dir": "/x", "LoRA_type": "Standard"}, "is a configuration of kohya's GUI, which is not read. Choose "
     "the images' folder, which is '/x'."),
    ({"datasets": [{"image_directory": "x"}]}, "is a configuration of musubi-tuner"),
    ({"general": {}, "datasets": [{"subsets": [{"image_dir": "x"}]}]},
     "is a dataset configuration of sd-scripts in JSON"),
    ({"a.png": {"caption": "x"}, "b.png": None}, "is a list of captions for sd-scripts. Choose a .toml"),
    ({"a.png": "a cat", "b.PNG": None}, "is a list of captions. Write each image on a line of its own"),
    ([{"enabled": True, "prompt": "x", "width": 512}], "is a list of prompts for pictures, and no dataset."),
    ([{"image": "a.png", "caption": "x"}], "is a list of captions. Write each image on a line of its own"),
    ([{"file_name": "a.png", "text": "x"}], "is a list of captions. Write each image on a line of its own"),
])
def test_files_of_others_are_named(home, content, told):
    assert told in refusal(home, json.dumps(content))


def test_half_a_character_is_refused(home):
    for key in ("trigger_word", "default_caption", "folder_path"):
        assert f"Dataset 1: {key} has half of a character" in refusal(
            home, json.dumps([{"folder_path": "cats", key: "x\ud83d"}]))
