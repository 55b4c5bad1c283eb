"""The Captioner in a real ComfyUI: its own text generation, a trained tagger, a folder of transformers."""

from __future__ import annotations

import shutil
import time

import pytest
import real_tagger
import tiny_vision
from comfyui import ROOT, Failed, Server

PHOTOS = ["chelsea.png", "coffee.png", "camera.png"]
ASKING = {"engine.preset": "general", "engine.prompt": "", "engine.seed": 0, "engine.max_length": 16,
          "engine.max_side": 64}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    base = tmp_path_factory.mktemp("seeing")
    server = Server(base)
    (base / "custom_nodes" / "seer").symlink_to(ROOT / "tests" / "support" / "seer", target_is_directory=True)
    with server:
        yield server


@pytest.fixture
def photos(tmp_path):
    """Three photographs, of which the last has a caption."""
    for name in PHOTOS:
        shutil.copy(real_tagger.PHOTOS / name, tmp_path)
    (tmp_path / "camera.txt").write_text("a man at work\n")
    return tmp_path


def captioning(folder, engine: str, which: str = "missing only", write_files: bool = True, **more) -> dict:
    return {
        "data": {"class_type": "LiveLoraDataset", "inputs": {
            "folder": str(folder), "resolution": 128, "trigger_word": "ohwx", "bad_images": "refuse",
            "missing_captions": "use the trigger word"}},
        "seer": {"class_type": "TestSeer", "inputs": {}},
        "captioner": {"class_type": "LiveLoraCaption", "inputs": {
            "dataset": ["data", 0], "template": "{trigger}, {caption}", "which": which, "write_files": write_files,
            "engine": engine, **more}},
        "loaded": {"class_type": "TestLoaded", "inputs": {"after": ["captioner", 0]}}}


def by_text_model(folder, **more) -> dict:
    return captioning(folder, "ComfyUI text model", **{**ASKING, "engine.clip": ["seer", 0], **more})


def texts(folder) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in folder.glob("*.txt")}


def report(outputs: dict) -> str:
    [text] = outputs["captioner"]["text"]
    return text


def test_comfyuis_own_text_generation_writes_the_captions_and_is_unloaded(seeing, photos):
    outputs = seeing.run(by_text_model(photos))
    found = texts(photos)
    assert found["camera.txt"] == "a man at work"
    assert found["chelsea.txt"].startswith("ohwx, ") and len(found["chelsea.txt"]) > 10
    assert found["chelsea.txt"] != found["coffee.txt"]
    assert report(outputs).startswith("2 of 3 captions written to disk\nchelsea.png: “” → “ohwx, ")
    assert "Qwen" not in outputs["loaded"]["text"][0]


def test_a_dry_run_writes_nothing(seeing, photos):
    outputs = seeing.run(by_text_model(photos, which="all", write_files=False))
    assert texts(photos) == {"camera.txt": "a man at work"}
    assert report(outputs).startswith("3 of 3 captions changed in memory only (dry run)")


def test_an_interrupted_run_keeps_what_is_done_and_the_next_goes_on_there(seeing, photos):
    undisturbed = photos / "again"
    undisturbed.mkdir()
    for name in PHOTOS:
        shutil.move(photos / name, undisturbed)
    shutil.copytree(undisturbed, photos / "first")
    graph = by_text_model(photos / "first", which="all", **{"engine.max_length": 120})
    prompt = seeing.queue(graph)
    end = time.monotonic() + 120
    while not texts(photos / "first"):
        assert time.monotonic() < end
        time.sleep(0.02)
    seeing.post("/interrupt", {})
    with pytest.raises(Failed, match="interrupted"):
        seeing.result(prompt)
    kept = texts(photos / "first")
    assert 1 <= len(kept) < 3
    [journal] = (seeing.base / "user" / "default" / "livelora" / "cache" / "captioning").glob("*.jsonl")
    assert len(journal.read_text().split()) >= len(kept)

    before = {name: (photos / "first" / name).stat().st_mtime_ns for name in kept}
    seeing.run(graph)
    assert {name: (photos / "first" / name).stat().st_mtime_ns for name in kept} == before
    assert not journal.exists()
    seeing.run(by_text_model(undisturbed, which="all", **{"engine.max_length": 120}))
    assert texts(photos / "first") == texts(undisturbed)


def test_a_text_encoder_that_cannot_see_is_refused(seeing, photos):
    graph = by_text_model(photos, **{"engine.clip": ["model", 1]})
    graph["model"] = {"class_type": "LiveLoraDemoModel", "inputs": {}}
    with pytest.raises(Failed, match="cannot write text and cannot see pictures. Load a vision-language one"):
        seeing.run(graph)


def test_a_tagger_tags(seeing, photos, tmp_path_factory):
    file = real_tagger.save(tmp_path_factory.mktemp("tagger"))
    seeing.run(captioning(photos, "tagger", which="append", replace="tripod → camera on a tripod", banned="cup", **{
        "engine.file": str(file), "engine.threshold": 0.1, "engine.character_threshold": 0.85}))
    assert texts(photos) == {"chelsea.txt": "ohwx, Egyptian cat", "coffee.txt": "ohwx, espresso",
                             "camera.txt": "a man at work, camera on a tripod"}


def test_a_folder_of_transformers_writes(seeing, photos, tmp_path_factory):
    folder = tiny_vision.save_llava(tmp_path_factory.mktemp("llava"))
    outputs = seeing.run(captioning(photos, "vision-language folder", **{**ASKING, "engine.folder": str(folder)}))
    assert report(outputs).startswith("2 of 3 captions written to disk")
    assert len({*texts(photos).values()}) == 3


def test_a_hubs_name_is_no_folder(seeing, photos):
    graph = captioning(photos, "vision-language folder", **{**ASKING, "engine.folder": "microsoft/Florence-2-large"})
    with pytest.raises(Failed, match="folder must be the absolute path of a vision-language model's folder"):
        seeing.run(graph)


def test_a_graph_from_before_there_were_engines_still_runs(seeing, photos):
    graph = captioning(photos, "template", which="all", template="photo of {trigger}, {caption}")
    del graph["captioner"]["inputs"]["engine"]
    outputs = seeing.run(graph)
    assert texts(photos)["camera.txt"] == "photo of ohwx, a man at work"
    assert report(outputs).startswith("3 of 3 captions written to disk")
