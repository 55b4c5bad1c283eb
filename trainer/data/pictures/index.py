"""Keeps on disk what is known of the pictures of a folder, so that a second start reads none of them.

F is a dataclass with the facts that are asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from ...disk.files import write_atomic

log = logging.getLogger(__name__)

VERSION = 1
"""The version of the files. Raise it when other facts are found in the same picture."""
MOST_THREADS = 16
"""The most threads at once. Each holds a decoded picture in memory."""


F = TypeVar("F")
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Question(Generic[F]):
    """Asks for facts about a picture. Questions with the same path and the same `about` are the same."""

    path: Path
    find: Callable[[], F]
    """Looks at the picture. Raises ValueError if it cannot be used."""
    about: str = ""
    """What the facts depend on beside the file."""

    @property
    def key(self) -> str:
        """Returns how an index calls the question. No file's name has a "/"."""
        return f"{self.path.name}/{self.about}" if self.about else self.path.name


class Index(Generic[F]):
    """Keeps one JSON file for each folder with pictures. If something goes wrong with it, that costs only time."""

    def __init__(self, folder: Path, facts: type[F]) -> None:
        self._folder, self._kind = folder, facts

    def examine(self, asked: Sequence[Question[F]], tell: Callable[[int, int], None]) -> list[F | ValueError]:
        """Returns the facts of each picture, or why it cannot be used, in the order of the questions.

        A picture whose file still has the size and the times it had is not read again. `tell` is called with the number
        of pictures that are done and the number of all. If it raises, the work ends, and what is examined is kept."""
        questions = {(question.path.parent, question.key): question for question in asked}
        stamps = {path: _stamp(path) for path in {question.path for question in asked}}
        remembered = {place: self._remembered(place) for place, _ in questions}
        found: dict[tuple[Path, str], F | ValueError] = {}
        for (place, key), question in questions.items():
            stamp = stamps[question.path]
            if stamp and (entry := remembered[place].get(key)) and entry["stamp"] == stamp:
                found[place, key] = self._facts(entry["facts"])
        tell(len(found), len(questions))
        new = [where for where in questions if where not in found]
        try:
            for where, result in _each({where: questions[where] for where in new}):
                found[where] = result
                tell(len(found), len(questions))
        finally:
            learned = {where: facts for where in new if isinstance(facts := found.get(where), self._kind)}
            for (place, key), facts in learned.items():
                stamp = stamps[questions[place, key].path]
                remembered[place][key] = {"stamp": stamp, "facts": asdict(cast("Any", facts))}
            for place in {place for place, _ in learned}:
                self._remember(place, remembered[place])
        return [found[question.path.parent, question.key] for question in asked]

    def _file(self, place: Path) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(place.absolute())).hexdigest()[:32]}.json"

    def _remembered(self, place: Path) -> dict[str, Any]:
        """Returns the stamp and the facts of the pictures in a folder, by the keys of the questions."""
        try:
            kept = json.loads(self._file(place).read_bytes())
            entries = kept["pictures"] if kept["version"] == VERSION else {}
            return {key: entry for key, entry in entries.items() if entry["stamp"] and self._facts(entry["facts"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as err:
            log.warning("What is known of the pictures in %s cannot be read (%s) and is found anew", place, err)
            return {}

    def _remember(self, place: Path, entries: dict[str, Any]) -> None:
        """Writes what is known of the pictures in a folder, without those that are no longer there."""
        try:
            there = {*os.listdir(place)}
            kept = {key: entry for key, entry in entries.items() if key.partition("/")[0] in there}
            content = {"version": VERSION, "folder": str(place.absolute()), "pictures": kept}
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file(place), json.dumps(content).encode())  # as ASCII: a name need not be UTF-8
        except OSError as err:
            log.warning("What is known of the pictures in %s cannot be kept (%s)", place, err)


    def _facts(self, kept: dict[str, Any]) -> F:
        """Returns the facts that were kept as JSON. Raises TypeError if they are not those of this kind."""
        return self._kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()})


def _each(questions: dict[K, Question[F]]) -> Iterator[tuple[K, F | ValueError]]:
    """Answers questions in threads, and yields each answer as soon as it is there. Threads help because pillow lets
    others run while it decodes."""
    threads = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), "livelora-pictures")
    try:
        futures = {threads.submit(_answer, question): key for key, question in questions.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        threads.shutdown(cancel_futures=True)


def _answer(question: Question[F]) -> F | ValueError:
    try:
        return question.find()
    except ValueError as err:
        return err.with_traceback(None)  # the traceback's frames would keep the picture in memory


def _stamp(path: Path) -> list[int] | None:
    """Returns a file's size in bytes and its times in nanoseconds, which change with it; None if it is not there. A
    file that was replaced by an older one has another time of change (except on Windows)."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
