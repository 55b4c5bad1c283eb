"""Writes a job's metrics as TensorBoard event files, if the package `tensorboard` is installed."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from ..disk.files import append_whole

log = logging.getLogger(__name__)

TAGS = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate",
        "seconds": "train/seconds", "of_peak": "train/of_peak", "validation": "held_out/loss",
        "validation_base": "held_out/base"}
"""Maps each field of a line of `metrics.jsonl` to the name of its curve."""


class Board:
    """Adds scalars to an event file in `folder`/tensorboard: a new file each time a job begins to train or goes on.

    The records are written here and not by torch's SummaryWriter: importing that loads TensorFlow where it is
    installed, its thread dies with half a record in the file when the disk is full, and a kill loses up to two minutes
    of lines. Here a line is in the file, whole, when `add` returns; no thread and no open file stay behind."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step` is the last step that was done before. What earlier files say about later steps is hidden, because
        those are done again.

        Imports tensorboard, which takes a tenth of a second. Writes nothing yet and raises nothing."""
        self._path = folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}"  # files are read in this order
        self._hidden_from = step + 1 if step else 0  # step 0 itself is measured again
        self._modules = _load() if importlib.util.find_spec("tensorboard") else None

    def add(self, facts: dict[str, Any]) -> None:
        """Writes what a line of `metrics.jsonl` says about its step. Values that are None are left out.

        Raises OSError if it cannot be written. The file then ends with the line before, and the next may succeed."""
        values = {tag: facts[name] for name, tag in TAGS.items() if facts.get(name) is not None}
        values |= {f"seconds/{work}": seconds for work, seconds in facts.get("spent", {}).items()}
        if self._modules is None or not values:
            return
        proto, records = self._modules
        event = proto.Event(wall_time=time.time(), step=facts["step"])
        for tag, value in values.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._path.parent.mkdir(exist_ok=True)
        begun = self._path.exists() and self._path.stat().st_size > 0
        content = io.BytesIO()
        for each in [event] if begun else [*self._opening(proto), event]:
            records.RecordWriter(content).write(each.SerializeToString())
        append_whole(self._path, content.getvalue())  # TensorBoard reads nothing after half a record

    def _opening(self, proto: ModuleType) -> list[Any]:
        """Returns the events that begin a file: its version, and from which step on earlier files no longer count."""
        now = time.time()
        start = proto.SessionLog(status=proto.SessionLog.START)
        return [proto.Event(wall_time=now, file_version="brain.Event:2"),
                proto.Event(wall_time=now, step=self._hidden_from, session_log=start)]


def _load() -> tuple[ModuleType, ModuleType] | None:
    """Returns the modules that make events and records; None, with a warning, if what is installed does not work."""
    try:
        return (importlib.import_module("tensorboard.compat.proto.event_pb2"),
                importlib.import_module("tensorboard.summary.writer.record_writer"))
    except Exception as err:  # a wrong protobuf raises TypeError, for example; missing curves must not end a training
        log.warning("tensorboard is installed but does not load (%s: %s). No event files are written. Reinstall it, or "
                    "uninstall it.", type(err).__name__, err)
        return None
