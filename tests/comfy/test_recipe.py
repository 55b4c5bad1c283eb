"""What each part of a recipe does to training, on a real model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from livelora.trainer.data.captions.rules import CaptionRules
from livelora.trainer.jobs.book import Book
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.lora.inject import disabled
from livelora.trainer.model.host import SampleSettings
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training import state
from livelora.trainer.training.example import Example
from livelora.trainer.training.preparation import Preparation
from livelora.trainer.training.task import Preview, Sample, Task
from livelora.trainer.training.trainer import Trainer
from PIL import Image
from reading import read
from scipy import stats

RECIPE = {"steps": 20, "rank": 4, "learning_rate": 1e-3, "optimizer": "AdamW", "lr_scheduler": "constant"}


def latents(seed: int) -> torch.Tensor:
    return torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def trainer(host):
    """Makes a trainer of examples, by the recipe and changes of it."""
    def trainer(examples, **change):
        return Trainer(host, TrainConfig(**{**RECIPE, **change}), examples)

    return trainer


@pytest.fixture
def example(host):
    host.load(0)
    return Example(latents(1), [host.encode_text("red apple")])


def gradients(trainer) -> list[torch.Tensor]:
    """Of micro-batch 0, with an adapter that is not empty."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in trainer.params:
            p.copy_(torch.randn(p.shape, generator=draw) * 0.05)
    trainer._micro_batch(0)
    return [p.grad.clone() for p in trainer.params]


def test_what_a_mask_leaves_out_does_not_count(trainer, example):
    """Latents outside the mask may be anything: they enter only as the model's context, not as a target."""
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    one = trainer([replace(example, mask=mask)])
    noise, sigmas = latents(2)[None], torch.tensor([0.6])
    with torch.no_grad():
        device = one.host.device
        loss = one.losses(example.latents[None], noise, sigmas, example.texts, mask[None].to(device))
        s = sigmas.view(-1, 1, 1, 1)
        noisy = (1 - s) * example.latents[None] + s * noise
        pred = one.host.predict(one.view, noisy.to(device), sigmas.to(device), list(example.texts), 1.0).cpu()
    left = (pred - (noise - example.latents[None]))[..., :4].square().mean()
    torch.testing.assert_close(loss.cpu(), left[None])
    whole, half = gradients(trainer([example])), gradients(one)
    assert any(not a.equal(b) for a, b in zip(whole, half, strict=True))


def test_an_unmasked_weight_of_one_is_no_mask(trainer, example):
    masked = gradients(trainer([replace(example, mask=torch.zeros(8, 8))], unmasked_weight=1.0))
    for a, b in zip(masked, gradients(trainer([example])), strict=True):
        torch.testing.assert_close(a, b)


def test_an_image_counts_as_much_as_its_weight(trainer, example):
    plain, tripled = gradients(trainer([example])), gradients(trainer([replace(example, weight=3.0)]))
    for a, b in zip(plain, tripled, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_erasing_climbs_the_loss(trainer, example):
    noise, sigmas = latents(2)[None], torch.tensor([0.6])
    losses = []
    for change, weight in (({}, 1.0), ({"erase": True, "learning_rate": -1e-3}, -1.0)):
        one = trainer([replace(example, weight=weight)], **change)
        before = one.errors(example.latents[None], noise, sigmas, list(example.texts)).item()
        rates = {one.step().learning_rate for _ in range(10)}
        losses.append(one.errors(example.latents[None], noise, sigmas, list(example.texts)).item() / before)
        assert rates == {change.get("learning_rate", 1e-3)}
    assert losses[0] < 0.99 and losses[1] > 1.01


def test_preservation_holds_the_answer_that_the_lora_must_not_touch(trainer, example, host):
    """Without it the empty caption's answer drifts with the trained one's."""
    blank = host.encode_text("")
    drifts = []
    for weight in (0.0, 10.0):
        one = trainer([replace(example, preserved=blank)], preservation_weight=weight)
        assert one._drift(example.latents[None], latents(2)[None], torch.tensor([0.6]),
                          [replace(example, preserved=blank)]).item() == 0  # an empty adapter has moved nothing
        for _ in range(20):
            one.step()
        with torch.no_grad():
            drifts.append(one._drift(example.latents[None], latents(2)[None], torch.tensor([0.6]),
                                     [replace(example, preserved=blank)]).item())
    assert drifts[1] < 0.5 * drifts[0]


def test_dropped_captions_are_empty_and_the_share_is_right(trainer, example, host):
    blank, other = host.encode_text(""), host.encode_text("apple red")
    one = trainer([replace(example, texts=[example.texts[0], other], blank=blank, caption_dropout=0.25)])
    drawn = [one.draws[k].texts[0] for k in range(400)]
    counts = [sum(text is kind for text in drawn) for kind in (blank, example.texts[0], other)]
    assert sum(counts) == 400
    assert stats.chisquare(counts, [100, 150, 150]).pvalue > 0.001
    again = [one.draws[k].texts[0] for k in range(400)]
    assert all(a is b for a, b in zip(drawn, again, strict=True))


def test_stratified_noise_levels_cover_each_step(trainer, example):
    one = trainer([replace(example, num_repeats=8)], batch_size=2, gradient_accumulation_steps=4,
                  stratified_timesteps=True)
    for window in range(3):
        drawn = torch.cat([one.draws._normals(4 * window + place, 2, None) for place in range(4)])
        shares = torch.special.ndtr(drawn.double())
        assert sorted((shares * 8).long().tolist()) == list(range(8))


def test_the_average_is_what_is_saved_and_measured(trainer, example):
    one = trainer([example], ema_decay=0.99)
    for _ in range(12):
        one.step()
    raw = [p.detach().clone() for p in one.params]
    saved = one.lora()["diffusion_model.single_blocks.0.linear1.lora_B.weight"]
    own = one.view.get_submodule("single_blocks.0.linear1").lora_B["default"].weight.detach().cpu()
    assert not saved.equal(own) and (saved - own).abs().max() < own.abs().max()
    measured = one.errors(example.latents[None], latents(2)[None], torch.tensor([0.6]), list(example.texts))
    with one.averaged.in_effect(), torch.no_grad():
        expected = one.losses(example.latents[None], latents(2)[None], torch.tensor([0.6]), list(example.texts))
    assert measured.equal(expected)
    assert all(a.equal(b) for a, b in zip(raw, one.params, strict=True))


class OnDevice(torch.Tensor):
    """Stands for a tensor on a GPU: reading it would wait for all that the GPU has yet to do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func not in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_nobody_waits_for_the_device_within_a_step(trainer, example, host, monkeypatch):
    one = trainer([replace(example, mask=torch.ones(8, 8), preserved=example.texts[0])], gradient_accumulation_steps=2,
                  preservation_weight=0.5, loss="huber", huber_schedule="snr")
    predict = host.predict
    monkeypatch.setattr(host, "predict", lambda *a: predict(*a).as_subclass(OnDevice))
    loss = one._gradients()
    assert type(loss) is OnDevice and loss.shape == () and not loss.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_one_bad_micro_batch_changes_nothing(trainer, example, host, monkeypatch, bad):
    one = trainer([example], gradient_accumulation_steps=3)
    one.step()
    before = [p.detach().clone() for p in one.params]
    predict, calls = host.predict, iter(range(3))
    monkeypatch.setattr(host, "predict", lambda *a: predict(*a) * (bad if next(calls) == 1 else 1))
    assert one.step().skipped
    assert all(a.equal(b) for a, b in zip(before, one.params, strict=True))


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for color in ("red", "green", "blue", "white", "black", "orange"):
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"ohwx, {color}, flat")
    return read(folder)


def prepare(task: Task):
    return Preparation(task, Lease().step, lambda _: None, lambda _: None).run()


def test_as_many_regularization_images_as_there_are_to_learn(host, dataset, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(other / f"{number}.png")
        (other / f"{number}.txt").write_text("a thing")
    found = prepare(Task.of(host, TrainConfig(**RECIPE, prior_weight=0.5), dataset,
                         regularization=read(other, trigger_word="")))
    assert [(e.num_repeats, e.weight) for e in found.train] == [(1, 1.0)] * 6 + [(2, 0.5), (2, 0.5), (1, 0.5), (1, 0.5)]


@pytest.mark.parametrize(("repeats", "expected"), [
    ((1, 1, 1, 1), [2, 2, 1, 1]), ((3, 1, 1, 1), [3, 1, 1, 1]), ((3, 1), [4, 2]), ((5, 3, 2), [5, 3]),
])
def test_regularization_images_come_as_in_sd_scripts(host, dataset, repeats, expected):
    """By hand from `DreamBoothDataset.__init__` in its library/train_util.py, for six images to learn: in the first
    round each counts its num_repeats, in later ones 1, until there are six."""
    task = Task.of(host, TrainConfig(**RECIPE), dataset)
    learned = [Example(latents(1), []) for _ in range(6)]
    others = [Example(latents(1), [], num_repeats=count) for count in repeats]
    found = Preparation(task, Lease().step, lambda _: None, lambda _: None)._in_proportion(learned, others)
    assert [e.num_repeats for e in found] == expected


def test_captions_are_varied_held_out_ones_are_not(host, dataset):
    config = TrainConfig(**RECIPE, caption_shuffle="tags", keep_tokens=1, caption_variants=2, caption_dropout=0.1,
                         held_out=2, preservation_weight=1.0, preservation_class="thing")
    found = prepare(Task.of(host, config, dataset))
    assert len(found.train) == 4 and len(found.held_out) == 2
    assert all(len(e.texts) == 2 and e.texts[0] is not e.texts[1] for e in found.train)
    assert all(e.blank is found.texts[""] for e in found.train) and "thing, red, flat" in found.texts
    assert all(len(e.texts) == 1 and e.blank is None for e in found.held_out)


def test_a_task_that_lacks_what_its_recipe_needs_is_refused_with_all_reasons(host, dataset):
    config = TrainConfig(**RECIPE, early_stop_patience=3, prior_weight=0.5, unmasked_weight=0.1,
                         preservation_weight=1.0, preservation_class="cat")
    with pytest.raises(ValueError) as caught:
        Task.of(host, config, replace(dataset, trigger_word=""))
    told = str(caught.value)
    assert told.count("\n- ") == 4
    for part in ("early_stop_patience is 3, but there are no held-out images to measure. Set held_out to 0.1",
                 "prior_weight is 0.5, but no regularization images are wired in",
                 "unmasked_weight is 0.1, but no image has a mask. Set masks to 'use'",
                 "preservation_class ('cat') replaces the trigger word, and the dataset has none"):
        assert part in told


def test_images_without_a_caption_are_refused_unless_the_trigger_word_may_stand_in(host, dataset):
    """Whether they are to be learned, measured, or of the class."""
    lacking = replace(dataset, items=(dataset.items[0].captioned("", "ohwx"), *dataset.items[1:]))
    told = (f"1 of 6 images in '{dataset.folder}' has no caption: black.png. Write one .txt file for each image ("
            "black.png → black.txt), let LoRA Captioner write them, or set missing_captions to 'use the trigger word'.")
    config = TrainConfig(**RECIPE)
    for task in ({"dataset": lacking}, {"dataset": dataset, "validation": lacking},
                 {"dataset": dataset, "regularization": lacking}):
        with pytest.raises(ValueError) as caught:
            Task.of(host, config, **task)
        assert str(caught.value) == f"This cannot be trained:\n- {told}"
    taken = replace(lacking, on_missing_caption="use the trigger word")
    assert Task.of(host, config, taken).dataset.items[0].caption == "ohwx"
    with pytest.raises(ValueError, match=r"let LoRA Captioner write them, or fill in trigger_word\."):
        Task.of(host, config, replace(taken, trigger_word=""))


def test_a_caption_without_the_trigger_word_cannot_be_kept_as_the_class(host, dataset):
    """Its answer would be trained and preserved at once."""
    config = TrainConfig(**RECIPE, preservation_weight=1.0, preservation_class="cat")
    Task.of(host, config, dataset)
    with pytest.raises(ValueError, match="the trigger word 'blorp', and 6 captions without it would be held back"):
        Task.of(host, config, replace(dataset, trigger_word="blorp"))


@pytest.mark.parametrize(("word", "drawn"), [("ohwx", "ohwx, a pencil drawing"), ("", "a pencil drawing")])
def test_prompts_have_the_trigger_word_of_the_dataset(host, dataset, word, drawn):
    settings = SampleSettings(width=64, height=64, steps=1, cfg=1.0, guidance=1.0, sampler_name="euler",
                              scheduler="simple", seed=0)
    samples = (Sample("{trigger}, a pencil drawing", "", settings), Sample(" a {cat},", "", settings))
    task = Task.of(host, TrainConfig(**RECIPE), replace(dataset, trigger_word=word), preview=Preview(samples, 1))
    assert task.preview and [sample.prompt for sample in task.preview.samples] == [drawn, " a {cat},"]


def test_every_text_that_is_far_too_long_is_named_before_anything_is_encoded(host, dataset):
    """The caption of an image to learn or of one that is measured, a prompt, a negative prompt, and what stands in for
    the trigger word."""
    long = "word " * 3000
    settings = SampleSettings(width=64, height=64, steps=1, cfg=1.0, guidance=1.0, sampler_name="euler",
                              scheduler="simple", seed=0)
    red, *others = dataset.items
    measured = replace(dataset, items=(replace(red, path=red.path.with_name("measured.png"), caption=long),))
    config = TrainConfig(**RECIPE, preservation_weight=1.0, preservation_class=long)
    with pytest.raises(ValueError) as caught:
        choice = replace(others[0], caption=f"short\nohwx {{a|{long}}}", rules=CaptionRules(enable_wildcard=True))
        Task.of(host, config, replace(dataset, items=(replace(red, caption="ohwx " + long), choice)),
                validation=measured, preview=Preview((Sample("ohwx", long, settings),), 1))
    told = str(caught.value)
    for name in (f"the caption of {red.path.name}", f"the caption of {others[0].path.name}",
                 "the caption of measured.png", "a caption with preservation_class", "a prompt of LoRA Sample Preview"):
        assert f"{name} (at least " in told
    assert "FLUX.1 is made for 512 tokens, and at most 2048 are encoded" in told


def test_held_out_twice_is_refused(host, dataset):
    with pytest.raises(ValueError, match="held_out is 2, and a validation dataset is wired in as well"):
        Task.of(host, TrainConfig(**RECIPE, held_out=2), dataset, validation=dataset)


def run(folder, host, dataset, start=None, **change):
    task = Task.of(host, TrainConfig(**{**RECIPE, **change}), dataset, start=start)
    job = Book(folder, Lease()).submit(task)
    assert job.ended.wait(300)
    return job


def test_a_run_that_gets_worse_stops_early_and_keeps_its_best(host, dataset, tmp_path):
    """At a hundred times the usual learning rate nothing gets better for long."""
    job = run(tmp_path / "jobs", host, dataset, steps=60, learning_rate=0.03, held_out=1, validate_every=2,
              early_stop_patience=3)
    curve = job.history.held_out
    step, lowest = curve.best
    assert job.state == "done" and job.history.step == step + 6 < 60
    assert job.message == (f"Stopped early at step {step + 6}: no held-out loss below {lowest:.4f} since step {step}.")
    assert curve.base is not None and curve.points[0] == (0, pytest.approx(curve.base, rel=1e-5))
    best, last = job.lora("best"), job.lora("last")
    assert best.metadata["ss_steps"] == str(step) and last.metadata["ss_steps"] == str(step + 6)
    assert any(not best[name].equal(last[name]) for name in best)
    again = run(tmp_path / "jobs", host, dataset, steps=60, learning_rate=0.03, held_out=1, validate_every=2,
                early_stop_patience=3)
    assert again.id == job.id and again.history.held_out == curve  # done is done
    more = run(tmp_path / "jobs", host, dataset, steps=60, learning_rate=0.03, held_out=1, validate_every=2,
               early_stop_patience=3, extra_steps=1)
    assert (more.id, more.state, more.history.step, more.message) == (job.id, "done", 61, "Trained 61 steps.")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_room_that_a_run_needs_on_disk_is_what_its_states_take(trainer, example, tmp_path, ema):
    one = trainer([example], ema_decay=ema, keep_states=2)
    asked = state.room(tmp_path, one)
    one.step()
    assert asked == pytest.approx(3 * state.size(one), rel=0.01)


def test_a_run_goes_on_from_a_lora_file(host, dataset, tmp_path):
    """Its start is the LoRA's answer, and the base it is compared with is still the model's own."""
    first = run(tmp_path / "one", host, dataset, held_out=1)
    second = run(tmp_path / "two", host, dataset, held_out=1, start=first.lora("last"), rank=16)
    assert second.id != first.id and second.state == "done", second.message
    assert second.history.held_out.points[0][1] == pytest.approx(first.history.held_out.points[-1][1], rel=1e-5)
    assert second.history.held_out.base == first.history.held_out.base
    with_own_start = Trainer(host, TrainConfig(**RECIPE), prepare(Task.of(host, TrainConfig(**RECIPE), dataset)).train)
    with disabled(with_own_start.view):
        assert with_own_start.lora().keys() == second.lora("last").keys()
