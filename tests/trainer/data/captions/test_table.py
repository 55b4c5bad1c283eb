"""Tables that spreadsheets and Hugging Face write, read rightly or refused with the line."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.data.captions import table

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
WANTED = {"a.png": {"file_name": "a.png", "text": "a cat, on a mat"}, "b é.png": {"file_name": "b é.png", "text": ""}}


@pytest.mark.parametrize(("name", "content"), [
    ("t.csv", 'file_name,text\na.png,"a cat, on a mat"\nb é.png,\n'.encode()),
    ("t.csv", '\ufefffile_name;text\r\na.png;a cat, on a mat\r\n"b é.png";""\r\n;\r\n'.encode()),
    ("T.CSV", 'sep=;\r\nfile_name;text\r\na.png;a cat, on a mat\r\nb é.png;\r\n'.encode("utf-16")),
    ("t.csv", 'file_name\ttext\na.png\ta cat, on a mat\nb é.png\t\n'.encode("utf-16")),
    ("t.jsonl", b'{"file_name": "a.png", "text": "a cat, on a mat"}\n\n{"text": "", "file_name": "b \\u00e9.png"}'),
])
def test_the_same_table_in_all_its_ways(tmp_path, name, content):
    """Excel with a comma, with a semicolon, with its line sep=, and as Unicode text; and JSON lines."""
    (tmp_path / name).write_bytes(content)
    assert table.read(tmp_path / name) == WANTED


def test_values_of_json_become_text_and_null_is_nothing(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"file_name": "a.png", "text": null, "score": 0.5, "ok": true, "tags": ["a", "b"]}')
    assert table.read(tmp_path / "t.jsonl") == {
        "a.png": {"file_name": "a.png", "score": "0.5", "ok": "true", "tags": '["a", "b"]'}}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.dictionaries(CELL.filter(str.strip), st.fixed_dictionaries({"text": CELL, "accepted": CELL}), max_size=4),
       st.sampled_from(table.SUFFIXES))
def test_what_is_written_is_read_again(tmp_path, rows, suffix):
    table.write(tmp_path / f"t{suffix}", rows)
    assert table.read(tmp_path / f"t{suffix}") == {name: {"file_name": name, **row} for name, row in rows.items()}


def test_other_programs_read_what_is_written(tmp_path):
    """Python's own csv, with the encoding that Excel writes, and json."""
    rows = {"a.png": {"caption": 'say "hé",\nthen; go'}, "b.png": {"accepted": "yes"}}
    table.write(tmp_path / "t.csv", rows)
    content = (tmp_path / "t.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf") and content.endswith(b"\r\n")
    with open(tmp_path / "t.csv", encoding="utf-8-sig", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"file_name": "a.png", "caption": 'say "hé",\nthen; go', "accepted": ""},
            {"file_name": "b.png", "caption": "", "accepted": "yes"}]
    table.write(tmp_path / "t.jsonl", rows)
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()] == [
        {"file_name": "a.png", "caption": 'say "hé",\nthen; go'}, {"file_name": "b.png", "accepted": "yes"}]


def test_a_table_without_rows(tmp_path):
    for suffix in table.SUFFIXES:
        table.write(tmp_path / f"t{suffix}", {})
        assert table.read(tmp_path / f"t{suffix}") == {}


@pytest.mark.parametrize(("name", "content", "told"), [
    ("t.csv", b"name,text\na.png,x\n", "t.csv: no column is called file_name (it has name, text)"),
    ("t.csv", b"file_name,text,text\n", "t.csv: two columns are called text"),
    ("t.csv", b"file_name,text\na.png,a cat, on a mat\n", "t.csv, line 2: it has 3 cells and the table 2 columns"),
    ("t.csv", b"file_name,text\n,x\n", "t.csv, line 2: there is no file_name"),
    ("t.csv", b'file_name,text\na.png,"x\ny"\na.png,z\n', "t.csv, lines 3 and 4: both are for a.png, and they differ"),
    ("t.csv", b"file_name,text\na.png," + b"x" * 200_000, "t.csv, line 2: it is not CSV"),
    ("t.csv", b"caf\xe9", "t.csv is not UTF-8 text"),
    ("t.jsonl", b'{"file_name": "a.png"}\n{"file_name": ', "t.jsonl, line 2: it is not JSON"),
    ("t.jsonl", b'["a.png"]', "t.jsonl, line 1: it must be like"),
    ("t.jsonl", b'{"text": "x"}', "t.jsonl, line 1: there is no file_name (it has text)"),
    *(("t.jsonl", b'{"file_name": "a.png", "%s": %s}' % (column, value), "t.jsonl, line 1: "
       f"{column.decode()} must be one text, got {value.decode()}. Write it in quotation marks, or null for none.")
      for column in (b"text", b"caption", b"prompt") for value in (b"5", b"NaN", b"false", b"0", b'["a"]', b"1.5")),
    ("t.jsonl", b'{"file_name": 5, "text": "x"}', "t.jsonl, line 1: file_name must be one text, got 5"),
    ("t.jsonl", b'{"file_name": "a.png", "text": "x\\ud83d"}', "t.jsonl, line 1: text has half of a character in it"),
    ("t.jsonl", b'{"file_name": "a.png", "text": "x\\u0000"}', "t.jsonl, line 1: text has a zero character in it"),
    ("t.jsonl", b'{"file_name": "\\udc00.png", "text": "x"}', "t.jsonl, line 1: file_name has half of a character"),
    ("t.jsonl", b"[" * 100_000, "t.jsonl, line 1: it is not JSON"),
])
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        table.read(tmp_path / name)
    assert told in str(caught.value)


def test_many_columns_take_no_time(tmp_path):
    """With 20,000 of them a comparison of each with all took ten seconds."""
    names = [f"c{i}" for i in range(20_000)]
    (tmp_path / "t.csv").write_text(f"file_name,{','.join(names)}\na.png{',x' * len(names)}\n")
    assert table.read(tmp_path / "t.csv") == {"a.png": {"file_name": "a.png", **dict.fromkeys(names, "x")}}


def test_a_row_that_is_there_twice_counts_once(tmp_path):
    (tmp_path / "t.csv").write_text("file_name,text\na.png,x\na.png,x\n")
    assert table.read(tmp_path / "t.csv") == {"a.png": {"file_name": "a.png", "text": "x"}}


def test_a_name_that_no_file_can_hold_and_a_foreign_suffix_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"The row of a\\udcff\.png has half of a character"):
        table.write(tmp_path / "t.csv", {"a\udcff.png": {"text": "x"}})
    with pytest.raises(ValueError, match=r"got 't\.xlsx'"):
        table.write(tmp_path / "t.xlsx", {})
    assert not list(tmp_path.iterdir())
