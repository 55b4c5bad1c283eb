"""Says how a job's LoRA is saved where other nodes and programs look for it: the settings of a Save LoRA node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ..lora.file import Lora, name_of
from ..lora.formats import Format
from .folder import JobFolder, Which
from .history import History
from .workflow import Graph


@dataclass(frozen=True, slots=True)
class SaveAs:
    """Holds what Save LoRA's inputs say."""

    name: str
    dtype: str = "fp16"
    format: Format = "ComfyUI"
    embed_workflow: bool = False
    which: Which = field(default="last", compare=False)
    """Which LoRA of the job it is. The same LoRA saved in the same way is the same file, whichever it is called."""


class Shelf(Protocol):
    """Holds LoRA files for everybody, as ComfyUI's models/loras does."""

    def write(self, lora: Lora, how: SaveAs, graph: Graph | None) -> str:
        """Writes a new file and returns its name on the shelf. Raises ValueError or OSError if it cannot."""
        ...

    def has(self, file: str) -> bool:
        """Tells whether a file is there."""
        ...


class Saving:
    """Saves a job's LoRA for others, and remembers which files have which step and how."""

    def __init__(self, folder: JobFolder, facts: Mapping[str, Any], shelf: Shelf | None,
                 changed: Callable[[], None]) -> None:
        """`facts` is what `job.json` holds. Without a shelf nothing is saved. `changed` is called after each file."""
        self._folder, self._name, self._shelf, self._changed = folder, facts["name"], shelf, changed
        self._lock = threading.Lock()
        self.wanted = tuple(SaveAs(**entry) for entry in facts.get("saves", ()))
        """How the LoRA is saved by itself when the job ends."""
        self._saved = [(entry["file"], entry["step"], SaveAs(**entry["how"])) for entry in facts.get("saved", ())]

    @property
    def files(self) -> list[str]:
        """Returns the names of the files that were saved, oldest first."""
        return [file for file, _, _ in self._saved]

    def save(self, lora: Lora, how: SaveAs, graph: Graph | None) -> str:
        """Saves a LoRA of this job, and returns the file's name. If it was saved in this way before, it returns that
        file. Raises ValueError or OSError if it cannot be saved."""
        assert self._shelf, "a job that is asked for files has a shelf"
        step = int(lora.metadata["ss_steps"])
        with self._lock:
            for file, at, as_ in reversed(self._saved):
                if (at, as_) == (step, how) and self._shelf.has(file):
                    return file
            file = self._shelf.write(lora, how, graph)
            self._saved.append((file, step, how))
        self._changed()
        return file

    def now(self, newest: Lora | None, graph: Graph | None) -> None:
        """Saves the newest LoRA, or the best one where that is wanted, because a person asked for it. If the workflow
        names no file, the file has the job's name. Raises ValueError or OSError if it cannot be saved."""
        self._save_each(self.wanted or (SaveAs(name_of(self._name)),), newest, graph)

    def at_end(self, newest: Lora | None, graph: Graph | None, history: History) -> None:
        """Saves the LoRA as the workflow wants it. What fails is a warning in the history."""
        try:
            with history.tolerating("LoRA file"):
                self._save_each(self.wanted, newest, graph)
        except ValueError as err:
            history.warn(f"The LoRA is not in models/loras. {err}")

    def _save_each(self, wanted: Iterable[SaveAs], newest: Lora | None, graph: Graph | None) -> None:
        for how in wanted if self._shelf else ():
            best = self._folder.read_lora("best") if how.which == "best" else None
            if lora := best or newest or self._folder.newest_lora() or self._folder.read_lora("last"):
                self.save(lora, how, graph)

    def forget(self) -> None:
        """Forgets which files were saved: what they hold is no longer what the job has learned."""
        self._saved.clear()

    def as_facts(self) -> dict[str, Any]:
        """Returns plain values for `job.json`."""
        return {"saves": [asdict(how) for how in self.wanted],
                "saved": [{"file": file, "step": step, "how": asdict(how)} for file, step, how in self._saved]}
