"""Event files, read back by TensorBoard's own EventAccumulator."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from livelora.trainer.jobs.tensorboard import Board
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[3]


def line(step: int, loss: float | None) -> dict:
    """A line of metrics.jsonl, as Record writes it."""
    return {"step": step, "loss": loss, "grad_norm": None if loss is None else 2 * loss, "learning_rate": 1e-4,
            "seconds": 0.25}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All curves in `folder`, as (step, value); values are fp32 in the file."""
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {tag: [(e.step, pytest.approx(e.value, rel=1e-6)) for e in accumulator.Scalars(tag)]
            for tag in accumulator.Tags()["scalars"]}


def test_every_field_becomes_a_point_of_its_curve(tmp_path):
    board = Board(tmp_path, 0)
    board.add({"step": 0, "validation_base": 0.5})
    board.add({"step": 0, "validation": 0.4375})
    board.add(line(1, 0.375))
    board.add(line(2, 0.125) | {"of_peak": 0.5, "spent": {"forward": 0.25, "waiting": 2.0}})
    board.add({"step": 2, "validation": 0.25})
    board.add(line(3, 0.0625) | {"learning_rate": 0.0})
    assert read(tmp_path) == {
        "held_out/base": [(0, 0.5)], "held_out/loss": [(0, 0.4375), (2, 0.25)],
        "train/loss": [(1, 0.375), (2, 0.125), (3, 0.0625)],
        "train/grad_norm": [(1, 0.75), (2, 0.25), (3, 0.125)],
        "train/learning_rate": [(1, 1e-4), (2, 1e-4), (3, 0.0)],
        "train/seconds": [(1, 0.25), (2, 0.25), (3, 0.25)],
        "train/of_peak": [(2, 0.5)], "seconds/forward": [(2, 0.25)], "seconds/waiting": [(2, 2.0)]}


def test_a_skipped_step_leaves_a_gap_in_the_loss(tmp_path):
    board = Board(tmp_path, 0)
    for facts in (line(1, 0.5), line(2, None), line(3, 0.25)):
        board.add(facts)
    found = read(tmp_path)
    assert found["train/loss"] == [(1, 0.5), (3, 0.25)] and found["train/grad_norm"] == [(1, 1.0), (3, 0.5)]
    assert [step for step, _ in found["train/seconds"]] == [1, 2, 3]


def test_steps_that_are_done_again_after_a_resume_show_once(tmp_path):
    before = Board(tmp_path, 0)
    for step in range(1, 6):
        before.add(line(step, 1.0))
    before.add({"step": 3, "validation": 0.75})
    before.add({"step": 5, "validation": 0.5})  # not measured again: hidden all the same
    again = Board(tmp_path, 3)
    for step in range(4, 7):
        again.add(line(step, 0.5))
    found = read(tmp_path)
    assert found["train/loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5), (5, 0.5), (6, 0.5)]
    assert found["held_out/loss"] == [(3, 0.75)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_job_that_starts_over_shows_nothing_of_what_it_did_before(tmp_path):
    before = Board(tmp_path, 0)
    before.add({"step": 0, "validation": 0.75})
    for step in range(1, 4):
        before.add(line(step, 1.0))
    again = Board(tmp_path, 0)
    again.add({"step": 0, "validation": 0.5})
    again.add(line(1, 0.25))
    found = read(tmp_path)
    assert found["held_out/loss"] == [(0, 0.5)] and found["train/loss"] == [(1, 0.25)]


def test_lines_are_readable_at_once_and_no_thread_or_file_stays_open(tmp_path):
    threads = threading.enumerate()
    board = Board(tmp_path, 0)
    for step in (1, 2):
        board.add(line(step, 0.5))
        assert len(read(tmp_path)["train/loss"]) == step
    assert threading.enumerate() == threads
    if Path("/proc/self/fd").exists():
        opened = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{n}")]
        assert not [name for name in opened if "tfevents" in name]


@pytest.mark.parametrize("room", [0, 1, 70], ids=["for nothing", "for a byte", "for half a line"])
@pytest.mark.parametrize("lines", [0, 1])
def test_a_line_that_the_disk_does_not_take_is_missing_and_the_next_one_is_not(tmp_path, lines, room):
    """The system refuses to let the file grow: write(2) stores the part that fits, then says EFBIG."""
    resource = pytest.importorskip("resource", reason="POSIX only")
    board = Board(tmp_path, 0)
    if lines:
        board.add(line(1, 1.0))
    size = sum(p.stat().st_size for p in tmp_path.rglob("*tfevents*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            board.add(line(2, 0.5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    board.add(line(3, 0.25))
    assert read(tmp_path)["train/loss"] == [(1, 1.0)] * lines + [(3, 0.25)]


def test_a_job_folder_that_is_gone_is_an_oserror(tmp_path):
    board = Board(tmp_path / "gone", 0)
    with pytest.raises(OSError):
        board.add(line(1, 0.5))
    assert not (tmp_path / "gone").exists()


def test_without_tensorboard_nothing_is_written_nor_said(tmp_path, monkeypatch, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
    Board(tmp_path, 0).add(line(1, 0.5))
    assert not list(tmp_path.iterdir()) and not caplog.records


def test_a_tensorboard_that_does_not_load_costs_a_warning_and_no_more(tmp_path, monkeypatch, caplog):
    load = importlib.import_module

    def unfit(name: str, *arguments):
        if name.startswith("tensorboard"):
            raise TypeError("Descriptors cannot be created directly.")  # what protobuf says to files of another version
        return load(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", unfit)
    Board(tmp_path, 0).add(line(1, 0.5))
    assert not list(tmp_path.iterdir())
    assert "tensorboard is installed but does not load (TypeError: Descriptors cannot" in caplog.text


def test_tensorflow_is_not_imported_where_it_is_installed(tmp_path):
    """`torch.utils.tensorboard` does import it: seconds, and lines in ComfyUI's log."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = ("import sys, types; package = types.ModuleType('livelora'); package.__path__ = [sys.argv[1]]\n"
            "sys.modules['livelora'] = package\n"
            "from pathlib import Path; from livelora.trainer.jobs.tensorboard import Board\n"
            "Board(Path(sys.argv[2]), 0).add({'step': 1, 'loss': 0.5})")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(tmp_path)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert read(tmp_path) == {"train/loss": [(1, 0.5)]}
