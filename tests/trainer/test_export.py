"""LoRA files: names, metadata, and a disk that does not take them."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from livelora.trainer import export
from livelora.trainer.config import TrainConfig
from livelora.trainer.data.dataset import Dataset, Item
from safetensors import safe_open
from safetensors.torch import load_file

LORA = {"diffusion_model.x.lora_A.weight": torch.randn(2, 3), "diffusion_model.x.alpha": torch.tensor(2.0)}


def dataset(tmp_path):
    item = Item(tmp_path / "a.png", "ohwx, cat", 3, (10, 10), (16, 16), "0" * 64)
    return Dataset(tmp_path, 512, "ohwx", (item,))


def test_a_name_is_never_used_twice(tmp_path):
    paths = [export.save(LORA, tmp_path / "loras", "cat", "fp32") for _ in range(3)]
    assert [p.name for p in paths] == ["cat.safetensors", "cat_00002.safetensors", "cat_00003.safetensors"]
    assert load_file(paths[0])["diffusion_model.x.lora_A.weight"].equal(LORA["diffusion_model.x.lora_A.weight"])


@pytest.mark.parametrize(("dtype", "kind"),
                         [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_numbers_in_the_file(tmp_path, dtype, kind):
    saved = load_file(export.save(LORA, tmp_path, "cat", dtype))
    assert {t.dtype for t in saved.values()} == {kind}


@pytest.mark.parametrize("name", ["../cat", "a/b", "a\\b", "..", "c:cat", "", "  ", " cat", ".hidden", "cat?", "a\nb"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        export.save(LORA, tmp_path, name, "fp16")
    assert list(tmp_path.iterdir()) == []


def test_metadata_tells_the_recipe(tmp_path):
    config = TrainConfig(steps=100, rank=8, alpha=4, learning_rate=2e-4)
    lora = export.Lora(LORA, export.metadata(config, dataset(tmp_path), "FLUX.1", 60))
    path = export.save(lora, tmp_path, "cat", "fp16")
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert facts["modelspec.title"] == "cat" and facts["modelspec.trigger_phrase"] == "ohwx"
    assert facts["modelspec.architecture"] == "flux-1-dev/lora" and facts["modelspec.resolution"] == "512x512"
    assert (facts["ss_network_dim"], facts["ss_network_alpha"], facts["ss_steps"]) == ("8", "4", "60")
    assert facts["ss_num_train_images"] == "3" and '"rank": 8' in facts["livelora.recipe"]
    assert export.load(path).metadata == facts


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
