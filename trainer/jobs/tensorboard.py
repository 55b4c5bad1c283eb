"""A job's metrics as TensorBoard event files, if the package `tensorboard` is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

TAGS = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate",
        "seconds": "train/seconds", "validation": "held_out/loss", "validation_base": "held_out/base"}
"""A field of a line of `metrics.jsonl` → the curve it belongs to."""


class Board:
    """Adds scalars to an event file in `folder`/tensorboard: a new file each time a job begins to train or goes on.

    The records are written here and not by torch's SummaryWriter: importing that loads TensorFlow where it is
    installed, its thread dies with half a record in the file when the disk is full, and a kill loses up to two minutes
    of lines. Here a line is in the file, whole, when `add` returns; no thread and no open file stay behind."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: the last one that was done before. What earlier files tell of later ones is hidden, for they are
        done again.

        Imports tensorboard, which takes a tenth of a second. Writes nothing yet and raises nothing."""
        self._path = folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}"  # files are read in this order
        self._hidden_from = step + 1 if step else 0  # step 0 itself is measured again
        self._modules = _load() if importlib.util.find_spec("tensorboard") else None

    def add(self, facts: dict[str, Any]) -> None:
        """Writes what a line of `metrics.jsonl` tells of its step. Values that are None are left out.

        Raises OSError if it cannot be written. The file then ends with the line before, and the next may succeed."""
        values = {tag: facts[name] for name, tag in TAGS.items() if facts.get(name) is not None}
        if self._modules is None or not values:
            return
        proto, records = self._modules
        event = proto.Event(wall_time=time.time(), step=facts["step"])
        for tag, value in values.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._path.parent.mkdir(exist_ok=True)
        size = self._path.stat().st_size if self._path.exists() else 0
        content = io.BytesIO()
        for each in [event] if size else [*self._opening(proto), event]:
            records.RecordWriter(content).write(each.SerializeToString())
        self._append(content.getvalue(), size)

    def _opening(self, proto: ModuleType) -> list[Any]:
        """What a file begins with: its version, and from which step on earlier files no longer count."""
        now = time.time()
        start = proto.SessionLog(status=proto.SessionLog.START)
        return [proto.Event(wall_time=now, file_version="brain.Event:2"),
                proto.Event(wall_time=now, step=self._hidden_from, session_log=start)]

    def _append(self, content: bytes, size: int) -> None:
        """All of it at the end of the file, which has `size` bytes, or nothing."""
        try:
            with self._path.open("ab") as file:
                file.write(content)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)  # behind half a record TensorBoard would read nothing more
            raise


def _load() -> tuple[ModuleType, ModuleType] | None:
    """The modules that make events and records; None, with a warning, if what is installed does not work."""
    try:
        return (importlib.import_module("tensorboard.compat.proto.event_pb2"),
                importlib.import_module("tensorboard.summary.writer.record_writer"))
    except Exception as err:  # an unfit protobuf raises TypeError, for one; no training should end for want of a curve
        log.warning("tensorboard is installed but does not load (%s: %s). No event files are written. Reinstall it, or "
                    "uninstall it.", type(err).__name__, err)
        return None
