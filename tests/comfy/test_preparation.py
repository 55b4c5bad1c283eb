"""Pictures and captions as the transformer takes them: encoded once, never stale, the same from disk as at first."""

from __future__ import annotations

import shutil

import pytest
import tiny_flux
import torch
from comfy.weight_adapter import LoRAAdapter
from livelora.trainer.comfy.demo_model import make_clip
from livelora.trainer.comfy.host import ComfyHost
from livelora.trainer.data.cache import Cache
from livelora.trainer.data.given import Given
from livelora.trainer.data.given import dataset as of_graph
from livelora.trainer.data.pictures import images, masks
from livelora.trainer.data.pictures.augment import Augment, View
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.model.host import SampleSettings
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.draws import Draws
from livelora.trainer.training.preparation import Preparation, Prepared
from livelora.trainer.training.task import Preview, Sample, Task
from livelora.trainer.training.trainer import Trainer
from PIL import Image
from reading import read

RECIPE = {"steps": 20, "rank": 4, "learning_rate": 1e-3, "optimizer": "AdamW", "lr_scheduler": "constant"}
SETTINGS = SampleSettings(width=64, height=64, steps=2, cfg=1.0, guidance=1.0, sampler_name="euler",
                          scheduler="simple", seed=3)
VARIED = {**RECIPE, "batch_size": 2, "caption_shuffle": "tags", "caption_variants": 3, "caption_dropout": 0.2}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue", "white", "black", "orange")):
        image = Image.new("RGB", (64, 64), color)
        image.paste("yellow", (0, 0, 20, 8 * number + 8))
        image.save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"ohwx, {color}, flat, yellow bar")
    return folder


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "encoded")


def prepare(task: Task) -> Prepared:
    return Preparation(task, Lease().step, lambda _: None, lambda _: None).run()


def tensors(found: Prepared) -> list[torch.Tensor]:
    return [t for e in found.train for t in (e.latents, *(text["cond"] for text in e.texts), e.blank["cond"],
                                             *(latents for latents, _ in e.others))]


class Untouched:
    """A host whose encoders must not be used."""

    def __init__(self, host):
        self._host = host

    def __getattr__(self, name):
        assert name not in ("encode_text", "encode_images"), f"{name} was used"
        return getattr(self._host, name)


def test_the_second_time_nothing_is_encoded_and_all_is_the_same(host, folder, cache):
    task = Task.of(host, TrainConfig(**VARIED), read(folder), cache=cache)
    first, plain = prepare(task), prepare(Task.of(host, TrainConfig(**VARIED), read(folder)))
    second = prepare(Task.of(Untouched(host), TrainConfig(**VARIED), read(folder), cache=cache))
    for found in (first, second):
        assert len(tensors(found)) == len(tensors(plain)) == 30
        assert all(a.equal(b) for a, b in zip(tensors(found), tensors(plain), strict=True))


def test_a_cache_that_is_emptied_meanwhile_costs_time_alone(host, folder, cache, tmp_path):
    def tell(message: str) -> None:
        if message == "Encoding captions: 6 of 6":
            shutil.rmtree(tmp_path / "encoded")

    def task(**more):
        return Task.of(host, TrainConfig(**RECIPE), read(folder), **more)

    found, plain = Preparation(task(cache=cache), Lease().step, tell, lambda _: None).run(), prepare(task())
    assert len(found.texts) == 6 and found.texts.keys() == plain.texts.keys()
    assert all(found.texts[caption]["cond"].equal(plain.texts[caption]["cond"]) for caption in plain.texts)


def test_an_edited_caption_or_picture_is_encoded_anew(host, folder, cache):
    def task():
        return Task.of(host, TrainConfig(**RECIPE), read(folder), cache=cache)

    before = prepare(task())
    (folder / "red.txt").write_text("ohwx, purple")
    Image.new("RGB", (64, 64), "purple").save(folder / "green.png")
    after = prepare(task())
    changed = [[not a.latents.equal(b.latents), not a.texts[0]["cond"].equal(b.texts[0]["cond"])]
               for a, b in zip(before.train, after.train, strict=True)]
    names = [i.path.stem for i in read(folder).items]
    assert {n for n, (picture, _) in zip(names, changed, strict=True) if picture} == {"green"}
    assert {n for n, (_, text) in zip(names, changed, strict=True) if text} == {"red"}


def test_other_encoders_have_entries_of_their_own(host, patcher, folder, cache):
    """Other weights, a LoRA on CLIP, another layer: none of them is answered with what the first ones gave."""
    clip, vae = make_clip(), tiny_flux.random_vae(seed=5)
    patched = clip.clone()
    name, weight = next((n, w) for n, w in patched.patcher.model.named_parameters() if "q_proj.weight" in n)
    patched.add_patches({name: ("diff", (torch.ones_like(weight),))}, 1.0)
    deeper = clip.clone()
    deeper.clip_layer(-2)
    hosts = [host, ComfyHost(patcher, clip, vae), ComfyHost(patcher, patched, vae), ComfyHost(patcher, deeper, vae)]
    assert len({h.image_fingerprint() for h in hosts}) == 2
    assert len({h.text_fingerprint("ohwx") for h in hosts[1:]}) == 3
    strengths = [clip.clone() for _ in range(2)]
    for other, alpha in zip(strengths, (1.0, 2.0), strict=True):  # of one LoRA with the same matrices
        matrices = torch.ones(len(weight), 2), torch.ones(2, weight.shape[1])
        other_adapter = LoRAAdapter(set(), (*matrices, alpha, None, None, None))
        other.add_patches({name: other_adapter}, 1.0)
    assert len({ComfyHost(patcher, other, vae).text_fingerprint("ohwx") for other in strengths}) == 2
    assert hosts[1].text_fingerprint("ohwx") == ComfyHost(patcher, make_clip(), vae).text_fingerprint("ohwx")
    found = [prepare(Task.of(h, TrainConfig(**RECIPE), read(folder), cache=cache)).train[0] for h in hosts[:3]]
    assert not found[0].latents.equal(found[1].latents) and found[1].latents.equal(found[2].latents)
    pooled = [e.texts[0]["pooled_output"] for e in found]  # of CLIP-L, which has the LoRA
    assert not pooled[1].equal(pooled[2])


def test_a_caption_with_an_embedding_is_not_kept(host, folder, cache):
    """The embedding is a file that may change."""
    assert host.text_fingerprint("a cat") and host.text_fingerprint("embedding:cat on a mat") == ""


def test_gradients_are_those_of_captions_encoded_when_they_are_trained(host, folder, cache):
    """Cached variants against the variant that was drawn, encoded on the spot."""
    config = TrainConfig(**VARIED)
    prepare(Task.of(host, config, read(folder), cache=cache))
    found = prepare(Task.of(host, config, read(folder), cache=cache))
    wording = {id(text): caption for caption, text in found.texts.items()}

    def gradients(now: bool) -> list[torch.Tensor]:
        host.load(0)
        trainer = Trainer(host, config, found.train)
        draw = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for p in trainer.params:
                p.copy_(torch.randn(p.shape, generator=draw) * 0.05)
        if now:
            kept = trainer.draws._texts
            trainer.draws._texts = lambda chosen, k: [host.encode_text(wording[id(t)]) for t in kept(chosen, k)]
        for k in range(4):
            trainer._micro_batch(k)
        return [p.grad.clone() for p in trainer.params]

    assert all(a.equal(b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_views_are_encoded_and_their_masks_go_with_them(host, folder, cache):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "red_mask.png")
    dataset = read(folder, augment=Augment(flip=True), masks="use")
    found = prepare(Task.of(host, TrainConfig(**RECIPE), dataset, cache=cache))
    place = [i.path.stem for i in dataset.items].index("red")
    example, item = found.train[place], dataset.items[place]
    [(latents, mirrored)] = example.others
    expected = host.encode_images(images.load(item.path, item.bucket).flip(1)[None])[0]
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    assert not latents.equal(example.latents)
    assert example.mask.flip(1).equal(mirrored) and mirrored.equal(masks.to_latents(
        item.load_mask(View(flip=True)), tuple(latents.shape[1:])))


def test_each_view_is_trained_and_depends_on_the_step_alone(host, folder):
    dataset = read(folder, augment=Augment(flip=True))
    found = prepare(Task.of(host, TrainConfig(**RECIPE), dataset))
    draws = Draws(found.train[:1], TrainConfig(**RECIPE), host.family)
    seen, again = ([draws[k].latents[0].equal(found.train[0].latents) for k in range(200)] for _ in range(2))
    assert 70 < sum(seen) < 130
    assert seen == again


def test_latents_from_a_graph_are_the_images_they_were_made_of(host, folder, random_vae, clip, tmp_path):
    dataset = read(folder)
    pixels = [images.load(i.path, i.bucket) for i in dataset.items]
    with torch.inference_mode():
        latents = [random_vae.encode(p[None])[0].clone() for p in pixels]
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(i.caption))[0] for i in dataset.items]
        texts = [{"cond": c.clone(), "pooled_output": extra["pooled_output"].clone()} for c, extra in encoded]
    given = of_graph(Given(latents=latents, texts=texts), tmp_path / "graph", "ohwx", read)
    one, two = (prepare(Task.of(host, TrainConfig(**RECIPE), d)) for d in (dataset, given))
    for a, b in zip(one.train, two.train, strict=True):
        torch.testing.assert_close(a.latents, b.latents, atol=1e-5, rtol=0)
        assert a.texts[0]["cond"].equal(b.texts[0]["cond"])


def test_latents_and_conditioning_of_another_model_are_refused(host, tmp_path):
    """Before a prompt of the preview is encoded."""
    def task(channels: int, width: int) -> Task:
        text = {"cond": torch.zeros(1, 4, width), "pooled_output": torch.zeros(1, 128)}
        given = Given(latents=[torch.zeros(channels, 8, 8)], texts=[text])
        preview = Preview((Sample("a cat", "", SETTINGS),), 5) if (channels, width) != (16, 128) else None
        return Task.of(Untouched(host), TrainConfig(**RECIPE), of_graph(given, tmp_path / "graph", "ohwx", read),
                       preview=preview)

    with pytest.raises(ValueError, match="latents have 4 channels, and FLUX.1 works with 16"):
        prepare(task(4, 128))
    with pytest.raises(ValueError, match=r"has the widths 96 and 128, and the model takes 128 \(T5\) and 128"):
        prepare(task(16, 96))
    assert prepare(task(16, 128)).train


def test_pictures_are_encoded_in_batches_of_one_size(host, folder):
    batches = []

    class Counting(Untouched):
        def encode_images(self, pixels):
            batches.append(tuple(pixels.shape))
            return host.encode_images(pixels)

        def encode_text(self, text):
            return host.encode_text(text)

    Image.new("RGB", (128, 32), "red").save(folder / "long.png")
    (folder / "long.txt").write_text("ohwx, long")
    prepare(Task.of(Counting(host), TrainConfig(**RECIPE), read(folder)))
    assert sorted(batches) == [(1, 32, 128, 3), (2, 64, 64, 3), (4, 64, 64, 3)]



def test_what_a_configuration_says_of_captions_is_trained(host, folder, tmp_path):
    """sd-scripts' rules: two orders of two tags behind the kept one, a prefix, and dropout in this subset alone."""
    other = tmp_path / "class"
    other.mkdir()
    Image.new("RGB", (64, 64), "gray").save(other / "thing.png")
    (other / "thing.txt").write_text("a thing")
    for path in folder.glob("*.txt"):
        path.write_text(f"ohwx, {path.stem}, flat")
    config = tmp_path / "dataset.toml"
    config.write_text(f"""
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = {str(folder)!r}
caption_extension = ".txt"
caption_prefix = "photo of"
shuffle_caption = true
keep_tokens = 1
caption_dropout_rate = 0.25
num_repeats = 2
[[datasets.subsets]]
image_dir = {str(other)!r}
caption_extension = ".txt"
is_reg = true
""")
    task = Task.of(host, TrainConfig(**{**RECIPE, "prior_weight": 0.5}), read(config))
    assert [i.path.stem for i in task.regularization.items] == ["thing"] and len(task.dataset.items) == 6
    found = prepare(task)
    wordings = {"photo of ohwx, red, flat", "photo of ohwx, flat, red", "a thing", ""}
    assert wordings <= {*found.texts} and "ohwx, red, flat" not in found.texts
    assert [(e.num_repeats, e.weight, e.caption_dropout) for e in found.train] == [(2, 1.0, 0.25)] * 6 + [(12, 0.5, 0)]
    assert found.train[0].blank is found.texts[""] and len(found.train[0].texts) == 2


@pytest.mark.parametrize(("said", "trained"), [("", 0.3), ("caption_dropout_rate = 0", 0),
                                               ("caption_dropout_rate = 0.1", 0.1)])
def test_a_configuration_that_drops_no_captions_is_obeyed(host, folder, tmp_path, said, trained):
    """Where it says nothing of that, the recipe does."""
    config = tmp_path / "dataset.toml"
    config.write_text(f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = {str(folder)!r}\n"
                      f"caption_extension = '.txt'\n{said}\n")
    found = prepare(Task.of(host, TrainConfig(**RECIPE, caption_dropout=0.3), read(config)))
    assert {example.caption_dropout for example in found.train} == {trained}


@pytest.mark.parametrize(("dropout", "same"), [(0.3, False), (0.0, True)])
def test_a_configuration_that_drops_no_captions_is_another_training_where_the_recipe_drops_some(host, folder, tmp_path,
                                                                                               dropout, same):
    prints = []
    for said in ("", "caption_dropout_rate = 0.0"):
        config = tmp_path / "dataset.toml"
        config.write_text(f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = {str(folder)!r}\n"
                          f"caption_extension = '.txt'\n{said}\n")
        prints.append(Task.of(host, TrainConfig(**RECIPE, caption_dropout=dropout), read(config)).fingerprint())
    assert (prints[0] == prints[1]) is same


def test_nothing_but_regularization_images_is_refused(host, folder, tmp_path):
    config = tmp_path / "dataset.toml"
    config.write_text(f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = {str(folder)!r}\n"
                      "is_reg = true\ncaption_extension = '.txt'\n")
    with pytest.raises(ValueError, match="only regularization images .* 6 in all"):
        Task.of(host, TrainConfig(**RECIPE), read(config))


def test_views_of_which_nothing_counts_are_not_trained(host, folder):
    """A long picture whose mask shows its left end alone."""
    Image.new("RGB", (400, 64), "red").save(folder / "red.png")
    mask = Image.new("L", (400, 64), 0)
    mask.paste(255, (100, 0, 172, 64))
    mask.save(folder / "red_mask.png")
    dataset = read(folder, augment=Augment(crop="random"), masks="use")
    found = prepare(Task.of(host, TrainConfig(**RECIPE), dataset))
    place = [i.path.stem for i in dataset.items].index("red")
    example = found.train[place]
    assert all(mask.any() for mask in (example.mask, *(mask for _, mask in example.others)))
    assert all(len(e.others) == 3 for e in found.train[:place])
