"""Every way to bring images and captions, through a real server and ComfyUI's own dataset nodes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from client import pixels
from comfyui import ROOT, Failed, Refused, Server
from graphs import training
from PIL import Image

DEMO = ROOT / "example_workflows" / "demo_dataset"


@pytest.fixture
def few(server: Server):
    """Four pictures of the demo in a folder under ComfyUI's input."""
    folder = server.base / "input" / "few"
    if not folder.exists():
        folder.mkdir()
        for picture in sorted(DEMO.glob("*.png"))[:4]:
            for path in (picture, picture.with_suffix(".txt")):
                shutil.copy(path, folder)
    return folder


def from_images(seed: int, **inputs) -> dict:
    """Core's folder of images and texts, through LoRA Dataset from Images, into a training."""
    graph = training(seed=seed, steps=3)
    graph["pairs"] = {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "few"}}
    graph["data"] = {"class_type": "LiveLoraDatasetFromImages", "inputs": {
        "images": ["pairs", 0], "captions": ["pairs", 1], "resolution": 128, "trigger_word": "flatmoji",
        "missing_captions": "refuse", **inputs}}
    return graph


def jobs(server: Server) -> list[dict]:
    return server.get("/livelora/jobs")


def test_cores_images_and_texts_are_trained(server, few):
    outputs = server.run(from_images(seed=900))
    assert "4 images in" in outputs["data"]["text"][0]
    job = server.get(f"/livelora/jobs/{jobs(server)[-1]['job']}")
    assert (job["state"], job["images"]) == ("done", 4)


def test_masks_views_and_several_resolutions_of_a_graph_are_trained(server, few):
    """Four images at two sizes each, which no other test trains, mirrored and recoloured as well: 2 × 4 × 4 latents."""
    graph = from_images(seed=907, resolution=96, more_resolutions="64", flip_aug=True, color_aug=True, upscale=False,
                        masks=["mask", 0])
    graph["mask"] = {"class_type": "ImageToMask", "inputs": {"image": ["pairs", 0], "channel": "red"}}
    encoded = server.base / "user" / "default" / "livelora" / "cache" / "encoded"
    known = {*encoded.rglob("*.safetensors")}
    outputs = server.run(graph)
    report = outputs["data"]["text"][0]
    assert "4 images in" in report and "at several resolutions 8" in report and "4 with masks" in report
    assert jobs(server)[-1]["state"] == "done"
    latents = [path for path in {*encoded.rglob("*.safetensors")} - known if b'"latents"' in path.read_bytes()[:200]]
    assert len(latents) == 32
    graph["data"]["inputs"]["more_resolutions"] = "64, large"
    with pytest.raises(Failed, match="more_resolutions must be numbers from 64 to 2048 .* got 'large'"):
        server.run(graph)


def test_cores_latents_and_conditioning_are_trained(server, few):
    graph = from_images(seed=901)
    graph["encoded"] = {"class_type": "MakeTrainingDataset", "inputs": {
        "images": ["pairs", 0], "texts": ["pairs", 1], "vae": ["model", 2], "clip": ["model", 1]}}
    graph["buckets"] = {"class_type": "ResolutionBucket", "inputs": {"latents": ["encoded", 0],
                                                                     "conditioning": ["encoded", 1]}}
    for origin in ("encoded", "buckets"):
        graph["data"]["inputs"] = {"latents": [origin, 0], "conditioning": [origin, 1], "resolution": 128,
                                   "trigger_word": "flatmoji", "missing_captions": "refuse"}
        server.run(graph)
        job = server.get(f"/livelora/jobs/{jobs(server)[-1]['job']}")
        assert (job["state"], job["images"]) == ("done", 4)


def test_a_zip_a_table_and_a_configuration_are_the_same_dataset(server, few, tmp_path):
    """The same pictures and captions are the same training, so the same job is found again."""
    graph = training(seed=902, steps=3)
    graph["data"]["inputs"] |= {"folder": "few"}
    server.run(graph)
    known = [job["job"] for job in jobs(server)]
    table = tmp_path / "table"
    table.mkdir()
    lines = []
    for picture in sorted(few.glob("*.png")):
        shutil.copy(picture, table)
        lines.append(json.dumps({"file_name": picture.name,
                                 "text": picture.with_suffix(".txt").read_text(encoding="utf-8").strip()}))
    (table / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shutil.make_archive(str(tmp_path / "few"), "zip", few)
    for source in (tmp_path / "few.zip", table):
        graph["data"]["inputs"]["folder"] = str(source)
        outputs = server.run(graph)
        assert "4 images in" in outputs["data"]["text"][0]
        assert [job["job"] for job in jobs(server)] == known
    toml = tmp_path / "dataset.toml"
    toml.write_text("[general]\nenable_bucket = true\nmin_bucket_reso = 64\n"
                    "[[datasets]]\nresolution = 128\n[[datasets.subsets]]\n"
                    f"image_dir = {str(few)!r}\nnum_repeats = 3\ncaption_extension = '.txt'\n", encoding="utf-8")
    graph["data"]["inputs"]["folder"] = str(toml)
    outputs = server.run(graph)
    assert "12 with repeats" in outputs["data"]["text"][0]
    assert len(jobs(server)) == len(known) + 1


def test_captions_are_not_written_beside_copies(server, few, tmp_path):
    """They would be lost with the next unpacking."""
    shutil.make_archive(str(tmp_path / "few"), "zip", few)
    graph = {"data": training(seed=0)["data"], "captions": {"class_type": "LiveLoraCaption", "inputs": {
        "dataset": ["data", 0], "template": "{trigger}, {caption}, new", "which": "all", "write_files": True}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["captions", 1]}}}
    graph["data"]["inputs"] |= {"folder": str(tmp_path / "few.zip")}
    with pytest.raises(Failed, match="copies that LiveLoRA made"):
        server.run(graph)
    graph["captions"]["inputs"]["write_files"] = False
    assert "4 of 4 captions changed in memory only" in server.run(graph)["show"]["text"][0]


def test_a_mistake_in_a_configuration_is_refused_before_anything_runs(server, few, tmp_path):
    toml = tmp_path / "dataset.toml"
    toml.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = {str(few)!r}\nnum_repeat = 3\n")
    graph = training(seed=903, steps=3)
    graph["data"]["inputs"] |= {"folder": str(toml)}
    with pytest.raises(Refused, match="num_repeat"):
        server.queue(graph)


def test_the_report_is_text_json_and_two_pictures(server, few):
    Image.new("RGB", (40, 200), "red").save(few / "tiny.png")
    (few / "tiny.txt").write_text("a red bar")
    try:
        graph = {"model": {"class_type": "LiveLoraDemoModel", "inputs": {}},
                 "data": {"class_type": "LiveLoraDataset", "inputs": {
                     "folder": "few", "resolution": 128, "trigger_word": "flatmoji", "missing_captions": "refuse",
                     "bad_images": "refuse", "clip": ["model", 1]}},
                 "json": {"class_type": "PreviewAny", "inputs": {"source": ["data", 2]}},
                 "report": {"class_type": "SaveImage", "inputs": {"images": ["data", 3], "filename_prefix": "report"}},
                 "sheet": {"class_type": "SaveImage", "inputs": {"images": ["data", 4], "filename_prefix": "sheet"}}}
        outputs = server.run(graph)
    finally:
        (few / "tiny.png").unlink()
        (few / "tiny.txt").unlink()
    report = json.loads(outputs["json"]["text"][0])
    kinds = {finding["kind"]: finding for finding in report["findings"]}
    assert any("tiny.png" in str(finding["files"]) for finding in kinds.values())
    assert all(finding["advice"] for finding in kinds.values())
    for node in ("report", "sheet"):
        picture = pixels(server, outputs, node)
        assert min(picture.shape[:2]) > 100 and picture.std() > 5


def test_a_second_job_encodes_nothing_again(server, few):
    graph = training(seed=904, steps=2)
    graph["data"]["inputs"] |= {"folder": "few"}
    server.run(graph)
    encoded = server.base / "user" / "default" / "livelora" / "cache" / "encoded"
    before = {path: path.stat().st_ino for path in encoded.rglob("*.safetensors")}
    assert len(before) >= 8
    graph["train"]["inputs"]["seed"] = 905
    server.run(graph)
    assert {path: path.stat().st_ino for path in encoded.rglob("*.safetensors")} == before


def test_an_image_batch_of_a_graph_is_trained_as_it_is_drawn(server, few):
    """No captions: the trigger word alone."""
    graph = from_images(seed=906, missing_captions="use the trigger word")
    del graph["data"]["inputs"]["captions"]
    outputs = server.run(graph)
    [sheet] = outputs["data"]["images"]
    assert np.asarray(Image.open(server.base / "temp" / sheet["filename"])).std() > 5
    assert jobs(server)[-1]["state"] == "done"
