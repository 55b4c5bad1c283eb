"""What a graph computed becomes files that read as the same dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from livelora.trainer.data.given import Given, dataset
from livelora.trainer.data.pictures import images
from livelora.trainer.data.report import report
from reading import read
from safetensors.torch import load_file


def pictures(*seeds: int, size=(64, 64), channels: int = 3) -> list[torch.Tensor]:
    """Whole 255ths, as images from disk are."""
    return [torch.from_numpy(np.random.default_rng(s).integers(0, 256, (*size, channels)) / 255).float() for s in seeds]


def make(given, tmp_path, **options):
    return dataset(given, tmp_path / "graph", "ohwx", lambda folder: read(folder, **options))


def test_images_keep_every_pixel(tmp_path):
    given = pictures(1, 2)
    found = make(Given(images=given, captions=["ohwx, one", "ohwx, two"]), tmp_path)
    assert [i.caption for i in found.items] == ["ohwx, one", "ohwx, two"]
    for item, image in zip(found.items, given, strict=True):
        torch.testing.assert_close(images.load(item.path, item.bucket), image, atol=1e-6, rtol=0)


def folder_of(found):
    return found.items[0].path.parent


def test_the_same_again_is_the_same_folder_and_keeps_its_captions(tmp_path):
    given = Given(images=pictures(1), captions=["ohwx, one"])
    one = make(given, tmp_path)
    (folder_of(one) / "0001.txt").write_text("written by LoRA Captioner")
    two = make(given, tmp_path)
    assert folder_of(two) == folder_of(one) and two.fingerprint() == one.fingerprint()
    other = make(Given(images=pictures(2), captions=["ohwx, one"]), tmp_path)
    assert folder_of(other) != folder_of(one)
    assert not list((tmp_path / "graph").glob(".*"))


def test_a_mask_goes_with_its_image(tmp_path):
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    found = make(Given(images=pictures(1), masks=[mask], captions=["ohwx"]), tmp_path, masks="use")
    assert len(found.items) == 1 and found.items[0].load_mask().equal(mask)


def test_latents_and_encoded_captions_are_kept_exactly(tmp_path):
    latents = [torch.randn(16, 8, 12), torch.randn(16, 8, 8)]
    texts = [{"cond": torch.randn(1, 4, 6), "pooled_output": torch.randn(1, 5)} for _ in latents]
    found = make(Given(latents=latents, texts=texts), tmp_path)
    assert [i.bucket for i in found.items] == [(96, 64), (64, 64)]
    for item, expected, text in zip(found.items, latents, texts, strict=True):
        assert load_file(item.latents)["latents"].equal(expected)
        assert all(load_file(item.text)[name].equal(part) for name, part in text.items())
    other = make(Given(latents=latents, captions=["a", "b"]), tmp_path)
    assert [i.caption for i in other.items] == ["a", "b"] and other.fingerprint() != found.fingerprint()


def test_half_numbers_are_taken_as_well(tmp_path):
    latents = torch.randn(16, 8, 8).bfloat16()
    image = pictures(1)[0].bfloat16()
    found = make(Given(latents=[latents], captions=["a"]), tmp_path)
    assert load_file(found.items[0].latents)["latents"].equal(latents.float())
    shown = make(Given(images=[image], captions=["a"]), tmp_path).items[0]
    torch.testing.assert_close(images.load(shown.path, shown.bucket), image.float(), atol=0.5 / 255 + 1e-6, rtol=0)


def test_captions_that_are_encoded_belong_to_images_too(tmp_path):
    text = {"cond": torch.randn(1, 4, 6), "pooled_output": torch.randn(1, 5)}
    found = make(Given(images=pictures(1), texts=[text]), tmp_path)
    assert load_file(found.items[0].text)["cond"].equal(text["cond"]) and found.items[0].latents is None


@pytest.mark.parametrize(("parts", "expected"), [
    ({}, "got 0 images and 0 latents"),
    ({"images": pictures(1), "latents": [torch.zeros(16, 2, 2)]}, "got 1 image and 1 latent"),
    ({"images": pictures(1), "captions": ["a", "b"]}, "1 image, 2 in captions"),
    ({"images": pictures(1, 2), "masks": [torch.ones(64, 64)]}, "2 images, 1 in masks"),
    ({"latents": [torch.zeros(16, 2, 2)], "masks": [torch.ones(2, 2)]}, "Masks need images"),
    ({"latents": [torch.zeros(16, 3, 2)]}, "1 latent with an odd number of rows or columns, such as 3×2"),
])
def test_what_does_not_go_together_is_refused(parts, expected):
    with pytest.raises(ValueError, match=expected):
        Given(**parts)


def test_latents_without_a_caption_are_refused(tmp_path):
    given = Given(latents=[torch.zeros(16, 2, 2)])
    with pytest.raises(ValueError, match="1 of 1 latent without a caption"):
        dataset(given, tmp_path, "", read)
    assert dataset(given, tmp_path, "ohwx", read).items[0].caption == "ohwx"


def test_messages_speak_of_the_nodes_and_not_of_files(tmp_path):
    black = Given(images=pictures(1), masks=[torch.zeros(64, 64)], captions=["ohwx"])
    with pytest.raises(ValueError) as caught:
        make(black, tmp_path, masks="use", scratch=tmp_path)
    assert str(caught.value).startswith("1 of 1 image from other nodes cannot be used:\nmask 1 is black in the whole "
                                        "part of image 1 that is trained")
    assert str(caught.value).endswith("\nMend them in the nodes that give them.")
    assert make(Given(images=pictures(1)), tmp_path, scratch=tmp_path).caption_choices.startswith("Wire in a caption ")
    with pytest.raises(ValueError, match="mask 2 is 32×32 pixels and its image 2 64×64"):
        masks = [torch.ones(64, 64), torch.ones(32, 32)]
        make(Given(images=pictures(1, 2), masks=masks, captions=["a", "b"]), tmp_path, masks="use", scratch=tmp_path)
    for caption, what in (("a\0b", "a zero character in it"), ("a " * 2**20, "2.0 MB, and a caption has at most 1 MB")):
        with pytest.raises(ValueError, match=f"Caption 2 has {what}"):
            make(Given(images=pictures(1, 2), captions=["a", caption]), tmp_path)
    told = report.make(make(Given(images=pictures(1), captions=["a"]), tmp_path, scratch=tmp_path)).text
    assert told.startswith("1 image in other nodes") and str(tmp_path) not in told


def test_half_a_character_is_refused(tmp_path):
    for caption, word in (("a \ud83d", ""), ("a", "\udc00")):
        with pytest.raises(ValueError, match="(Caption 1|trigger_word) has half of a character in it"):
            dataset(Given(images=pictures(1), captions=[caption]), tmp_path, word, read)
