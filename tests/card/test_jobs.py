"""Whole jobs on the card: previews, wired LoRAs, models of which only half fits, and prompts in between."""

# ruff: noqa: F811
from __future__ import annotations

import gc
import threading

import comfy.model_management as mm
import numpy as np
import pytest
import softcard as card
import torch
from comfyui_on_card import RESERVED
from livelora.trainer.comfy.host import ComfyHost
from livelora.trainer.data.cache import Cache
from livelora.trainer.jobs.book import Book
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.task import Task
from PIL import Image
from test_job import PREVIEW, RECIPE, SETTINGS, at_step, dataset, equal, wired_to_a_lora  # noqa: F401
from tiny_flux import load_flux

EVERYTHING = {**RECIPE, "validate_every": 4, "ema_decay": 0.9, "dropout": 0.1, "caption_dropout": 0.3}


def run(home, host, dataset, lease=None, meanwhile=None, **recipe):
    """Trains a job with previews and held-out losses, and does something `meanwhile`, after step 4. Jobs of one test
    share their latents, because ComfyUI encodes as many pictures at a time as there is room for."""
    task = Task.of(host, TrainConfig(**{**EVERYTHING, **recipe}), dataset, validation=dataset, preview=PREVIEW,
                   cache=Cache(home.parent / "cache"))
    job = Book(home, lease or Lease()).submit(task)
    if meanwhile:
        at_step(job, 4, meanwhile)
    assert job.ended.wait(300)
    assert (job.state, job.history.warnings) == ("done", []), job.message
    return job


def same(one, two, levels: int) -> bool:
    """Whether two jobs have come to the same: losses and LoRAs bit for bit, pictures but for so many of 256 levels."""
    assert one.history.losses == two.history.losses and one.history.held_out.points == two.history.held_out.points
    assert equal(one.lora("last"), two.lora("last")) and len(one.folder.samples()) == 6
    pictures = [[np.array(Image.open(job.folder.path / "samples" / name), int) for name in job.folder.samples()]
                for job in (one, two)]
    return all(abs(a - b).max() <= levels for a, b in zip(*pictures, strict=True))


def half_of(patcher) -> int:
    """The bytes of a card on which about half of the model's weights fit. Nothing is loaded on it."""
    mm.unload_all_models()
    gc.collect()  # what is left of the job before
    return card.used() + patcher.model_size() // 2 + RESERVED


@pytest.fixture
def whole(host, dataset, tmp_path):
    """The job where there is room for everything."""
    return run(tmp_path / "whole", host, dataset)


def test_a_job_has_the_bits_of_the_cpu(flux_state, clip, random_vae, dataset, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(mm, "get_torch_device", lambda: torch.device("cpu"))
    host = ComfyHost(load_flux(flux_state), clip, random_vae)
    assert host.device.type == "cpu"
    assert same(run(tmp_path / "cpu", host, dataset), whole, 0)


def test_a_model_of_which_half_fits_trains_to_the_same_bits(host, patcher, dataset, whole, tmp_path):
    """Its pictures are rounded elsewhere: ComfyUI puts a LoRA into weights that are loaded and onto those that are
    streamed."""
    loaded = []
    with card.limited(half_of(patcher)):
        half = run(tmp_path / "half", host, dataset, meanwhile=lambda: loaded.append(patcher.loaded_size()))
    assert same(half, whole, 2)
    assert 0.3 < loaded[0] / patcher.model_size() < 0.7


@pytest.mark.parametrize("fits", ["all", "half"])
def test_prompts_in_between_change_nothing_and_are_what_they_were(patcher, clip, random_vae, dataset, tmp_path, fits):
    """A prompt draws with another LoRA on the same base, and leaves the model as that needs it."""
    host, other, lease = wired_to_a_lora(patcher, clip, random_vae), ComfyHost(patcher, clip, random_vae), Lease()
    calm, drawn = run(tmp_path / "calm", host, dataset), []

    def prompt() -> None:
        lease.take_for_prompt()
        drawn.append(other.sampler({}, 1.0)(*[other.encode_text("ohwx")] * 2, SETTINGS, lambda: False))
        lease.give_back()

    with card.limited(half_of(patcher) if fits == "half" else card.limit()):
        prompt()
        thread = threading.Thread(target=prompt)
        assert same(run(tmp_path / "disturbed", host, dataset, lease, thread.start), calm, 2 if fits == "half" else 0)
        thread.join()
        prompt()
    before, meanwhile, after = drawn
    assert before.shape == (64, 64, 3) and before.equal(meanwhile) and before.equal(after)


def test_drawing_leaves_the_cards_random_numbers_alone(host):
    text = host.encode_text("ohwx")
    torch.rand(3, device=card.DEVICE)
    state = torch.card.get_rng_state()
    host.sampler({}, 1.0)(text, text, SETTINGS, lambda: False)
    assert torch.card.get_rng_state().equal(state)
