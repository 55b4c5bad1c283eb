"""Jobs on a real model: they end, stop, fail and go on, and what they learned is never lost."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from livelora.trainer.comfy.host import ComfyHost, with_lora
from livelora.trainer.comfy.loras import Loras
from livelora.trainer.jobs import folder as job_folder
from livelora.trainer.jobs.book import Book
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.jobs.saving import SaveAs
from livelora.trainer.jobs.states import Refused
from livelora.trainer.jobs.workflow import Graph
from livelora.trainer.lora.file import load
from livelora.trainer.lora.inject import inject
from livelora.trainer.lora.tensors import to_lora
from livelora.trainer.model.host import SampleSettings
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training import state
from livelora.trainer.training.averaging import Averaged
from livelora.trainer.training.targets import layout
from livelora.trainer.training.task import Preview, Sample, Task
from PIL import Image
from reading import read
from safetensors.torch import load_file

SETTINGS = SampleSettings(width=64, height=64, steps=2, cfg=2.0, guidance=1.0, sampler_name="euler",
                          scheduler="simple", seed=3)
PREVIEW = Preview((Sample("ohwx", "", SETTINGS), Sample("a cat", "", SETTINGS)), 4)
RECIPE = {"steps": 8, "rank": 4, "learning_rate": 1e-3, "batch_size": 2, "gradient_accumulation_steps": 2,
          "lr_warmup_steps": 2, "save_every": 3}


pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue", "white", "black")):
        Image.new("RGB", (64, 64 if number else 96), color).save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"ohwx, {color}")
    return read(folder)


@pytest.fixture
def jobs(tmp_path):
    return Book(tmp_path / "jobs", Lease())


def run(jobs, host, dataset, preview=None, validation=None, **change):
    config = TrainConfig(**{**RECIPE, **change})
    job = jobs.submit(Task.of(host, config, dataset, validation=validation, preview=preview))
    assert job.ended.wait(300)
    return job


@pytest.fixture(scope="module")
def straight_runs():
    """What a recipe gives that nothing comes between, by recipe: each is trained once for all tests."""
    return {}


@pytest.fixture
def straight(straight_runs, jobs, host, dataset):
    """Gives the job of such a recipe. Models, pictures and captions are the same in every test."""
    def straight(**recipe):
        key = json.dumps(recipe, sort_keys=True)
        if key not in straight_runs:
            straight_runs[key] = run(jobs, host, dataset, **recipe)
            assert straight_runs[key].state == "done"
        return straight_runs[key]

    return straight


def at_step(job, step, *actions):
    """Does something with a job, once, when it has taken that step."""
    def listener(job, event, facts):
        if job.history.step == step and listener in job.listeners:
            job.listeners.remove(listener)
            for action in actions:
                action()

    job.listeners.append(listener)


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_a_job_trains_and_leaves_all_it_promised(jobs, host, dataset):
    events = []
    task = Task.of(host, TrainConfig(**RECIPE, validate_every=4), dataset, validation=dataset, preview=PREVIEW)
    job = jobs.submit(task)
    job.listeners.append(lambda job, event, facts: events.append((event, job.state)))
    assert job.ended.wait(300)
    assert (job.state, job.history.warnings, len(job.history.losses)) == ("done", [], 8), job.message
    assert [step for step, _ in job.history.held_out.points] == [0, 4, 8]
    path = job.folder.path
    assert {p.name for p in path.iterdir()} == {
        "job.json", "lora.safetensors", "lora_best.safetensors", "metrics.jsonl", "samples", "state",
        "tensorboard"}
    assert sorted(p.name for p in (path / "state").iterdir()) == ["step_000006", "step_000008"]
    assert job.folder.samples() == [f"step_{s:06}_{i:02}.png" for s in (0, 4, 8) for i in (0, 1)]
    assert [line["step"] for line in job.folder.metrics() if "loss" in line] == list(range(1, 9))
    assert {state for event, state in events if event == "progress"} >= {"training", "finishing", "done"}
    assert equal(job.lora("last"), load_file(path / "lora.safetensors"))
    assert job.lora("last").metadata["ss_steps"] == "8"


def test_a_job_that_has_ended_holds_no_model(jobs, patcher, clip, random_vae, dataset):
    pytest.importorskip("bitsandbytes")  # what it logs while it is imported would hold whoever imports it
    host = ComfyHost(patcher, clip, random_vae)
    job = jobs.submit(Task.of(host, TrainConfig(**RECIPE), dataset))
    gone = weakref.ref(host)
    del host
    assert job.ended.wait(300) and job.state == "done" and job.plan.sentence()
    gc.collect()
    assert gone() is None


def test_a_job_tells_where_its_time_goes(host, dataset, tmp_path):
    lease, began = Lease(), time.perf_counter()
    job = Book(tmp_path / "jobs", lease).submit(
        Task.of(host, TrainConfig(**RECIPE, validate_every=4), dataset, validation=dataset, preview=PREVIEW))

    def prompt() -> None:
        lease.take_for_prompt()
        time.sleep(0.3)
        lease.give_back()

    at_step(job, 4, threading.Thread(target=prompt).start)
    assert job.ended.wait(300)
    taken, facts = time.perf_counter() - began, job.history.facts(8)
    assert facts["spent"].keys() == {"waiting", "loading", "data", "forward", "backward", "optimizer", "held-out",
                                     "previews", "saving"}
    assert facts["spent"]["waiting"] > 0.2 and 0.3 < sum(facts["spent"].values()) < taken
    lines = [line for line in job.folder.metrics() if "loss" in line]
    each = [sum(line["spent"].get(work, 0) for work in ("data", "forward", "backward", "optimizer")) for line in lines]
    assert all(0 < parts <= line["seconds"] + 1e-3 for parts, line in zip(each, lines, strict=True))
    assert "previews" in lines[0]["spent"] and "previews" not in lines[1]["spent"], "those of step 0 came before it"
    assert facts["of_peak"] == pytest.approx(sum(job.history.of_peak) / 8) and 0 < facts["of_peak"] < 2
    assert job.plan.rate and job.plan.least_seconds == pytest.approx(4 * max(job.plan.flop.values()) / job.plan.rate)


def test_the_same_task_is_the_same_job_also_in_another_process(jobs, host, dataset, tmp_path):
    job = run(jobs, host, dataset)
    assert run(jobs, host, dataset) is job
    later = run(Book(tmp_path / "jobs", Lease()), host, dataset)
    assert later.id == job.id and later.history.losses == job.history.losses
    assert equal(later.lora("last"), job.lora("last"))
    assert run(jobs, host, dataset, seed=1).id != job.id


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "AdamW"])
def test_a_job_that_was_stopped_goes_on_as_if_it_never_had(jobs, host, dataset, tmp_path, optimizer, straight):
    calm = straight(optimizer=optimizer)

    others = Book(tmp_path / "others", Lease())
    task = Task.of(host, TrainConfig(**RECIPE, optimizer=optimizer), dataset)
    job = others.submit(task)
    at_step(job, 5, lambda: others.stop(job))
    assert job.ended.wait(300)
    assert (job.state, job.message) == ("stopped", "Stopped at step 5 of 8. Queue again to go on.")
    assert job.lora("last") is not None

    resumed = run(Book(tmp_path / "others", Lease()), host, dataset, optimizer=optimizer)
    assert resumed.id == job.id and resumed.state == "done"
    assert resumed.history.losses == calm.history.losses and equal(resumed.lora("last"), calm.lora("last"))


def test_an_error_in_a_step_costs_nothing(jobs, host, dataset, tmp_path, monkeypatch, straight):
    calm = straight()
    others, calls, predict = Book(tmp_path / "others", Lease()), iter(range(1000)), host.predict

    def broken(*arguments):
        if next(calls) == 11:
            raise RuntimeError("CUDA error: unspecified launch failure")  # stands for a GPU we do not have
        return predict(*arguments)

    monkeypatch.setattr(host, "predict", broken)
    failed = run(others, host, dataset)
    assert failed.state == "failed" and failed.message == "RuntimeError: CUDA error: unspecified launch failure"
    assert len(failed.history.losses) == 5
    monkeypatch.undo()
    resumed = run(others, host, dataset)
    assert resumed.id == failed.id and resumed.history.losses == calm.history.losses
    assert equal(resumed.lora("last"), calm.lora("last"))


def test_memory_that_runs_out_costs_nothing_but_time(host, dataset, tmp_path, monkeypatch, straight):
    """Once in the gradients of a step, once after an update, which is taken back."""
    calm, book = straight(), Book(tmp_path / "others", Lease())
    steps, updates, predict, update = iter(range(1000)), iter(range(1000)), host.predict, Averaged.update

    def step_out_of_memory(*arguments):
        if next(steps) == 11:
            raise torch.OutOfMemoryError("CUDA out of memory")  # stands for a GPU we do not have
        return predict(*arguments)

    def update_out_of_memory(averaged):
        update(averaged)
        if next(updates) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(host, "predict", step_out_of_memory)
    monkeypatch.setattr(Averaged, "update", update_out_of_memory)
    job = run(book, host, dataset)
    assert job.state == "done" and job.history.losses == calm.history.losses
    assert equal(job.lora("last"), calm.lora("last"))
    assert [warning.split(".")[0] for warning in job.history.warnings] == [
        "Memory ran out at step 6", "Memory ran out at step 8"]
    assert job.plan is not None and {len(kept) for kept in job.plan.kept.values()} == {1}, "4, then 2 were kept"


def test_a_state_that_cannot_be_read_costs_the_steps_to_the_one_before(jobs, host, dataset, tmp_path, straight):
    calm = straight()
    others = Book(tmp_path / "others", Lease())
    job = others.submit(Task.of(host, TrainConfig(**RECIPE), dataset))
    at_step(job, 7, lambda: others.stop(job))
    assert job.ended.wait(300) and job.state == "stopped"
    job.listeners.clear()
    newest = job.folder.states / "step_000007" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run(others, host, dataset)
    assert resumed.history.losses == calm.history.losses and equal(resumed.lora("last"), calm.lora("last"))


def test_a_step_whose_loss_is_no_number_is_skipped_and_counted(jobs, host, dataset, monkeypatch):
    """Two micro-batches a step: the seventh belongs to step 4."""
    predict, calls = host.predict, iter(range(1000))
    monkeypatch.setattr(host, "predict", lambda *a: predict(*a) * (float("nan") if next(calls) == 6 else 1))
    job = run(jobs, host, dataset)
    assert (job.state, job.history.step, job.history.skipped, len(job.history.losses)) == ("done", 8, 1, 7)
    assert any("Steps were skipped because their loss or gradient was no number" in w for w in job.history.warnings)
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


def full(*_: object) -> None:
    """Stands for a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_becomes_full_costs_no_training(jobs, host, dataset, monkeypatch, straight):
    calm, fsync = straight(), os.fsync

    def fill_up() -> None:
        monkeypatch.setattr(os, "fsync", full)
        monkeypatch.setattr(job_folder.JobFolder, "append_metrics", full)

    config = TrainConfig(**{**RECIPE, "validate_every": 7})  # validate_every makes it another job
    job = jobs.submit(Task.of(host, config, dataset))
    at_step(job, 1, fill_up)
    assert job.ended.wait(300)
    assert job.state == "done" and equal(job.lora("last"), calm.lora("last"))
    for warning in ("The metrics could not be recorded: [Errno 28] No space left", "The state could not be saved:",
                    "The LoRA could not be written to the job's folder:", "The job's state could not be written:"):
        told = [found for found in jobs.status(job)["warnings"] if found.startswith(warning)]
        assert len(told) == 1 and told[0].endswith("Training goes on; make room on the disk.")
    monkeypatch.setattr(os, "fsync", fsync)
    assert [p for p in job.folder.path.rglob("*.tmp")] == []
    assert job.folder.read_job()["state"] == "training"
    job.progress()  # as after a step: what could not be written is written when it can be
    assert job.folder.read_job()["state"] == "done"
    assert not [found for found in jobs.status(job)["warnings"] if "job's state" in found]


def test_a_job_that_nobody_would_know_of_after_a_restart_is_not_begun(jobs, host, dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"The new job cannot be written to '.*' \(No space left on device\)\. Make "
                                          "room there, or allow writing, then queue again"):
            run(jobs, host, dataset)
    assert jobs.all() == [] and list(job_folder.JobFolder.all_in(tmp_path / "jobs")) == []
    assert run(jobs, host, dataset).state == "done"


def test_a_preview_that_fails_is_reported_and_training_goes_on(jobs, host, dataset, monkeypatch, straight):
    calm = straight()

    def broken(*_):
        raise RuntimeError("out of memory while drawing")

    monkeypatch.setattr(host, "sampler", broken)
    job = run(jobs, host, dataset, preview=PREVIEW, validate_every=7)
    assert job.state == "done" and job.history.losses == calm.history.losses
    assert "The preview at step 0 failed (out of memory while drawing). Training goes on." in job.history.warnings


def test_a_preview_for_which_memory_ran_out_is_drawn_again(jobs, host, dataset, monkeypatch):
    """The first picture has memory the second time, the second has none."""
    sampler, draws, cleared = host.sampler, iter(range(1000)), []

    def short(*arguments):
        draw = sampler(*arguments)

        def short_of_memory(*settings):
            if next(draws) in (0, 2, 3):
                raise torch.OutOfMemoryError("CUDA out of memory. And more")  # stands for a GPU we do not have
            return draw(*settings)

        return short_of_memory

    monkeypatch.setattr(host, "sampler", short)
    monkeypatch.setattr(host, "clear", lambda: cleared.append(True))
    job = run(jobs, host, dataset, preview=replace(PREVIEW, every=100))
    assert job.state == "done" and len(cleared) == 2
    assert job.folder.samples() == ["step_000000_00.png", "step_000008_00.png", "step_000008_01.png"]
    assert job.history.warnings == [
        "The preview at step 0 failed (Memory ran out, and again when there was more room. Close other programs that "
        "use the graphics card, and try again. (CUDA out of memory. And more)). Training goes on."]


def test_previews_do_not_change_training(jobs, host, dataset, straight):
    calm = straight()
    looked_at = run(jobs, host, dataset, preview=PREVIEW, validation=dataset, validate_every=2)
    assert looked_at.history.losses == calm.history.losses and equal(looked_at.lora("last"), calm.lora("last"))


def test_each_bucket_and_repeat_is_trained(jobs, host, tmp_path):
    folder = tmp_path / "shapes"
    (folder / "3_tall").mkdir(parents=True)
    for name, size in (("wide.png", (128, 64)), ("3_tall/tall.png", (64, 128))):
        Image.new("RGB", size, "red").save(folder / name)
        (folder / name).with_suffix(".txt").write_text("x")
    job = run(jobs, host, read(folder, trigger_word=""), steps=2, lr_warmup_steps=0)
    assert job.state == "done", job.message


# What a person does with a job


@pytest.mark.parametrize("recipe", [{}, {"ema_decay": 0.9, "dropout": 0.1}])
def test_a_job_that_was_paused_goes_on_as_if_it_never_had(jobs, host, dataset, tmp_path, recipe, straight):
    calm = straight(**recipe)
    others = Book(tmp_path / "others", Lease())
    job = others.submit(Task.of(host, TrainConfig(**RECIPE, **recipe), dataset))
    at_step(job, 4, lambda: others.pause(job))
    assert job.ended.wait(300)
    assert (job.state, job.message) == ("paused", "Paused at step 4 of 8. Resume to go on.")
    assert job.folder.snapshots() == [3, 4] and json.loads((job.folder.path / "job.json").read_text())["step"] == 4
    assert others.resume(job) and job.ended.wait(300)
    assert job.state == "done" and job.history.losses == calm.history.losses
    assert equal(job.lora("last"), calm.lora("last"))


def test_a_state_that_cannot_be_read_now_is_kept(jobs, host, dataset, tmp_path, monkeypatch, straight):
    calm = straight()
    others = Book(tmp_path / "others", Lease())
    job = others.submit(Task.of(host, TrainConfig(**RECIPE), dataset))
    at_step(job, 4, lambda: others.pause(job))
    assert job.ended.wait(300)

    def full(_):
        raise OSError("The paging file is too small for this operation to complete. (os error 1455)")

    with monkeypatch.context() as windows:
        windows.setattr(state, "load_file", full)  # stands for Windows with its memory used up
        assert others.resume(job) and job.ended.wait(300)
    assert job.state == "failed" and "paging file is too small" in job.message
    assert job.folder.snapshots() == [3, 4]
    run(others, host, dataset)
    assert job.state == "done" and equal(job.lora("last"), calm.lora("last"))


def test_what_another_process_left_in_training_is_paused_and_known(jobs, host, dataset, tmp_path):
    job = jobs.submit(Task.of(host, TrainConfig(**RECIPE), dataset), Graph({"t": {"inputs": {}}}, "t"))
    at_step(job, 4, lambda: jobs.pause(job))
    assert job.ended.wait(300)
    facts = json.loads((job.folder.path / "job.json").read_text())
    (job.folder.path / "job.json").write_text(json.dumps({**facts, "state": "training"}))
    (job.folder.states / ".step_000009.12345678.tmp").mkdir()

    later = Book(tmp_path / "jobs", Lease())
    [found] = later.all()
    assert (found.id, found.state) == (job.id, "paused")
    assert found.message == "ComfyUI ended at step 4 of 8. Resume to go on."
    assert json.loads((job.folder.path / "job.json").read_text())["state"] == "paused"
    assert not list(job.folder.path.rglob("*.tmp"))
    assert found.lora("last") and found.history.losses == job.history.losses
    assert later.resume(found) is False and found.awaited  # its model is not in memory: its workflow must bring it
    with pytest.raises(Refused, match="waits in ComfyUI's queue already"):
        later.resume(found)
    found.await_prompt("a prompt")
    assert found.awaited == "a prompt"


def test_why_a_workflow_was_not_queued_is_told_until_it_is_queued(jobs, host, dataset):
    job = run(jobs, host, dataset)
    trained = jobs.status(job)["message"]
    for again in (lambda: run(jobs, host, dataset), job.await_prompt, lambda: job.enter("done", trained)):
        job.not_coming("It cannot be queued: '/data' does not exist.")
        assert jobs.status(job)["message"] == "It cannot be queued: '/data' does not exist."
        again()
        job.not_coming("", job.awaited)  # taken off the queue
        assert (jobs.status(job)["message"], job.message) == (trained, trained)


def test_a_prompt_that_came_before_its_id_was_noted_is_not_awaited(jobs, host, dataset):
    job = run(jobs, host, dataset)
    job.await_prompt()
    job.was_queued("fair share")
    job.await_prompt("a prompt")
    assert not job.awaited


def test_actions_that_do_not_go_with_the_state_are_refused_with_a_reason(jobs, host, dataset):
    job = run(jobs, host, dataset)
    # No workflow is known here, so it cannot be extended.
    assert set(jobs.status(job)["actions"]) == {"share", "delete", "export"}
    with pytest.raises(Refused, match="This job is done, so 'pause' is not possible. It must be queued, "
                                      "preparing or training."):
        jobs.pause(job)
    with pytest.raises(Refused, match="The workflow that this job came from is not known"):
        jobs.extend(job, 5)


def test_a_second_wish_waits_for_the_first(jobs, host, dataset):
    job, refused = jobs.submit(Task.of(host, TrainConfig(**RECIPE), dataset)), []

    def stop() -> None:
        with pytest.raises(Refused) as caught:
            jobs.stop(job)
        refused.append(str(caught.value))

    at_step(job, 2, lambda: jobs.pause(job), stop)
    assert job.ended.wait(300)
    assert refused == ["This job is about to pause, after the step under way. Ask again when it has."]
    assert job.state == "paused" and job.history.step == 2
    jobs.stop(job)
    assert job.state == "stopped" and (job.folder.path / "lora.safetensors").exists()


def test_what_is_discarded_is_gone_and_can_be_started_over(jobs, host, dataset, tmp_path, straight):
    job = jobs.submit(Task.of(host, TrainConfig(**RECIPE), dataset, preview=PREVIEW))
    at_step(job, 5, lambda: jobs.discard(job))
    assert job.ended.wait(300)
    assert (job.state, job.history.step, job.lora("last")) == ("stopped", 0, None)
    assert job.message == "Stopped at step 5, and what was learned was discarded. Resume to start over."
    assert not job.folder.samples() and not job.folder.snapshots() and not job.folder.metrics()
    again = run(jobs, host, dataset)
    calm = straight()
    assert again is job and equal(job.lora("last"), calm.lora("last"))


def test_a_training_can_be_made_longer_while_it_goes_on(jobs, host, dataset, tmp_path, straight):
    """With a constant learning rate that is the same as to have asked for it from the start."""
    recipe = {"lr_scheduler": "constant", "lr_warmup_steps": 0}
    calm = straight(steps=8, extra_steps=3, **recipe)
    others = Book(tmp_path / "others", Lease())
    job = others.submit(Task.of(host, TrainConfig(**{**RECIPE, **recipe}), dataset))
    at_step(job, 5, lambda: others.extend(job, 2))
    at_step(job, 7, lambda: others.extend(job, 1))
    assert job.ended.wait(300)
    assert (job.state, job.message, job.config.extra_steps) == ("done", "Trained 11 steps.", 3)
    assert job.history.losses == calm.history.losses and equal(job.lora("last"), calm.lora("last"))


def test_the_queue_can_be_put_in_another_order_and_left(jobs, host, dataset):
    tasks = [Task.of(host, TrainConfig(**{**RECIPE, "steps": 3, "lr_warmup_steps": 0, "seed": seed}), dataset)
             for seed in range(4)]
    order, made = [], []

    def rearrange() -> None:
        made.extend(jobs.submit(task) for task in tasks[1:])
        for job in made:
            job.listeners.append(lambda job, event, _: order.append(job.id) if job.state == "finishing" else 0)
        assert [jobs.status(job)["position"] for job in made] == [0, 1, 2]
        jobs.move(made[2], 0)
        jobs.pause(made[0])
        assert [jobs.status(job)["position"] for job in made] == [None, 1, 0]

    first = jobs.submit(tasks[0])
    at_step(first, 1, rearrange)
    assert first.ended.wait(300) and made[1].ended.wait(300)
    assert order == [made[2].id, made[1].id] and (made[0].state, made[0].history.step) == ("paused", 0)
    with pytest.raises(Refused, match="This job is paused, so 'move' is not possible. It must be queued."):
        jobs.move(made[0], 0)


def test_a_state_and_pictures_can_be_asked_for(jobs, host, dataset):
    job = jobs.submit(Task.of(host, TrainConfig(**RECIPE), dataset, preview=PREVIEW))
    at_step(job, 5, lambda: job.ask("save"), lambda: job.ask("sample"))
    assert job.ended.wait(300)
    assert {"step_000005_00.png", "step_000005_01.png"} < set(job.folder.samples())
    assert "step_000004_00.png" in job.folder.samples() and "step_000003_00.png" not in job.folder.samples()


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """An empty loras folder."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    return tmp_path / "loras"


def names(loras) -> set[str]:
    return {path.relative_to(loras).as_posix() for path in loras.rglob("*.safetensors")}


def test_a_job_saves_its_lora_for_others_when_it_ends_each_once(jobs, host, dataset, loras):
    """… and another after another step, or in another way."""
    saves = (SaveAs("people/anna", "fp32"), SaveAs("cat", "fp32", "kohya"))
    book, task = Book(jobs._folder, Lease(), shelf=Loras()), Task.of(host, TrainConfig(**RECIPE), dataset)
    job = book.submit(task, saves=saves)
    assert job.ended.wait(300) and names(loras) == {"people/anna.safetensors", "cat.safetensors"}
    lora, saved = job.lora("last"), load(loras / "people" / "anna.safetensors")
    assert equal(lora, saved) and saved.metadata["ss_steps"] == "8" and saved.metadata["modelspec.title"] == "anna"
    assert [Path(file).as_posix() for file in book.status(job)["saved"]] == ["people/anna.safetensors",
                                                                            "cat.safetensors"]
    assert job.saving.save(lora, saves[0], None) == str(Path("people/anna.safetensors"))
    again = Book(jobs._folder, Lease(), shelf=Loras())  # as after a restart
    job = again.get(job.id)
    assert job.saving.wanted == saves and job.saving.save(lora, saves[1], None) == "cat.safetensors"
    assert len(names(loras)) == 2
    assert job.saving.save(lora, SaveAs("cat", "fp16", "kohya"), None) == "cat_00002.safetensors"
    (loras / "cat.safetensors").unlink()  # a person took it away
    assert job.saving.save(lora, saves[1], None) == "cat.safetensors"
    longer = replace(task, config=TrainConfig(**RECIPE, extra_steps=1))
    job = again.submit(longer, saves=saves[1:])
    assert job.ended.wait(300) and job.saving.save(job.lora("last"), saves[1], None) == "cat_00003.safetensors"


def test_a_lora_can_be_saved_for_others_at_any_step(jobs, host, dataset, loras):
    """By the job's own name if it has no other; after a stop by itself; the best one if that is wanted."""
    book = Book(jobs._folder, Lease(), shelf=Loras())
    job = book.submit(Task.of(host, TrainConfig(**RECIPE), dataset), saves=())
    at_step(job, 2, lambda: book.export(job))
    at_step(job, 4, lambda: book.stop(job))
    assert job.ended.wait(300) and names(loras) == {"ohwx.safetensors"}
    assert load(loras / "ohwx.safetensors").metadata["ss_steps"] == "2"
    book.export(job)
    assert load(loras / "ohwx_00002.safetensors").metadata["ss_steps"] == "4"
    task = Task.of(host, TrainConfig(**RECIPE, held_out=1, validate_every=2), dataset)
    best = book.submit(task, saves=(SaveAs("best", "fp32", which="best"),))
    assert best.ended.wait(300)
    assert equal(load(loras / "best.safetensors"), best.lora("best"))


def test_a_lora_that_cannot_be_saved_for_others_is_a_warning(jobs, host, dataset, loras):
    loras.write_text("a file where the folder should be")
    book = Book(jobs._folder, Lease(), shelf=Loras())
    job = book.submit(Task.of(host, TrainConfig(**RECIPE), dataset), saves=(SaveAs("cat"),))
    assert job.ended.wait(300) and job.state == "done" and job.lora("last")
    [warning] = book.status(job)["warnings"]
    assert "The LoRA is not in models/loras: The LoRA could not be written to" in warning
    loras.unlink()
    book.export(job)
    assert names(loras) == {"cat.safetensors"}


def test_as_many_states_are_kept_as_asked_for_and_each_has_its_lora(jobs, host, dataset):
    job = run(jobs, host, dataset, save_every=2, keep_states=3)
    assert job.folder.snapshots() == [4, 6, 8]
    loras = [job.lora(step) for step in (4, 6, 8)]
    assert equal(loras[2], job.lora("last")) and not equal(loras[0], loras[1])
    assert [lora.metadata["ss_steps"] for lora in loras] == ["4", "6", "8"]
    assert jobs.details(job)["disk_bytes"] == sum(f.stat().st_size for f in job.folder.path.rglob("*") if f.is_file())


def test_a_deleted_job_leaves_nothing(jobs, host, dataset, tmp_path):
    job = run(jobs, host, dataset)
    jobs.delete(job)
    assert jobs.all() == [] and list((tmp_path / "jobs").iterdir()) == []


def test_a_workflow_that_brings_back_another_task_is_refused_with_what_changed(jobs, host, dataset):
    job = run(jobs, host, dataset)
    with pytest.raises(ValueError, match=f"The job '{job.id}' cannot go on, because this has changed since it began: "
                                         "recipe. Change it back"):
        jobs.submit(Task.of(host, TrainConfig(**{**RECIPE, "rank": 5}), dataset), expected=job.id)


def test_too_little_room_is_told_before_anything_is_written(jobs, host, dataset, monkeypatch):
    few = shutil.disk_usage("/")._replace(free=job_folder.RESERVE + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: few)  # stands for a disk that is nearly full
    job = run(jobs, host, dataset)
    assert job.state == "failed" and "This training needs" in job.message
    assert "Make room, delete jobs you no longer need, or lower keep_states" in job.message
    assert not job.folder.snapshots()


# ComfyUI takes the model away


def wired_to_a_lora(patcher, clip, random_vae):
    """A base that is patched, so that a step without the patch learns something else."""
    host, config = ComfyHost(patcher, clip, random_vae), TrainConfig(steps=1, rank=4)
    host.load(0)
    view = host.view(torch.float32)
    draw = torch.Generator().manual_seed(3)
    for parameter in inject(view, config, layout(view, config, host.family)):
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return ComfyHost(with_lora(patcher, to_lora(view, "LoRA")), clip, random_vae)


def test_a_model_that_is_unloaded_within_a_step_changes_no_gradient(jobs, patcher, clip, random_vae, dataset, tmp_path,
                                                                    monkeypatch):
    """/free and an out-of-memory error elsewhere unload all models at any time, without the lease."""
    host = wired_to_a_lora(patcher, clip, random_vae)
    straight = run(jobs, host, dataset)
    predict, calls, unloaded = host.predict, iter(range(1000)), []

    def unload(*arguments):
        call = next(calls)
        if call in (3, 8, 9):
            mm.unload_all_models()
            unloaded.append(call)
        return predict(*arguments)

    monkeypatch.setattr(host, "predict", unload)
    disturbed = run(Book(tmp_path / "others", Lease()), host, dataset)
    assert unloaded == [3, 8, 9] and disturbed.history.losses == straight.history.losses
    assert equal(disturbed.lora("last"), straight.lora("last"))


def test_a_model_that_is_unloaded_again_and_again_ends_the_job_with_a_sentence(jobs, host, dataset, monkeypatch):
    predict = host.predict

    def unload(*arguments):
        mm.unload_all_models()
        return predict(*arguments)

    monkeypatch.setattr(host, "predict", unload)
    job = run(jobs, host, dataset)
    assert job.state == "failed" and "The model was unloaded during 10 steps in a row." in job.message


def test_a_dora_is_told_of_the_model_as_it_is_wired_whatever_a_prompt_has_left_on_it(jobs, host, patcher, dataset,
                                                                                     tmp_path, straight):
    """What a DoRA's file holds depends on the base's weights; another LoRA on them must not count."""
    calm = straight(adapter="DoRA")
    other = wired_to_a_lora(patcher, host._clip, host._vae)
    others = Book(tmp_path / "others", Lease())
    job = others.submit(Task.of(host, TrainConfig(**RECIPE, adapter="DoRA"), dataset))
    at_step(job, 7, lambda: other.load(0))  # as a prompt would between two steps; the next save is after step 8
    at_step(job, 8, lambda: other.load(0))
    assert job.ended.wait(300)
    assert equal(job.lora("last"), calm.lora("last"))


def test_a_job_can_be_paused_while_a_prompt_has_the_gpu(host, dataset, tmp_path):
    lease = Lease()
    jobs = Book(tmp_path / "jobs", lease)
    job = jobs.submit(Task.of(host, TrainConfig(**RECIPE), dataset))
    taken = threading.Event()

    def prompt() -> None:
        lease.take_for_prompt()
        taken.set()

    at_step(job, 4, threading.Thread(target=prompt).start)
    assert taken.wait(100) and not job.ended.wait(0.3)
    jobs.pause(job)
    assert job.ended.wait(20) and (job.state, job.folder.snapshots()[-1]) == ("paused", job.history.step)
    lease.give_back()


def test_a_finished_job_whose_lora_is_not_on_disk_is_finished_again_after_a_restart(jobs, host, dataset, tmp_path):
    job = run(jobs, host, dataset)
    lora = job.lora("last")
    (job.folder.path / "lora.safetensors").unlink()  # as if the disk had been full when it was done
    later = Book(tmp_path / "jobs", Lease())
    [found] = later.all()
    assert found.state == "paused"
    assert found.message == "Its LoRA could not be written at step 8 of 8. Resume to write it."
    again = run(later, host, dataset)
    assert again is found and again.state == "done"
    assert equal(load_file(job.folder.path / "lora.safetensors"), lora)
