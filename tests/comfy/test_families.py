"""What families say of themselves, and what a recipe may ask of the one that is trained."""

from __future__ import annotations

import pytest
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.comfy.host import ComfyHost
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.targets import family_problems
from livelora.trainer.training.task import Task
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
