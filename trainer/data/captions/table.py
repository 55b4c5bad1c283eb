"""Reads and writes tables of images and what belongs to them: CSV, as spreadsheets have it, and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...disk.files import write_atomic
from ...disk.text import check_text
from ..naming import name_some
from ..parsing import parse_json
from .files import read_text

KEY = "file_name"
"""The column that names the image, as Hugging Face's imagefolder calls it."""
SUFFIXES = (".jsonl", ".csv")
TEXTS = ("text", "caption", "prompt")
"""The columns that can hold a caption."""
DELIMITERS = ",;\t"
"""What can separate cells. Excel writes semicolons where the comma is the decimal point, and tabs as Unicode text."""
MOST_BYTES = 64 * 2**20
Row = dict[str, str]


def read(path: Path) -> dict[str, Row]:
    """Returns the rows of a .csv or .jsonl table by their file_name, in their order.

    The table is in UTF-8, or in UTF-16 with a byte order mark. Raises ValueError that names the file and the line if it
    is not text, is no such table, has no file_name, or has two rows for one file that differ."""
    text = read_text(path, MOST_BYTES)
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    for line, row in _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text):
        name = row.get(KEY, "")
        if not name.strip():
            raise ValueError(f"{path.name}, line {line}: there is no {KEY} (it has {_listed(row)}). Each row must name "
                             "its image, like cat.png.")
        if rows.setdefault(name, row) != row:
            raise ValueError(f"{path.name}, lines {lines[name]} and {line}: both are for {name}, and they differ. Take "
                             "one of them out.")
        lines.setdefault(name, line)
    return rows


def write(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Writes or replaces a .csv or .jsonl table with rows by file_name. `read` returns the same rows.

    Raises ValueError for text that is not Unicode or for another suffix, OSError if the disk does not take it."""
    named = [{KEY: name, **{column: value for column, value in row.items() if column != KEY}}
             for name, row in rows.items()]
    content = {".jsonl": _to_json, ".csv": _to_csv}.get(path.suffix.lower())
    if not content:
        raise ValueError(f"A table is a .csv or a .jsonl file, got '{path.name}'.")
    for name, row in rows.items():
        check_text(f"The row of {name_some([name])}", "".join((name, *row.values())))
    write_atomic(path, content(named))


def _to_json(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _to_csv(rows: list[Row]) -> bytes:
    """Returns the rows as CSV with a byte order mark: without it Excel takes UTF-8 for the system's old encoding."""
    columns = list(dict.fromkeys(column for row in rows for column in row)) or [KEY]
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, columns, restval="", quoting=csv.QUOTE_ALL)
    table.writeheader()
    table.writerows(rows)
    return out.getvalue().encode("utf-8-sig")


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also break at U+2028 inside a caption
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as err:
            raise ValueError(f"{path.name}, line {number}: it is not JSON ({err}). Each line must be like "
                             '{"file_name": "cat.png", "text": "a cat"}.') from err
        if not isinstance(row, dict):
            raise ValueError(f'{path.name}, line {number}: it must be like {{"file_name": "cat.png", "text": "a cat"}}'
                             f", got {line.strip()[:40]!r}.")
        row = {key: value for key, value in row.items() if value is not None}
        if wrong := next((key for key in (KEY, *TEXTS) if not isinstance(row.get(key, ""), str)), None):
            raise ValueError(f"{path.name}, line {number}: {wrong} must be one text, got "
                             f"{json.dumps(row[wrong])[:40]}. Write it in quotation marks, or null for none.")
        for key, value in row.items():
            check_text(f"{path.name}, line {number}: {key[:40]}", f"{value}")
        yield number, {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                       for key, value in row.items()}


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    delimiter, text, before = _delimiter(text)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns: list[str] = []
    try:
        for cells in table:
            line = table.line_num + before
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = _columns(path, cells)
                continue
            if any(cells[len(columns):]):
                raise ValueError(f"{path.name}, line {line}: it has {len(cells)} cells and the table {len(columns)} "
                                 f'columns. Put a caption with "{delimiter}" in it between quotation marks (").')
            yield line, {column: cell for column, cell in zip(columns, cells, strict=False) if column}
    except csv.Error as err:
        raise ValueError(f"{path.name}, line {table.line_num + before}: it is not CSV ({err}). Save it again from your "
                         "spreadsheet as CSV UTF-8.") from err


def _delimiter(text: str) -> tuple[str, str, int]:
    """Returns what separates cells, the table without Excel's line that says so, and how many lines that removed."""
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep=") and len(first.strip()) == 5:
        return first[4], rest, 1
    cells = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in DELIMITERS}
    return next((d for d, names in cells.items() if KEY in map(str.strip, names) and len(names) > 1), ","), text, 0


def _columns(path: Path, cells: list[str]) -> list[str]:
    """Returns the names in the first row. A column without a name is not read. Raises ValueError if no column is called
    file_name, or if two have the same name."""
    columns = [cell.strip() for cell in cells]
    if KEY not in columns:
        raise ValueError(f"{path.name}: no column is called {KEY} (it has {_listed(columns)}). Its first row must name "
                         "the columns, like file_name,text.")
    named = Counter(column for column in columns if column)
    if twice := [column for column, times in named.items() if times > 1]:
        raise ValueError(f"{path.name}: two columns are called {twice[0][:40]}. Take one of them out.")
    return columns


def _listed(names: list[str] | Row) -> str:
    return ", ".join(name[:40] for name in [*names][:8]) or "none"
