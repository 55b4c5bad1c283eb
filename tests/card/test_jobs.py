"""Whole jobs on the card: previews, wired LoRAs, models of which only half fits, and prompts in between."""

from __future__ import annotations

import threading

import softcard as card
import comfy.model_management as mm
import pytest
import torch
from livelora.trainer.comfy.host import ComfyHost
from livelora.trainer.jobs.book import Book
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.task import Task
from PIL import Image
from test_job import PREVIEW, RECIPE, SETTINGS, at_step, dataset, wired_to_a_lora  # noqa: F401
from tiny_flux import load_flux

ROOM = 8 * 1024**2
"""More bytes than these jobs need beside the weights."""
EVERYTHING = {**RECIPE, "validate_every": 4, "ema_decay": 0.9, "dropout": 0.1, "caption_dropout": 0.3}


def run(home, host, dataset, lease=None, meanwhile=None):
    """Trains a job with previews and held-out losses, and does something `meanwhile`, after step 4."""
    task = Task.of(host, TrainConfig(**EVERYTHING), dataset, validation=dataset, preview=PREVIEW)
    job = Book(home, lease or Lease()).submit(task)
    if meanwhile:
        at_step(job, 4, meanwhile)
    assert job.ended.wait(300)
    assert (job.state, job.history.warnings) == ("done", []), job.message
    return job


def left(job):
    """What a job has come to: losses, LoRA and pictures."""
    samples = [job.folder.path / "samples" / name for name in job.folder.samples()]
    assert len(samples) == 6
    return (job.history.losses, job.history.held_out.points, {n: t.tolist() for n, t in job.lora("last").items()},
            [Image.open(path).tobytes() for path in samples])


@pytest.fixture
def whole(host, dataset, tmp_path):
    """What the job comes to where there is room for everything."""
    return left(run(tmp_path / "whole", host, dataset))


def test_a_job_has_the_bits_of_the_cpu(flux_state, clip, random_vae, dataset, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(mm, "get_torch_device", lambda: torch.device("cpu"))
    host = ComfyHost(load_flux(flux_state), clip, random_vae)
    assert host.device.type == "cpu"
    assert left(run(tmp_path / "cpu", host, dataset)) == whole


def test_a_model_of_which_half_fits_trains_to_the_same_bits(host, patcher, dataset, whole, tmp_path):
    mm.unload_all_models()
    weights = patcher.model_size()
    with card.limited(card.used() + weights // 2 + ROOM):
        assert left(run(tmp_path / "half", host, dataset)) == whole
        assert 0 < patcher.loaded_size() < weights


@pytest.mark.parametrize("room", [None, ROOM], ids=["all fits", "half fits"])
def test_prompts_in_between_change_nothing(patcher, clip, random_vae, dataset, tmp_path, room):
    """A prompt draws with another LoRA on the same base, and leaves the model as that needs it."""
    host, other, lease = wired_to_a_lora(patcher, clip, random_vae), ComfyHost(patcher, clip, random_vae), Lease()
    calm, drawn = left(run(tmp_path / "calm", host, dataset)), []

    def prompt() -> None:
        lease.take_for_prompt()
        drawn.append(other.sampler({}, 1.0)(*[other.encode_text("ohwx")] * 2, SETTINGS, lambda: False))
        lease.give_back()

    mm.unload_all_models()
    with card.limited(card.used() + patcher.model_size() // 2 + room if room else card.limit()):
        thread = threading.Thread(target=prompt)
        assert left(run(tmp_path / "disturbed", host, dataset, lease, thread.start)) == calm
        thread.join()
    assert drawn[0].shape == (64, 64, 3)
