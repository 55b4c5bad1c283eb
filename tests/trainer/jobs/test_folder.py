"""A job's folder after a full disk, a crash, a removal that was cut short."""

from __future__ import annotations

import contextlib
import json
import sys

import pytest
import torch
from livelora.trainer.jobs import folder as job_folder
from livelora.trainer.jobs.book import Book
from livelora.trainer.jobs.folder import JobFolder
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.lora.file import Lora
from livelora.trainer.recipe.config import TrainConfig

RECIPE = TrainConfig(steps=8, rank=4, learning_rate=1e-3).as_dict()
FACTS = {"name": "owl", "state": "paused", "message": "", "recipe": RECIPE, "sharing": "prompts first",
         "fingerprints": {}, "created": ""}


@pytest.fixture
def folder(tmp_path):
    found = JobFolder(tmp_path / "job")
    found.create()
    return found


@contextlib.contextmanager
def full_disk(most: int):
    """The kernel's limit on a file's size, which stands for a disk that fills up in the middle of a write."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_a_lora_that_does_not_fit_on_the_disk_leaves_the_one_before_it(folder):
    small, large = ({"a.lora_up.weight": torch.full((size,), 1.0)} for size in (10, 100000))
    folder.write_lora(Lora(small, {}), "last")
    with full_disk(50000), pytest.raises(OSError, match="(?i)too large|27"):  # EFBIG is 27
        folder.write_lora(Lora(large, {}), "last")
    assert folder.read_lora("last")["a.lora_up.weight"].equal(small["a.lora_up.weight"])
    assert {p.name for p in folder.path.iterdir()} == {"lora.safetensors", "samples", "state"}


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_a_line_of_the_metrics_is_whole_or_not_there(folder):
    folder.append_metrics([{"step": 1, "loss": 0.5}])
    with full_disk(30), pytest.raises(OSError):
        folder.append_metrics([{"step": 2, "loss": 0.25}])
    folder.append_metrics([{"step": 3, "loss": 0.125}])
    assert (folder.path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n{"step": 3, "loss": 0.125}\n'


def test_a_line_cut_short_costs_that_line_alone(folder):
    (folder.path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo{"step": 3, "loss": 1}\n'
                                               '{"step": 4, "loss": 2}\n')
    assert [line["step"] for line in folder.metrics()] == [1, 4]


def test_steps_that_were_done_again_count_once(folder):
    """In a folder that was read-only when the job went on from step 1, the lines after it could not be dropped."""
    lines = [{"step": 0, "validation": 9}, {"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 2, "validation": 3},
             {"step": 3, "loss": 4}, {"step": 2, "loss": 5}, {"step": 2, "validation": 6}]
    for line in lines:
        folder.append_metrics([line])
    assert folder.metrics() == [*lines[:2], *lines[5:]]


def test_what_cannot_be_discarded_does_not_keep_the_rest(tmp_path, monkeypatch):
    folder, remove = JobFolder(tmp_path / "job"), job_folder.remove_folder
    folder.create()
    folder.write_job(FACTS)
    folder.write_lora(Lora({"a": torch.ones(1)}, {}), "last")
    folder.append_metrics([{"step": 1, "loss": 1}])

    def open_in_a_viewer(path):
        if path.name == "samples":
            raise PermissionError("Access is denied")
        remove(path)

    monkeypatch.setattr(job_folder, "remove_folder", open_in_a_viewer)  # stands for Windows
    book = Book(tmp_path, Lease())
    [job] = book.all()
    book.discard(job)
    assert (job.state, job.history.step, job.lora("last")) == ("stopped", 0, None)
    assert job.message == ("Stopped at step 1, but not all that was learned could be removed (Access is denied). "
                           "Delete the job.")
    assert sorted(p.name for p in folder.path.iterdir()) == ["job.json", "samples"]


def test_a_job_of_which_half_was_removed_does_not_come_back(tmp_path):
    for name in ("whole", ".removed.0123abcd.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps(FACTS))
    assert [job.id for job in Book(tmp_path, Lease()).all()] == ["whole"]
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def test_stopping_a_paused_job_passes_over_a_state_whose_lora_is_broken(tmp_path):
    folder = JobFolder(tmp_path / "job")
    folder.create()
    folder.write_job(FACTS)
    good = {"a.lora_up.weight": torch.ones(4)}
    for step, lora in ((3, good), (6, {"a.lora_up.weight": torch.zeros(4)})):
        folder.write_lora(Lora(lora, {}), "last")
        (folder.states / f"step_{step:06}").mkdir()
        (folder.path / "lora.safetensors").rename(folder.states / f"step_{step:06}" / "lora.safetensors")
    broken = folder.states / "step_000006" / "lora.safetensors"
    broken.write_bytes(broken.read_bytes()[:-8])
    book = Book(tmp_path, Lease())
    [job] = book.all()
    book.stop(job)
    assert job.state == "stopped" and job.lora("last")["a.lora_up.weight"].equal(good["a.lora_up.weight"])
