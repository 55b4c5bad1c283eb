"""What a job tells of its steps."""

from __future__ import annotations

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
