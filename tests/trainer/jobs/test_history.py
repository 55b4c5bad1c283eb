"""What a job tells of its steps."""

from __future__ import annotations

from livelora.trainer.jobs import folder as job_folder
from livelora.trainer.jobs.folder import JobFolder
from livelora.trainer.jobs.history import History
from livelora.trainer.training.trainer import StepResult


def test_the_loss_of_the_last_step_is_told_and_a_skipped_step_has_none(tmp_path):
    folder = JobFolder(tmp_path / "job")
    folder.create()
    history = History(folder)
    assert history.facts(3)["step_loss"] is None
    history.add_step(StepResult(0.5, 1.0, 1e-4), 0.1)
    history.add_step(StepResult(0.25, 1.0, 1e-4), 0.1)
    assert (history.facts(3)["loss"], history.facts(3)["step_loss"]) == (0.375, 0.25)
    history.add_step(StepResult(float("nan"), 1.0, 1e-4, skipped=True), 0.1)
    assert (history.facts(3)["loss"], history.facts(3)["step_loss"]) == (0.375, None)
    again = History(folder)
    again.read(up_to=2)
    assert again.facts(3)["step_loss"] == 0.25


def test_what_the_disk_did_not_take_is_written_when_it_does(tmp_path, monkeypatch):
    """Also what a pause comes between; what is done again counts once."""
    def full(path, content):
        raise OSError(28, "No space left on device")

    folder = JobFolder(tmp_path / "job")
    folder.create()
    history = History(folder)
    history.add_step(StepResult(1.0, 1.0, 1e-4), 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(job_folder, "append_whole", full)
        for loss in (2.0, 3.0, 4.0):
            history.add_step(StepResult(loss, 1.0, 1e-4), 0.1)
        history.read(up_to=3)
        assert history.losses == [1, 2, 3] and [line["step"] for line in folder.metrics()] == [1]
    history.add_step(StepResult(5.0, 1.0, 1e-4), 0.1)
    again = History(folder)
    again.read()
    assert again.losses == [1, 2, 3, 5] and again.step == 4
