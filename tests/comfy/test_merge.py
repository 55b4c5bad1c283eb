"""LoRA Merge and Resize against ComfyUI's own loaders, with files as a user has them."""

from __future__ import annotations

import json
import os

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_extras.nodes_train import LoraModelLoader
from livelora.nodes.merge import MergeLoras
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.lora import file as export

EVERYTHING, BLOCKS = "", "_blocks."


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """An empty loras folder."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def write_lora(folder, state, name: str, rank: int, format="ComfyUI", where=EVERYTHING, **more: torch.Tensor) -> str:
    """A random LoRA on the model's Linears, of an effect as large as their weights."""
    draw, lora = torch.Generator().manual_seed(rank), {}
    for key, weight in state.items():
        if weight.ndim == 2 and where in key:
            outputs, inputs = weight.shape
            layer = {"lora_A.weight": torch.randn(rank, inputs, generator=draw) / inputs**0.5,
                     "lora_B.weight": torch.randn(outputs, rank, generator=draw), "alpha": torch.tensor(0.6 * rank)}
            lora |= {f"diffusion_model.{key.removesuffix('.weight')}.{end}": t for end, t in layer.items()}
    return export.save(lora | more, folder, name, "fp32", FAMILIES, format).name


def weights(patcher) -> dict[str, torch.Tensor]:
    """What ComfyUI samples with."""
    with torch.inference_mode():
        mm.load_models_gpu([patcher])
        return {name: value.clone() for name, value in patcher.model.diffusion_model.state_dict().items()}


def loaded(patcher, folder, *files: tuple[str, float]) -> dict[str, torch.Tensor]:
    """Through LoraLoader's calls, one file after another."""
    with torch.inference_mode():
        for name, strength in files:
            file = comfy.utils.load_torch_file(str(folder / name))
            patcher, _ = comfy.sd.load_lora_for_models(patcher, None, file, strength, 0.0)
        return weights(patcher)


def distance(one, two) -> float:
    """In Frobenius norm, of all weights together."""
    return sum((value - two[name]).square().sum().item() for name, value in one.items()) ** 0.5


def merged(*inputs):
    with torch.inference_mode():  # as prompts run
        return MergeLoras.execute(*inputs).result


@pytest.mark.parametrize("formats", [("ComfyUI", "ComfyUI"), ("kohya", "diffusers")])
def test_a_merged_lora_does_what_both_do_one_after_another(loras, patcher, flux_state, formats):
    one = write_lora(loras, flux_state, "one", 4, formats[0])
    two = write_lora(loras, flux_state, "two", 3, formats[1], where=BLOCKS)
    expected = loaded(patcher, loras, (one, 0.8), (two, -0.6))
    lora, report = merged(one, 0.8, two, -0.6, 0)  # 10 layers in each of 2 double blocks, 3 in 2 single, 10 around
    assert report == "rank 4–7, 36 layers, nothing is cut"
    file = export.save(lora, loras, "both", "fp32", FAMILIES).name
    with torch.inference_mode():
        direct = weights(LoraModelLoader.execute(patcher, lora, 1.0).result[0])
    for found in (direct, loaded(patcher, loras, (file, 1.0))):
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= 1e-4 * value.abs().max(), name
            assert value.ndim == 1 or (value - flux_state[name]).norm() > 0.05 * flux_state[name].norm(), name


def test_the_file_of_a_resized_lora_is_smaller_and_tells_how_it_came_to_be(loras, patcher, flux_state):
    one = write_lora(loras, flux_state, "one", 8)
    lora, report = merged(one, 1.0, "none", 1.0, 2)
    path = export.save(lora, loras, "small", "fp32", FAMILIES, "kohya")
    assert path.stat().st_size < 0.3 * (loras / one).stat().st_size
    about = export.load(path).metadata
    kept = json.loads(about["livelora.merge"])["kept"]
    assert report.startswith(f"rank 8 → 2 keeps {100 * kept:.1f} % of the change") and 0.3 < kept < 0.8
    assert about["ss_network_dim"] == "2" and about["modelspec.merged_from"] == "one.safetensors"
    # Pythagoras: the part that is kept and the part that is lost stand at right angles
    before, after = (loaded(patcher, loras, (name, 1.0)) for name in (one, path.name))
    assert distance(before, after) / distance(before, flux_state) == pytest.approx((1 - kept**2) ** 0.5, abs=1e-4)


def test_a_strength_of_zero_leaves_a_file_out(loras, flux_state):
    one, two = write_lora(loras, flux_state, "one", 2), write_lora(loras, flux_state, "two", 3)
    lora, report = merged(one, 0.0, two, 1.0, 0)
    assert report == "rank 3, 36 layers, nothing is cut" and lora.metadata["modelspec.merged_from"] == two
    with pytest.raises(ValueError, match="every strength is 0"):
        merged(one, 0.0, "none", 1.0, 0)


def test_the_stop_button_ends_it(loras, flux_state, monkeypatch):
    """ComfyUI's main.py hangs its own function there, which looks at the button first."""
    one = write_lora(loras, flux_state, "one", 2)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK",
                        lambda *_, **__: mm.throw_exception_if_processing_interrupted())
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        merged(one, 1.0, "none", 1.0, 0)


def test_a_second_file_that_cannot_be_merged_is_refused_before_anything_runs(loras, flux_state):
    one = write_lora(loras, flux_state, "one", 2)
    oft = export.save({"diffusion_model.img_in.oft_blocks": torch.ones(64, 4, 4)}, loras, "turn", "fp32", FAMILIES).name
    assert MergeLoras.validate_inputs("none") is True
    assert MergeLoras.validate_inputs(one) is True
    assert MergeLoras.validate_inputs(None) is True  # linked
    assert "'turn.safetensors' cannot be merged or resized. Its kind is OFT" in MergeLoras.validate_inputs(oft)
    assert "gone.safetensors" in MergeLoras.validate_inputs("gone.safetensors")


def test_a_file_that_changed_is_read_again(loras, flux_state):
    one = write_lora(loras, flux_state, "one", 2)
    first = MergeLoras.fingerprint_inputs(one, "none", rank=0)
    os.utime(loras / one, ns=(1, 1))
    assert MergeLoras.fingerprint_inputs(one, "none", rank=0) != first
    assert MergeLoras.fingerprint_inputs(None, "none", rank=0) == []  # linked
