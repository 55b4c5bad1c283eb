"""Captions go out as a table, are edited, and come back, through a real server."""

from __future__ import annotations

import shutil

import pytest
from comfyui import ROOT, Failed, Refused
from graphs import training

DEMO = ROOT / "example_workflows" / "demo_dataset"


def reviewing(folder: str, **inputs) -> dict:
    """Dataset and review, without a training."""
    graph = {"data": training(0)["data"]}
    graph["data"]["inputs"]["folder"] = folder
    graph["review"] = {"class_type": "LiveLoraReview", "inputs": {
        "dataset": ["data", 0], "action": "show", "table": "", "find": "", "replace": "", "regular_expression": False,
        "use": "all", "write_files": False, **inputs}}
    return graph


def report(server, graph) -> str:
    return server.run(graph)["review"]["text"][0]


@pytest.fixture
def few(server):
    folder = server.base / "input" / "reviewed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("bone", "lion"):
        for suffix in (".png", ".txt"):
            shutil.copy(DEMO / f"{name}{suffix}", folder)
    return folder


def test_a_table_is_written_edited_and_read(server, few):
    path = server.base / "input" / "reviewed.csv"
    path.unlink(missing_ok=True)
    assert "The table is in" in report(server, reviewing("reviewed", action="write table", table="reviewed.csv"))
    text = path.read_text(encoding="utf-8-sig")
    assert "flatmoji, bone" in text
    path.write_text(text.replace("flatmoji, bone", "flatmoji, a bone; white").replace("yes", "no", 1), encoding="utf-8")
    reading = reviewing("reviewed", action="read table", table="reviewed.csv")
    assert "bone.png: “flatmoji, bone” → “flatmoji, a bone; white”" in report(server, reading)
    path.write_text(text.replace("flatmoji, bone", "flatmoji, another bone"), encoding="utf-8")
    assert "→ “flatmoji, another bone”" in report(server, reading), "the same graph notices that the table changed"
    assert (few / "bone.txt").read_text() == (DEMO / "bone.txt").read_text(), "nothing was written beside the images"


def test_found_text_is_replaced_and_written_if_asked(server, few):
    told = report(server, reviewing("reviewed", find=r"^flatmoji, (\w+)", replace=r"flatmoji, a \1",
                                    regular_expression=True, write_files=True))
    assert "2 captions changed" in told and "2 captions written beside their images" in told
    assert (few / "lion.txt").read_text().strip() == "flatmoji, a lion"
    assert (few / "lion.txt.bak").read_bytes() == (DEMO / "lion.txt").read_bytes()


def test_what_cannot_be_done_is_said(server, few):
    with pytest.raises(Refused) as refused:
        server.queue(reviewing("reviewed", table="captions.xlsx"))
    assert "A table is a .csv or a .jsonl file, got 'captions.xlsx'" in str(refused.value.errors)
    for inputs, told in (({"find": "(", "regular_expression": True}, "find is no regular expression: '('"),
                         ({"use": "accepted only"}, "use is 'accepted only', but only a table says which images"),
                         ({"action": "read table"}, "table is empty. Name a table"),
                         ({"action": "read table", "table": "nowhere.csv"}, "does not exist. Write one first")):
        with pytest.raises(Failed) as failed:
            server.run(reviewing("reviewed", **inputs))
        assert told in failed.value.message
