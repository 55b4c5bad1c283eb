"""What a LoRA file tells about its training: to ModelSpec's readers, to LoRA managers, to us."""

from __future__ import annotations

import base64
import io
import json

import pytest
import torch
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.comfy.families.flux1 import FLUX1
from livelora.trainer.data.item import Dataset, Item
from livelora.trainer.lora.file import Lora, load, save
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.metadata import metadata
from PIL import Image
from safetensors import safe_open

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


def test_metadata_tells_the_recipe(tmp_path):
    config = TrainConfig(steps=100, rank=8, alpha=4, learning_rate=2e-4)
    lora = Lora(LORA, metadata(config, dataset(tmp_path), FLUX1, "flux-1-dev/lora", 60))
    path = save(lora, tmp_path, "cat", "fp16", FAMILIES, extra={"workflow": "{}"})
    facts = facts_of(path)
    assert facts["modelspec.title"] == "cat" and facts["modelspec.trigger_phrase"] == "ohwx"
    assert facts["modelspec.usage_hint"] == "Trigger word: ohwx" and facts["workflow"] == "{}"
    assert facts["modelspec.architecture"] == "flux-1-dev/lora" and facts["modelspec.resolution"] == "512x512"
    assert (facts["ss_network_dim"], facts["ss_network_alpha"], facts["ss_steps"]) == ("8", "4", "60")
    assert facts["ss_network_module"] == "networks.lora" and "ss_network_args" not in facts
    assert '"rank": 8' in facts["livelora.recipe"] and len(facts["livelora.dataset"]) == 64
    assert load(path).metadata == facts
    diffusers = facts_of(save(lora, tmp_path, "cat", "fp16", FAMILIES, "diffusers"))
    assert (diffusers["modelspec.implementation"], diffusers["modelspec.title"]) == ("diffusers", "cat_00002")


def test_metadata_counts_images_tags_and_epochs(tmp_path):
    """By hand: 3 + 3 pictures of one shape and 1 of another are 3 + 1 batches of two; 60 steps of 2 are 30 epochs. Tags
    are in lower case and counted once for each picture, as sd-scripts has it."""
    config = TrainConfig(steps=99, extra_steps=1, rank=8, batch_size=2, gradient_accumulation_steps=2)
    facts = metadata(config, dataset(tmp_path), FLUX1, "flux-1-dev/lora", 60)
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
    facts = metadata(config, dataset(tmp_path), FLUX1, "flux-1-dev/lora", 1)
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
    facts = metadata(TrainConfig(steps=1, rank=8, **ours), dataset(tmp_path), FLUX1, "flux-1-dev/lora", 1)
    assert {name: facts.get(name) for name in theirs} == theirs
    assert "" not in facts.values() and all(isinstance(value, str) for value in facts.values())


def test_the_thumbnail_is_a_small_jpeg_of_the_picture(tmp_path):
    Image.new("RGB", (1024, 512), (200, 30, 60)).save(tmp_path / "sample.png")
    facts = metadata(TrainConfig(steps=1, rank=8), dataset(tmp_path), FLUX1, "flux-1-dev/lora", 1,
                     tmp_path / "sample.png")
    kind, _, content = facts["modelspec.thumbnail"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (kind, picture.format, picture.size) == ("data:image/jpeg;base64", "JPEG", (256, 128))
    assert max(abs(a - b) for a, b in zip(picture.getpixel((99, 50)), (200, 30, 60), strict=True)) <= 3
