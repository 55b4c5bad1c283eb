"""LoRA files: names, metadata, and a disk that does not take them."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.lora import file as export
from livelora.trainer.recipe.config import TrainConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LAYER = "diffusion_model.single_blocks.0.linear2"
LORA = {f"{LAYER}.lora_A.weight": torch.randn(2, 3), f"{LAYER}.lora_B.weight": torch.randn(4, 2),
        f"{LAYER}.alpha": torch.tensor(22.627)}


def dataset(tmp_path):
    a = Item(tmp_path / "3_cat" / "a.png", "ohwx, Cat", 3, (10, 10), (16, 16), "0" * 64)
    b = Item(tmp_path / "3_cat" / "b.png", "cat,, a hat", 3, (10, 10), (16, 16), "1" * 64)
    c = Item(tmp_path / "1_dog" / "c.png", "ohwx", 1, (10, 10), (32, 16), "2" * 64)
    return Dataset(tmp_path, 512, "ohwx", (a, b, c))


def facts_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_name_is_never_used_twice(tmp_path):
    paths = [export.save(LORA, tmp_path / "loras", "cat", "fp32") for _ in range(3)]
    assert [p.name for p in paths] == ["cat.safetensors", "cat_00002.safetensors", "cat_00003.safetensors"]
    assert load_file(paths[0])[f"{LAYER}.lora_A.weight"].equal(LORA[f"{LAYER}.lora_A.weight"])


@pytest.mark.parametrize(("dtype", "kind"),
                         [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_numbers_in_the_file(tmp_path, dtype, kind):
    """Matrices as asked for. What scales them stays exact: fp16 would make 22.625 of the alpha, bf16 22.625 too."""
    scales = {f"{LAYER}.dora_scale": torch.rand(4, 1)}
    saved = load_file(export.save(LORA | scales, tmp_path, "cat", dtype))
    assert {t.dtype for name, t in saved.items() if name.endswith(".weight")} == {kind}
    assert saved[f"{LAYER}.alpha"].item() == pytest.approx(22.627, abs=1e-6)
    assert saved[f"{LAYER}.dora_scale"].equal(scales[f"{LAYER}.dora_scale"])


@pytest.mark.parametrize("name", ["../cat", "a/b", "a\\b", "..", "c:cat", "", "  ", " cat", ".hidden", "cat?", "a\nb",
                                  "con", "COM1.v2", "Aux"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        export.save(LORA, tmp_path, name, "fp16")
    assert list(tmp_path.iterdir()) == []


def test_metadata_tells_the_recipe(tmp_path):
    config = TrainConfig(steps=100, rank=8, alpha=4, learning_rate=2e-4)
    lora = export.Lora(LORA, export.metadata(config, dataset(tmp_path), "FLUX.1", 60))
    path = export.save(lora, tmp_path, "cat", "fp16", extra={"workflow": "{}"})
    facts = facts_of(path)
    assert facts["modelspec.title"] == "cat" and facts["modelspec.trigger_phrase"] == "ohwx"
    assert facts["modelspec.usage_hint"] == "Trigger word: ohwx" and facts["workflow"] == "{}"
    assert facts["modelspec.architecture"] == "flux-1-dev/lora" and facts["modelspec.resolution"] == "512x512"
    assert (facts["ss_network_dim"], facts["ss_network_alpha"], facts["ss_steps"]) == ("8", "4", "60")
    assert facts["ss_network_module"] == "networks.lora" and "ss_network_args" not in facts
    assert '"rank": 8' in facts["livelora.recipe"] and len(facts["livelora.dataset"]) == 64
    assert export.load(path).metadata == facts
    diffusers = facts_of(export.save(lora, tmp_path, "cat", "fp16", "diffusers"))
    assert (diffusers["modelspec.implementation"], diffusers["modelspec.title"]) == ("diffusers", "cat_00002")


def test_metadata_counts_images_tags_and_epochs(tmp_path):
    """By hand: 3 + 3 pictures of one shape and 1 of another are 3 + 1 batches of two; 60 steps of 2 are 30 epochs. Tags
    are in lower case and counted once for each picture, as sd-scripts has it."""
    config = TrainConfig(steps=99, extra_steps=1, rank=8, batch_size=2, gradient_accumulation_steps=2)
    facts = export.metadata(config, dataset(tmp_path), "FLUX.1", 60)
    assert json.loads(facts["ss_tag_frequency"]) == {"3_cat": {"ohwx": 1, "cat": 2, "a hat": 1}, "1_dog": {"ohwx": 1}}
    assert json.loads(facts["ss_dataset_dirs"]) == {"3_cat": {"n_repeats": 3, "img_count": 2},
                                                    "1_dog": {"n_repeats": 1, "img_count": 1}}
    assert (facts["ss_num_train_images"], facts["ss_num_batches_per_epoch"]) == ("7", "4")
    assert (facts["ss_epoch"], facts["ss_num_epochs"], facts["ss_max_train_steps"]) == ("30", "50", "100")


@pytest.mark.parametrize(("adapter", "module", "arguments"), [
    ("rsLoRA", "lycoris.kohya", {"algo": "lora", "rs_lora": "True"}),
    ("DoRA", "lycoris.kohya", {"algo": "lora", "dora_wd": "True"}),
    ("LoHa", "lycoris.kohya", {"algo": "loha"}),
    ("LoKr", "lycoris.kohya", {"algo": "lokr", "factor": "8"}),
    ("OFT", "lycoris.kohya", {"algo": "diag-oft"}),
])
def test_other_adapters_go_by_their_names_in_lycoris(tmp_path, adapter, module, arguments):
    """Names of LyCORIS 3.2's `network_args`."""
    config = TrainConfig(steps=1, rank=8, adapter=adapter, lokr_factor=8 if adapter == "LoKr" else -1)
    facts = export.metadata(config, dataset(tmp_path), "FLUX.1", 1)
    assert (facts["ss_network_module"], json.loads(facts["ss_network_args"])) == (module, arguments)


@pytest.mark.parametrize(("ours", "theirs"), [
    ({}, {"ss_timestep_sampling": "sigmoid", "ss_sigmoid_scale": "1.0", "ss_weighting_scheme": "none"}),
    ({"timestep_sampling": "uniform"}, {"ss_timestep_sampling": "uniform"}),
    ({"timestep_sampling": "resolution_shift"}, {"ss_timestep_sampling": "flux_shift"}),
    ({"timestep_sampling": "fixed_shift", "timestep_shift": 3.0},
     {"ss_timestep_sampling": "shift", "ss_discrete_flow_shift": "3.0"}),
    ({"timestep_sampling": "logit_normal", "timestep_mean": 0.5, "timestep_std": 2.0},
     {"ss_timestep_sampling": "sigma", "ss_weighting_scheme": "logit_normal", "ss_logit_mean": "-0.5",
      "ss_logit_std": "2.0"}),
    ({"loss": "huber", "huber_c": 0.2}, {"ss_loss_type": "huber", "ss_huber_c": "0.2"}),
    ({"guidance": 3.5}, {"ss_guidance_scale": "3.5", "ss_model_prediction_type": "raw", "ss_loss_type": "l2"}),
    ({"erase": True, "learning_rate": -1e-4}, {"ss_learning_rate": "-0.0001"}),
])
def test_the_objective_is_told_in_the_words_of_sd_scripts(tmp_path, ours, theirs):
    """Of its `flux_train_utils.get_noisy_model_input_and_timesteps` and `train_network.py`."""
    facts = export.metadata(TrainConfig(steps=1, rank=8, **ours), dataset(tmp_path), "FLUX.1", 1)
    assert {name: facts.get(name) for name in theirs} == theirs
    assert "" not in facts.values() and all(isinstance(value, str) for value in facts.values())


def test_the_thumbnail_is_a_small_jpeg_of_the_picture(tmp_path):
    Image.new("RGB", (1024, 512), (200, 30, 60)).save(tmp_path / "sample.png")
    facts = export.metadata(TrainConfig(steps=1, rank=8), dataset(tmp_path), "FLUX.1", 1, tmp_path / "sample.png")
    kind, _, content = facts["modelspec.thumbnail"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (kind, picture.format, picture.size) == ("data:image/jpeg;base64", "JPEG", (256, 128))
    assert max(abs(a - b) for a, b in zip(picture.getpixel((99, 50)), (200, 30, 60), strict=True)) <= 3


def test_hashes_are_those_of_the_file(tmp_path):
    """sd-scripts' `precalculate_safetensors_hashes`, done to the files: the tensors of the one that was written, and 64
    KiB at 1 MiB of one that has only the ss_* keys in its header."""
    lora = {f"{LAYER}.lora_A.weight": torch.randn(64, 3000), f"{LAYER}.lora_B.weight": torch.randn(3000, 64)}
    path = export.save(export.Lora(lora, {"ss_steps": "5", "livelora.recipe": "{}"}), tmp_path, "cat", "fp32")
    facts, content = facts_of(path), path.read_bytes()
    tensors = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little"):]).hexdigest()
    assert (facts["sshs_model_hash"], facts["modelspec.hash_sha256"]) == (tensors, "0x" + tensors)
    save_file(load_file(path), tmp_path / "bare.safetensors", {"ss_steps": "5", "ss_output_name": "cat"})
    bare = (tmp_path / "bare.safetensors").read_bytes()
    assert facts["sshs_legacy_hash"] == hashlib.sha256(bare[2**20:2**20 + 2**16]).hexdigest()[:8]
    assert len(bare) > 2**20 + 2**16


def test_a_format_that_cannot_hold_it_is_refused_before_anything_is_written(tmp_path):
    loha = {f"{LAYER}.{name}": torch.zeros(2, 2) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    with pytest.raises(ValueError, match="LoHa cannot be saved in the format 'diffusers'.*Choose the format ComfyUI"):
        export.save(loha, tmp_path / "loras", "cat", "fp16", "diffusers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_file_that_was_read_can_be_replaced_on_windows(tmp_path):
    """There not while it is mapped into memory."""
    save_file(LORA, tmp_path / "a.safetensors")
    lora = export.load(tmp_path / "a.safetensors")
    assert lora.keys() == LORA.keys()
    assert "a.safetensors" not in Path("/proc/self/maps").read_text()


def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # stands for a full disk
    with pytest.raises(OSError, match="could not be written to .*No space left on device.*Free some space"):
        export.save(LORA, tmp_path, "cat", "fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file permissions are checked as another user, by fork")
def test_a_read_only_folder_is_reported(tmp_path):
    """Root may write anywhere, so a child process becomes nobody first."""
    folder = tmp_path / "loras"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o755)
    reader, writer = os.pipe()
    if os.fork() == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            export.save(LORA, folder, "cat", "fp16")
            os.write(writer, b"written")
        except OSError as err:
            os.write(writer, str(err).encode())
        os._exit(0)
    os.wait()
    told = os.read(reader, 1000).decode()
    assert "could not be written to" in told and "Permission denied" in told and "allow writing" in told
    assert list(folder.iterdir()) == []
