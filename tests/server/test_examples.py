"""Every example workflow loads and runs, and says which pack it needs."""

from __future__ import annotations

import json
import shutil

import pytest
from client import pixels
from comfyui import ROOT

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def shortened(graph: dict) -> dict:
    """The same graph with a few steps of training."""
    for node in graph.values():
        if node["class_type"] == "LiveLoraTrain":
            node["inputs"] |= {"preset.steps": 3, "batch_size": 1}
        if node["class_type"] == "LiveLoraPreview":
            node["inputs"] |= {"every_n_steps": 3, "sampler_steps": 2, "width": 64, "height": 64}
    return graph


def test_there_are_three():
    assert [p.stem for p in EXAMPLES] == ["1 Train your first LoRA (demo, no downloads)", "2 Train a Flux LoRA",
                                          "3 Train, then use it"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_it_names_its_packs_and_has_a_thumbnail(path):
    workflow = load(path)
    assert workflow["version"] == 0.4
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        ours = node["type"].startswith("LiveLora")
        assert node["properties"]["cnr_id"] == ("livelora" if ours else "comfy-core")
        assert node["properties"]["ver"] and node["properties"]["Node name for S&R"] == node["type"]
        assert "livelora_job" not in node["properties"]
    assert path.with_suffix(".jpg").stat().st_size > 5000


def test_train_your_first_lora_runs(server):
    graph = shortened(server.to_api(load(EXAMPLES[0])))
    assert len(graph) == 5
    outputs = server.run(graph)
    [saved] = [n for n, node in graph.items() if node["class_type"] == "LiveLoraSave"]
    assert outputs[saved]["text"][0].startswith("Saved flatmoji")


def test_train_then_use_it_runs(server):
    graph = shortened(server.to_api(load(EXAMPLES[2])))
    outputs = server.run(graph)
    [image] = [n for n, node in graph.items() if node["class_type"] == "SaveImage"]
    assert pixels(server, outputs, image).shape == (128, 128, 3)


def test_train_a_flux_lora_runs_with_files_of_our_own(server):
    """Load Diffusion Model and Load VAE read the demo's weights from the models folder, as they would FLUX.1-dev's. For
    the text encoders the demo node stands in: DualCLIPLoader knows only the full sizes, 10 GB."""
    weights, models = ROOT / "nodes" / "demo_weights", server.base / "models"
    shutil.copy(weights / "transformer.safetensors", models / "diffusion_models" / "flux1-dev.safetensors")
    shutil.copy(weights / "vae.safetensors", models / "vae" / "ae.safetensors")
    folder = server.base / "input" / "my_images"
    folder.mkdir(exist_ok=True)
    for file in sorted((ROOT / "example_workflows" / "demo_dataset").iterdir())[:6]:
        shutil.copy(file, folder)
    graph = shortened(server.to_api(load(EXAMPLES[1])))
    [clip] = [n for n, node in graph.items() if node["class_type"] == "DualCLIPLoader"]
    graph[clip] = {"class_type": "LiveLoraDemoModel", "inputs": {}}
    for node in graph.values():
        for name, value in node["inputs"].items():
            if value == [clip, 0]:
                node["inputs"][name] = [clip, 1]
        if node["class_type"] == "LiveLoraDataset":
            node["inputs"]["resolution"] = 128
    outputs = server.run(graph)
    [saved] = [n for n, node in graph.items() if node["class_type"] == "LiveLoraSave"]
    assert outputs[saved]["text"][0].startswith("Saved my_character")
    assert "lora key not loaded" not in server.log()
