"""LoRA files: their names, their hashes, and a disk that does not take them."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.lora import file as export
from livelora.trainer.lora.formats import FORMATS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LAYER = "diffusion_model.single_blocks.0.linear2"
LORA = {f"{LAYER}.lora_A.weight": torch.randn(2, 3), f"{LAYER}.lora_B.weight": torch.randn(4, 2),
        f"{LAYER}.alpha": torch.tensor(22.627)}


def facts_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_name_is_never_used_twice(tmp_path):
    paths = [export.save(LORA, tmp_path / "loras", "cat", "fp32", FAMILIES) for _ in range(3)]
    assert [p.name for p in paths] == ["cat.safetensors", "cat_00002.safetensors", "cat_00003.safetensors"]
    assert load_file(paths[0])[f"{LAYER}.lora_A.weight"].equal(LORA[f"{LAYER}.lora_A.weight"])


@pytest.mark.parametrize(("dtype", "kind"),
                         [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_numbers_in_the_file(tmp_path, dtype, kind):
    """Matrices as asked for. What scales them stays exact: fp16 would make 22.625 of the alpha, bf16 22.625 too."""
    scales = {f"{LAYER}.dora_scale": torch.rand(4, 1)}
    saved = load_file(export.save(LORA | scales, tmp_path, "cat", dtype, FAMILIES))
    assert {t.dtype for name, t in saved.items() if name.endswith(".weight")} == {kind}
    assert saved[f"{LAYER}.alpha"].item() == pytest.approx(22.627, abs=1e-6)
    assert saved[f"{LAYER}.dora_scale"].equal(scales[f"{LAYER}.dora_scale"])


def test_what_fp16_cannot_hold_is_saved_in_fp32(tmp_path):
    """The largest number of fp16 is 65,504."""
    large = {f"{LAYER}.lora_A.weight": LORA[f"{LAYER}.lora_A.weight"].clamp(min=70_000)}
    saved = load_file(export.save(LORA | large, tmp_path, "cat", "fp16", FAMILIES))
    assert saved[f"{LAYER}.lora_A.weight"].equal(large[f"{LAYER}.lora_A.weight"])
    assert saved[f"{LAYER}.lora_B.weight"].dtype == torch.float16


@pytest.mark.parametrize("name", ["../cat", "a/../b", "/a", "a//b", "a/", "\\\\a\\b", "..", "c:cat", "c:/cat", "", "  ",
                                  " cat", ".hidden", "a/.b", "a /b", "cat?", "a\nb", "a.", "con", "nul/cat", "COM1.v2",
                                  "Aux", "con.safetensors", ".safetensors", "cat .safetensors", "x" * 300 + "/cat",
                                  "/".join(["x" * 200] * 9), "COM¹", "conin$.x", "con .x", "\u200b", "a\u202eb"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        export.save(LORA, tmp_path, name, "fp16", FAMILIES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["people/anna", "people\\anna.safetensors"])
def test_a_name_may_have_folders(tmp_path, name):
    for number in ("", "_00002"):
        path = export.save(LORA, tmp_path, name, "fp16", FAMILIES)
        assert path == tmp_path / "people" / f"anna{number}.safetensors" and path.exists()


@given(st.text() | st.sampled_from(["", "..", "con", "a/b", " ", "猫" * 300, "\ud83d", "v1.5", "my cats"]))
def test_any_text_can_become_a_name(text):
    export.check_name(export.name_of(text))


@settings(max_examples=30)
@given(st.text(st.characters() | st.sampled_from("a/.\ud83d猫")) | st.text("x猫\U0001f431", min_size=70),
       st.sampled_from(["", ".safetensors", ".SAFETENSORS"]))
def test_a_name_that_is_not_refused_can_be_written_twice(name, suffix):
    """… and is the file's, with one suffix."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export.check_name(name + suffix)
        except ValueError:
            return
        paths = [export.save(LORA, Path(folder), name + suffix, "fp32", FAMILIES) for _ in range(2)]
        assert [p.relative_to(folder).as_posix() for p in paths] == [
            f"{name}.safetensors".replace("\\", "/"), f"{name}_00002.safetensors".replace("\\", "/")]
        assert {p.name for p in paths} == {*os.listdir(paths[0].parent)}


@pytest.mark.parametrize(("name", "told"), [
    ("x" * 250, "'xxxxxxxxxxxxxxxxxxxx…' is too long for a disk: 250 letters are 250 bytes, and at most 237 fit."),
    ("猫" * 90, "90 letters are 270 bytes, and at most 237 fit. Write a shorter one"),
    ("my_\ud83d", r"The LoRA's name has half of a character in it, which no file can hold: 'my_\\ud83d'. Delete it"),
], ids=["letters", "bytes", "surrogate"])
def test_why_a_name_is_refused(name, told):
    with pytest.raises(ValueError, match=told):
        export.check_name(name)


def test_hashes_are_those_of_the_file(tmp_path):
    """sd-scripts' `precalculate_safetensors_hashes`, done to the files: the tensors of the one that was written, and 64
    KiB at 1 MiB of one that has only the ss_* keys in its header."""
    lora = {f"{LAYER}.lora_A.weight": torch.randn(64, 3000), f"{LAYER}.lora_B.weight": torch.randn(3000, 64)}
    path = export.save(export.Lora(lora, {"ss_steps": "5", "livelora.recipe": "{}"}), tmp_path, "cat", "fp32", FAMILIES)
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
        export.save(loha, tmp_path / "loras", "cat", "fp16", FAMILIES, "diffusers")
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
        export.save(LORA, tmp_path, "cat", "fp16", FAMILIES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file permissions are checked as another user, by fork")
def test_a_read_only_folder_is_reported(tmp_path):
    """Root may write anywhere, so a child process becomes nobody first."""
    folder = tmp_path / "loras"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.name.startswith(("pytest-", "popen-", tmp_path.name)):
            parent.chmod(0o755)
    reader, writer = os.pipe()
    if os.fork() == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            export.save(LORA, folder, "cat", "fp16", FAMILIES)
            os.write(writer, b"written")
        except OSError as err:
            os.write(writer, str(err).encode())
        os._exit(0)
    os.wait()
    told = os.read(reader, 1000).decode()
    assert "could not be written to" in told and "Permission denied" in told and "allow writing" in told
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("tensors", "told"), [
    ({}, "This LoRA has no tensors, so there is nothing to save"),
    ({f"{LAYER}.lora_A.weight": torch.full((2, 2), float("nan"))}, "lora_A.weight has values that are not finite"),
    ({f"{LAYER}.lora_A.weight": torch.ones(2, 2, dtype=torch.complex64)}, "lora_A.weight is stored as complex64"),
], ids=["empty", "not finite", "complex"])
def test_what_could_not_be_read_again_is_not_saved(tmp_path, tensors, told, format):
    with pytest.raises(ValueError, match=told):
        export.save(tensors, tmp_path, "cat", "fp32", FAMILIES, format)
    assert list(tmp_path.iterdir()) == []
