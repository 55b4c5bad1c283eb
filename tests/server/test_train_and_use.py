"""From a dataset to a picture with the LoRA, in one graph, through a real server."""

from __future__ import annotations

import shutil

import numpy as np
from client import newest_job, pixels, sample
from comfyui import ROOT, Failed
from graphs import drawing, training, with_preview, with_save


def test_one_graph_trains_saves_loads_and_draws(server):
    graph = drawing("flatmoji, red apple", lora=["save", 0])
    graph |= {k: v for k, v in with_save(training(seed=1, steps=30), "in_one_graph").items() if k != "model"}
    outputs = server.run(graph)
    picture = pixels(server, outputs)
    assert picture.shape == (128, 128, 3) and picture.std() > 5
    listed = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    assert "in_one_graph.safetensors" in str(listed)
    assert "lora key not loaded" not in server.log()


def test_the_lora_changes_the_picture_and_strength_zero_does_not(server, draw):
    server.run(with_save(training(seed=2, steps=30), "strong"))
    base, with_lora = draw(server), draw(server, lora="strong.safetensors")
    assert np.abs(base.astype(int) - with_lora).mean() > 1


def test_the_model_output_is_the_model_with_the_lora_at_strength_one(server):
    graph = with_save(training(seed=3, steps=10), "as_output", dtype="fp32")
    graph |= drawing("flatmoji, owl", model=["train", 0])
    direct = pixels(server, server.run(graph))
    loaded = pixels(server, server.run(drawing("flatmoji, owl", lora="as_output.safetensors", prefix="loaded")))
    assert np.array_equal(direct, loaded)


def test_a_preview_is_the_picture_that_ksampler_draws_with_the_saved_lora(server):
    graph = with_save(training(seed=4, steps=10), "previewed", dtype="fp32")
    server.run(with_preview(graph, "flatmoji, sailboat\nflatmoji, owl", every=5))
    job = newest_job(server)
    samples = server.get(f"/livelora/jobs/{job}")["samples"]
    assert samples == [f"step_{step:06}_{i:02}.png" for step in (0, 5, 10) for i in (0, 1)]
    drawn = pixels(server, server.run(drawing("flatmoji, sailboat", lora="previewed.safetensors", prefix="as preview")))
    last, first = (sample(server, job, f"step_{step:06}_00.png") for step in (10, 0))
    assert np.abs(np.asarray(last).astype(int) - drawn).max() <= 1  # SaveImage cuts off, we round
    base = pixels(server, server.run(drawing("flatmoji, sailboat", prefix="base")))
    assert np.abs(np.asarray(first).astype(int) - base).max() <= 1
    assert '"prompt": "flatmoji, sailboat"' in last.text["livelora"]


def test_core_nodes_take_our_lora_and_losses(server):
    graph = training(seed=5, steps=4)
    graph["graph"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 2], "filename_prefix": "loss"}}
    graph["core save"] = {"class_type": "SaveLoRA",
                          "inputs": {"lora": ["train", 1], "prefix": "loras/core", "steps": 4}}
    graph |= {k: v for k, v in drawing("owl", model=["core load", 0]).items() if k != "model"}
    graph["core load"] = {"class_type": "LoraModelLoader", "inputs": {
        "model": ["model", 0], "lora": ["train", 1], "strength_model": 1.0, "bypass": False}}
    outputs = server.run(graph)
    assert pixels(server, outputs, "graph").shape[2] == 3
    assert list((server.base / "output" / "loras").glob("core_4_steps_*.safetensors"))
    assert pixels(server, outputs).shape == (128, 128, 3)
    assert "lora key not loaded" not in server.log()


def test_a_quantized_model_is_trained_on_and_draws_with_the_lora(server):
    graph = training(seed=7, steps=4)
    graph["quantized"] = {"class_type": "LiveLoraQuantize", "inputs": {"model": ["model", 0], "kind": "nf4"}}
    graph["train"]["inputs"]["model"] = ["quantized", 0]
    graph |= {k: v for k, v in drawing("flatmoji, owl", model=["train", 0]).items() if k != "model"}
    graph["told"] = {"class_type": "PreviewAny", "inputs": {"source": ["quantized", 1]}}
    try:
        outputs = server.run(graph)
    except Failed as err:
        assert "needs ComfyUI 0.27 or newer" in err.message
        return
    assert outputs["told"]["text"] == outputs["quantized"]["text"] == ["nf4: 37 MB → 7 MB"]
    assert pixels(server, outputs).std() > 5


def test_the_same_recipe_is_not_trained_twice(server):
    first = server.run(with_save(training(seed=6, steps=5), "once"))
    count = len(server.get("/livelora/jobs"))
    second = server.run(with_save(training(seed=6, steps=5), "twice"))
    assert (first["save"]["text"], second["save"]["text"]) == (["Saved once.safetensors"], ["Saved twice.safetensors"])
    assert len(server.get("/livelora/jobs")) == count


def test_the_held_out_loss_of_an_untrained_lora_is_the_bases(server, tmp_path):
    """Two recipes that share only the base start at the same held-out loss, and leave it in different directions."""
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted((ROOT / "example_workflows" / "demo_dataset").iterdir())[:8]:
        shutil.copy(file, few)
    curves = []
    for seed in (7, 8):
        graph = training(seed=seed, steps=4, validate_every=2)
        graph["held out"] = {"class_type": "LiveLoraDataset", "inputs": graph["data"]["inputs"] | {"folder": str(few)}}
        graph["train"]["inputs"]["validation"] = ["held out", 0]
        server.run(graph)
        curves.append(server.get(f"/livelora/jobs/{newest_job(server)}")["validation"])
    assert [step for step, _ in curves[0]] == [0, 2, 4]
    assert curves[0][0] == curves[1][0] and curves[0][2] != curves[1][2]
