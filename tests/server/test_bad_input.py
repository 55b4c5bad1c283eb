"""Bad input gets one clear error, before a model is loaded to its device, and nothing is lost."""

from __future__ import annotations

import urllib.error

import pytest
from comfyui import Failed, Refused
from graphs import training, with_preview, with_save
from other_models import save_pixart, save_taesd
from PIL import Image


def refusal(server, graph) -> str:
    """What the server answers to a prompt that it does not even start. There is one error, in one place."""
    with pytest.raises(Refused) as caught:
        server.queue(graph)
    [entry] = caught.value.errors["node_errors"].values()
    [error] = entry["errors"]
    return f"{error['message']}: {error['details']}"


def failure(server, graph) -> str:
    """What a person reads when a prompt fails; no model was moved meanwhile."""
    before = server.log().count("Requested to load")
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert server.log().count("Requested to load") == before
    return caught.value.message


def dataset(seed: int, **changes) -> dict:
    graph = training(seed)
    graph["data"]["inputs"] |= changes
    return graph


@pytest.fixture
def folder(server, tmp_path):
    for name in "ab":
        Image.new("RGB", (64, 64), name == "a" and "red" or "blue").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("ohwx, a square")
    return tmp_path


def test_missing_folder(server):
    told = refusal(server, dataset(40, folder="nowhere"))
    assert "The dataset folder" in told and "nowhere' does not exist. Choose a folder" in told


def test_empty_folder(server, tmp_path):
    assert "(it is empty)" in refusal(server, dataset(40, folder=str(tmp_path)))


def test_a_folder_that_leads_out_of_input(server):
    assert "leads out of ComfyUI's input folder" in refusal(server, dataset(40, folder="../models"))


def test_no_captions(server, folder):
    """LoRA Train refuses; LoRA Dataset Loader shows what there is, and LoRA Captioner mends it."""
    (folder / "b.txt").unlink()
    with pytest.raises(Failed) as caught:
        server.run(dataset(40, folder=str(folder)))
    told = caught.value.message
    assert (f"1 of 2 images in '{folder}' has no caption: b.png. Write one .txt file for each image (b.png → b.txt), "
            "let LoRA Captioner write them, or set missing_captions to 'use the trigger word'.") in told
    looking = {"data": dataset(40, folder=str(folder))["data"], "captions": {
        "class_type": "LiveLoraCaption", "inputs": {"dataset": ["data", 0], "template": "{trigger}, {name}",
                                                    "which": "missing only", "write_files": True}}}
    shown = server.run(looking)
    assert "• 1 without a caption, which LoRA Train refuses: b.png." in shown["data"]["text"][0]
    assert shown["data"]["images"] and shown["captions"]["text"] == ["1 of 2 captions written to disk\n"
                                                                     "b.png: “” → “flatmoji, b”"]
    (folder / "b.txt").unlink()
    graph = dataset(40, folder=str(folder), missing_captions="use the trigger word", trigger_word="ohwx")
    graph["train"]["inputs"]["preset.steps"] = 1
    server.run(graph)


def test_a_truncated_image(server, folder):
    path = folder / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    assert "a.png cannot be read as a picture" in failure(server, dataset(40, folder=str(folder)))
    graph = dataset(41, folder=str(folder), bad_images="skip")
    graph["train"]["inputs"]["preset.steps"] = 1
    told = server.run(graph)["data"]
    assert "Skipped: a.png cannot be read" in told["text"][0]
    assert {"Skipped: a.png", "• only 1 differ"} <= {line[:15].strip() for line in told["warnings"]}, "shown first"
    assert {*told["warnings"]} < {*told["text"][0].splitlines()}


def test_a_caption_that_is_not_utf8(server, folder):
    (folder / "a.txt").write_bytes(b"caf\xe9")
    assert "a.txt is not UTF-8 text" in failure(server, dataset(40, folder=str(folder)))


def test_a_preset_that_is_no_option(server):
    told = refusal(server, training(40) | {"train": {**(train := training(40)["train"]), "inputs": {
        **train["inputs"], "preset": "portrait"}}})
    assert "preset must be one of character, style, concept. Choose one in the node" in told


@pytest.mark.parametrize(("node", "inputs", "told"), [
    ("LiveLoraLive", {"which": "latest", "strength": 1.0}, "which must be one of newest, best, step."),
    ("LiveLoraGrid", {"columns": "prompts", "labels": True}, "columns must be one of steps, strengths."),
])
def test_a_choice_of_a_job_that_is_no_option(server, node, inputs, told):
    graph = {"model": training(40)["model"], "image": {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}},
             "node": {"class_type": node, "inputs": {"model": ["model", 0], "job": "newest", **inputs}}}
    assert told in refusal(server, graph)


def test_an_engine_that_is_no_option(server):
    """It was taken for the template, and rewrote the captions."""
    graph = training(40)
    graph["captioner"] = {"class_type": "LiveLoraCaption", "inputs": {
        "dataset": ["data", 0], "template": "{caption}", "which": "all", "write_files": False, "engine": "WD14"}}
    graph["train"]["inputs"]["dataset"] = ["captioner", 0]
    assert ("engine must be one of ComfyUI text model, vision-language folder, tagger, template, got 'WD14'."
            in failure(server, graph))


@pytest.mark.parametrize(("change", "told"), [
    ({"rank": 0}, "Value 0 smaller than min of 1: preset.rank"),
    ({"steps": 0}, "Value 0 smaller than min of 1: preset.steps"),
    ({"batch_size": 0}, "Value 0 smaller than min of 1: batch_size"),
])
def test_values_out_of_range(server, change, told):
    assert told in refusal(server, training(40, **change))


def test_a_recipe_that_contradicts_itself(server):
    told = failure(server, training(40, steps=5, lr_warmup_steps=9))
    assert "lr_warmup_steps (9) is longer than the run (5 steps)" in told


@pytest.mark.parametrize("mode", ["wait", "background"])
def test_a_recipe_that_no_layer_of_the_model_fits(server, mode):
    """Nothing is encoded, and there is no job of it."""
    jobs = server.get("/livelora/jobs")
    told = failure(server, training(40, mode=mode, target_regex="nothing"))
    assert told.startswith("No layer of this model is trained: 'nothing'") and "learned" not in told
    assert server.get("/livelora/jobs") == jobs


@pytest.mark.parametrize("name", ["../evil", "a/../b", "..", "", "C:\\x"])
def test_a_name_that_is_no_file_name(server, name):
    assert "name" in refusal(server, with_save(training(40), name))


def test_a_template_with_an_unknown_placeholder(server):
    graph = training(40)
    graph["captioner"] = {"class_type": "LiveLoraCaption", "inputs": {
        "dataset": ["data", 0], "template": "{triger}", "which": "all", "write_files": False}}
    graph["train"]["inputs"]["dataset"] = ["captioner", 0]
    assert "unknown placeholders: {triger}" in refusal(server, graph)


def test_previews_without_prompts(server):
    assert "has no prompts" in refusal(server, with_preview(training(40), "  \n ", every=5))


def test_a_model_of_another_family(server):
    save_pixart(server.base / "models" / "diffusion_models" / "other.safetensors")
    graph = training(40)
    graph["other"] = {"class_type": "UNETLoader",
                      "inputs": {"unet_name": "other.safetensors", "weight_dtype": "default"}}
    graph["train"]["inputs"]["model"] = ["other", 0]
    told = failure(server, graph)
    assert "LoRA Train trains FLUX.1 models, this one is PixArt (EPS). Load a FLUX.1 model" in told


def test_a_vae_of_another_family(server):
    save_taesd(server.base / "models" / "vae" / "sd.safetensors", latent_channels=4)
    graph = training(40)
    graph["other"] = {"class_type": "VAELoader", "inputs": {"vae_name": "sd.safetensors"}}
    graph["train"]["inputs"]["vae"] = ["other", 0]
    assert "vae: FLUX.1 needs its own VAE with 16 latent channels, this one has 4" in failure(server, graph)


def test_a_loras_folder_that_cannot_be_written(server):
    """A file stands where the folder should be; the LoRA stays with the job and a second try saves it."""
    graph = with_save(training(42, steps=2), "second_try")
    folder = server.base / "models" / "loras"
    moved = folder.rename(folder.with_name("loras_moved"))
    folder.write_text("in the way")
    try:
        with pytest.raises(Failed) as caught:
            server.run(graph)
    finally:
        folder.unlink()
        moved.rename(folder)
    assert "The LoRA could not be written to" in caught.value.message
    assert "Free some space there or allow writing, then queue again." in caught.value.message
    count = len(server.get("/livelora/jobs"))
    assert server.run(graph)["save"]["text"] == ["Saved second_try.safetensors"]
    assert len(server.get("/livelora/jobs")) == count


def test_unknown_jobs_and_samples(server):
    for path in ("/livelora/jobs/nothing", "/livelora/jobs/nothing/samples/x.png"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.get(path)
