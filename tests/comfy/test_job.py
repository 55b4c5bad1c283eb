"""Jobs on a real model: they end, stop, fail and go on, and what they learned is never lost."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from livelora.trainer import folder as job_folder
from livelora.trainer.config import TrainConfig
from livelora.trainer.data.dataset import scan
from livelora.trainer.host import SampleSettings
from livelora.trainer.lease import Lease
from livelora.trainer.registry import Jobs
from livelora.trainer.task import Preview, Task
from PIL import Image
from safetensors.torch import load_file

SETTINGS = SampleSettings(width=64, height=64, steps=2, cfg=2.0, guidance=1.0, sampler_name="euler",
                          scheduler="simple", seed=3)
PREVIEW = Preview(("ohwx", "a cat"), "", 4, SETTINGS)
RECIPE = {"steps": 8, "rank": 4, "learning_rate": 1e-3, "batch_size": 2, "gradient_accumulation_steps": 2,
          "lr_warmup_steps": 2, "save_every": 3}


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue", "white", "black")):
        Image.new("RGB", (64, 64 if number else 96), color).save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"ohwx, {color}")
    return scan(folder, resolution=64, trigger_word="ohwx")


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs", Lease())


def run(jobs, host, dataset, preview=None, validation=None, **change):
    job = jobs.submit(Task(host, TrainConfig(**{**RECIPE, **change}), dataset, validation, preview))
    assert job.ended.wait(300)
    return job


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_a_job_trains_and_leaves_all_it_promised(jobs, host, dataset):
    events = []
    task = Task(host, TrainConfig(**RECIPE, validate_every=4), dataset, dataset, PREVIEW)
    job = jobs.submit(task)
    job.listeners.append(lambda event, facts: events.append((event, facts)))
    assert job.ended.wait(300)
    assert (job.state, job.record.warnings, len(job.record.losses)) == ("done", [], 8), job.message
    assert [step for step, _ in job.record.held_out.points] == [0, 4, 8]
    path = job.folder.path
    assert {p.name for p in path.iterdir()} == {
        "job.json", "lora.safetensors", "lora_best.safetensors", "metrics.jsonl", "samples", "state"}
    assert sorted(p.name for p in (path / "state").iterdir()) == ["step_000006", "step_000008"]
    assert job.folder.samples() == [f"step_{s:06}_{i:02}.png" for s in (0, 4, 8) for i in (0, 1)]
    assert [line["step"] for line in job.folder.metrics() if "loss" in line] == list(range(1, 9))
    assert {facts["state"] for event, facts in events if event == "progress"} >= {"training", "finishing", "done"}
    assert equal(job.lora("last"), load_file(path / "lora.safetensors"))
    assert job.lora("last").metadata["ss_steps"] == "8"


def test_the_same_task_is_the_same_job_also_in_another_process(jobs, host, dataset, tmp_path):
    job = run(jobs, host, dataset)
    assert run(jobs, host, dataset) is job
    later = run(Jobs(tmp_path / "jobs", Lease()), host, dataset)
    assert later.id == job.id and later.record.losses == job.record.losses
    assert equal(later.lora("last"), job.lora("last"))
    assert run(jobs, host, dataset, seed=1).id != job.id


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "AdamW"])
def test_a_job_that_was_stopped_goes_on_as_if_it_never_had(jobs, host, dataset, tmp_path, optimizer):
    straight = run(jobs, host, dataset, optimizer=optimizer)

    others = Jobs(tmp_path / "others", Lease())
    task = Task(host, TrainConfig(**RECIPE, optimizer=optimizer), dataset)
    job = others.submit(task)
    job.listeners.append(lambda _, facts: job.stop() if facts.get("step") == 5 else None)
    assert job.ended.wait(300)
    assert (job.state, job.message) == ("stopped", "Stopped at step 5 of 8. Queue again to go on.")
    assert job.lora("last") is not None

    resumed = run(Jobs(tmp_path / "others", Lease()), host, dataset, optimizer=optimizer)
    assert resumed.id == job.id and resumed.state == "done"
    assert resumed.record.losses == straight.record.losses and equal(resumed.lora("last"), straight.lora("last"))


def test_an_error_in_a_step_costs_nothing(jobs, host, dataset, tmp_path, monkeypatch):
    straight = run(jobs, host, dataset)
    others, calls, predict = Jobs(tmp_path / "others", Lease()), iter(range(1000)), host.predict

    def out_of_memory(*arguments):
        if next(calls) == 11:
            raise torch.OutOfMemoryError("CUDA out of memory")  # stands for a GPU we do not have
        return predict(*arguments)

    monkeypatch.setattr(host, "predict", out_of_memory)
    failed = run(others, host, dataset)
    assert failed.state == "failed" and failed.message == "OutOfMemoryError: CUDA out of memory"
    assert len(failed.record.losses) == 5
    monkeypatch.undo()
    resumed = run(others, host, dataset)
    assert resumed.id == failed.id and resumed.record.losses == straight.record.losses
    assert equal(resumed.lora("last"), straight.lora("last"))


def test_a_state_that_cannot_be_read_costs_the_steps_to_the_one_before(jobs, host, dataset, tmp_path):
    straight = run(jobs, host, dataset)
    others = Jobs(tmp_path / "others", Lease())
    job = others.submit(Task(host, TrainConfig(**RECIPE), dataset))
    job.listeners.append(lambda _, facts: job.stop() if facts.get("step") == 7 else None)
    assert job.ended.wait(300) and job.state == "stopped"
    newest = job.folder.states / "step_000007" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run(others, host, dataset)
    assert resumed.record.losses == straight.record.losses and equal(resumed.lora("last"), straight.lora("last"))


def test_a_step_whose_loss_is_no_number_is_skipped_and_counted(jobs, host, dataset, monkeypatch):
    """Two micro-batches a step: the seventh belongs to step 4."""
    predict, calls = host.predict, iter(range(1000))
    monkeypatch.setattr(host, "predict", lambda *a: predict(*a) * (float("nan") if next(calls) == 6 else 1))
    job = run(jobs, host, dataset)
    assert (job.state, job.record.step, job.record.skipped, len(job.record.losses)) == ("done", 8, 1, 7)
    assert any("Steps were skipped because their loss or gradient was no number" in w for w in job.record.warnings)
    assert all(tensor.isfinite().all() for tensor in job.lora("last").values())
    assert [line["loss"] is None for line in job.folder.metrics()] == [k == 3 for k in range(8)]


def test_losses_that_stay_no_numbers_end_the_job_and_keep_the_last_good_state(jobs, host, dataset, monkeypatch):
    predict, calls = host.predict, iter(range(1000))
    monkeypatch.setattr(host, "predict", lambda *a: predict(*a) * (float("nan") if next(calls) > 12 else 1))
    job = run(jobs, host, dataset, steps=20)
    assert job.state == "failed"
    assert "became nan at step 11, 5 steps in a row. Lower the learning rate" in job.message
    assert sorted(p.name for p in job.folder.states.iterdir()) == ["step_000006", "step_000009"]
    good = load_file(job.folder.states / "step_000009" / "adapter.safetensors")
    assert all(tensor.isfinite().all() for tensor in good.values())


def test_a_full_disk_costs_no_training(jobs, host, dataset, monkeypatch):
    straight = run(jobs, host, dataset, seed=5)
    fsync = os.fsync

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def append(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # stands for a full disk
    monkeypatch.setattr(job_folder.JobFolder, "append_metrics", append)
    monkeypatch.setattr(job_folder.JobFolder, "rewind_metrics", lambda *_: [])
    job = run(jobs, host, dataset, seed=5, validate_every=7)  # validate_every makes it another job
    assert job.state == "done" and equal(job.lora("last"), straight.lora("last"))
    assert any("The state could not be saved: [Errno 28] No space left" in warning for warning in job.record.warnings)
    assert any("make room on the disk" in warning for warning in job.record.warnings)
    monkeypatch.setattr(os, "fsync", fsync)
    assert [p for p in job.folder.path.rglob("*.tmp")] == []


def test_a_preview_that_fails_is_reported_and_training_goes_on(jobs, host, dataset, monkeypatch):
    straight = run(jobs, host, dataset, seed=6)

    def broken(_):
        raise RuntimeError("out of memory while drawing")

    monkeypatch.setattr(host, "sampler", broken)
    job = run(jobs, host, dataset, preview=PREVIEW, seed=6, validate_every=7)
    assert job.state == "done" and job.record.losses == straight.record.losses
    assert "The preview at step 0 failed (out of memory while drawing). Training goes on." in job.record.warnings


def test_previews_do_not_change_training(jobs, host, dataset):
    straight = run(jobs, host, dataset, seed=7)
    looked_at = run(jobs, host, dataset, preview=PREVIEW, validation=dataset, seed=7, validate_every=2)
    assert looked_at.record.losses == straight.record.losses and equal(looked_at.lora("last"), straight.lora("last"))


def test_each_bucket_and_repeat_is_trained(jobs, host, tmp_path):
    folder = tmp_path / "shapes"
    (folder / "3_tall").mkdir(parents=True)
    for name, size in (("wide.png", (128, 64)), ("3_tall/tall.png", (64, 128))):
        Image.new("RGB", size, "red").save(folder / name)
        (folder / name).with_suffix(".txt").write_text("x")
    job = run(jobs, host, scan(folder, resolution=64, trigger_word=""), steps=2, lr_warmup_steps=0)
    assert job.state == "done", job.message
