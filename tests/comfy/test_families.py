"""What families say of themselves, and what a recipe may ask of the one that is trained."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.comfy.host import ComfyHost
from livelora.trainer.lora.inject import inject
from livelora.trainer.lora.kinds import KINDS
from livelora.trainer.lora.tensors import to_lora
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.example import Example
from livelora.trainer.training.targets import family_problems, layout
from livelora.trainer.training.task import Task
from livelora.trainer.training.trainer import Trainer
from PIL import Image
from reading import read
from tiny_flux import load_flux, random_flux


@pytest.fixture
def dataset(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "red.txt").write_text("red")
    return read(tmp_path)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_presets_are_what_practitioners_use(family):
    presets = family.presets
    assert presets["character"].rank == 16 and 1000 <= presets["character"].steps <= 1500
    assert 24 <= presets["style"].rank <= 32 and 2000 <= presets["style"].steps <= 3000
    assert 32 <= presets["concept"].rank <= 64


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_its_examples_can_be_trained(family):
    """They are shown in tooltips, so people will copy them."""
    written = {name: family.examples[name] for name in ("block_ranks", "block_learning_rates", "target_regex")}
    assert not [*family_problems(TrainConfig(steps=2, rank=4, **written), family)]


@pytest.mark.parametrize(("asked", "problem"), [
    ({"block_ranks": "triple: 8"}, "block_ranks names blocks that FLUX.1 does not have: triple. It has double and"),
    ({"block_learning_rates": "single: 2, in 3: 1, out: 0"},
     "block_learning_rates names blocks that FLUX.1 does not have: in, out. It has double and single; write"),
])
def test_kinds_of_block_that_the_family_does_not_have_are_refused(host, dataset, asked, problem):
    with pytest.raises(ValueError, match=problem):
        Task.of(host, TrainConfig(steps=2, rank=4, **asked), dataset)


def test_a_lora_says_for_which_model_it_is(host, clip, random_vae):
    """The layers for guidance are what dev has and schnell has not (black-forest-labs/flux, `util.configs`)."""
    schnell = ComfyHost(load_flux(random_flux(guidance_embed=False)), clip, random_vae)
    assert (host.architecture, schnell.architecture) == ("flux-1-dev/lora", "flux-1-schnell/lora")


def lora_of(host, **recipe) -> dict[str, torch.Tensor]:
    """A LoRA that such a recipe begins with, as a file has it."""
    config = TrainConfig(steps=2, **{"rank": 4, "target_regex": r"double_blocks\.0\.img_mlp\..*", **recipe})
    view = host.view(torch.float32)
    inject(view, config, layout(view, config, host.family))
    return to_lora(view, config.adapter)


def task(host, dataset, start=None, **recipe) -> Task:
    return Task.of(host, TrainConfig(steps=2, **{"rank": 4, **recipe}), dataset, start=start)


@pytest.mark.parametrize(("recipe", "told"), [
    ({"target_regex": "nothing"}, "No layer of this model is trained: 'nothing' .* correct target_regex"),
    ({"target_modules": "style"}, "No layer of this model is trained"),  # it has two single blocks
    ({"block_ranks": "double: 0, single: 0"}, "No layer of this model is trained"),
    ({"adapter": "OFT", "rank": 7}, "cannot have rank 7: OFT turns blocks of 7 outputs"),
    ({"adapter": "OFT", "block_ranks": "single 1: 5"}, "single_blocks.1.* cannot have rank 5: OFT turns"),
    ({"init": "PiSSA", "rank": 300}, "cannot have rank 300: it has only 256 directions that init 'PiSSA' could start"),
])
def test_a_recipe_that_the_model_cannot_have_is_refused_when_it_is_asked_for(host, dataset, recipe, told):
    with pytest.raises(ValueError, match=told):
        task(host, dataset, **recipe)


@pytest.mark.parametrize(("made", "recipe", "told"), [
    ({}, {"adapter": "DoRA"}, "Its kind is LoRA, and the recipe's adapter is DoRA. Set adapter to LoRA"),
    ({}, {"target_modules": "attention"}, "so target_modules .attention. has no effect"),
    ({"adapter": "LoKr", "lokr_factor": 4}, {"adapter": "LoKr"}, "Start from a LoRA that was trained for this model, "
     "and use the lokr_factor and rank that it was trained with"),
])
def test_a_start_that_does_not_fit_is_refused_when_it_is_asked_for(host, dataset, made, recipe, told):
    with torch.inference_mode(), pytest.raises(ValueError, match=told):  # as in a prompt
        task(host, dataset, lora_of(host, **made), **recipe)


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_of_a_wider_model_is_refused_when_it_is_asked_for(host, dataset, clip, random_vae, kind):
    other = type(host)(load_flux(random_flux(hidden_size=128, num_heads=1)), clip, random_vae)
    with pytest.raises(ValueError, match="in the LoRA to start from, but this model has"):
        task(host, dataset, lora_of(other, adapter=kind), adapter=kind)
    task(host, dataset, lora_of(host, adapter=kind), adapter=kind)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_not_refused_at_once_can_be_trained(host, dataset, data):
    """Nothing is left to be found when all is encoded."""
    recipe = data.draw(st.fixed_dictionaries({
        "adapter": st.sampled_from([*KINDS]), "rank": st.sampled_from([2, 3, 4, 300]),
        "target_regex": st.sampled_from(["", "img_in", r"single_blocks\.0\.linear2", "none"]),
        "block_ranks": st.sampled_from(["", "single: 0", "double: 6"]),
        "init": st.sampled_from(["kaiming", "PiSSA"])}))
    start = lora_of(host, adapter=data.draw(st.sampled_from([*KINDS]))) if data.draw(st.booleans()) else None
    try:
        ready = task(host, dataset, start, **recipe)
    except ValueError:
        return
    Trainer(host, ready.config, [Example(torch.zeros(16, 8, 8), [])], ready.start)
