"""Preview pictures are KSampler's, wait for nobody, and survive what other threads do to the model."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from livelora.nodes.preview import SamplePreview
from livelora.trainer.comfy.families import FAMILIES
from livelora.trainer.lora import formats
from livelora.trainer.lora.tensors import to_lora
from livelora.trainer.model.host import GiveWay, SampleSettings
from livelora.trainer.samples.prompts import parse_all
from tiny_flux import make_view

import nodes  # ComfyUI's

SETTINGS = SampleSettings(width=64, height=96, steps=4, cfg=2.0, guidance=1.5, sampler_name="dpmpp_sde",
                          scheduler="simple", seed=3)


def never() -> bool:
    return False


@pytest.fixture
def lora(host):
    view, _ = make_view(host, std=0.1)
    return to_lora(view, "LoRA")


@pytest.fixture
def texts(host):
    return host.encode_text("red apple"), host.encode_text("a cat in a box")


class After:
    """Does something when it is asked for the nth time; counts."""

    def __init__(self, count: int, action) -> None:
        self.asked, self.count, self.action = 0, count, action

    def __call__(self) -> bool:
        self.asked += 1
        return bool(self.asked == self.count and self.action())


def ksampler(patcher, clip, vae, settings: SampleSettings) -> torch.Tensor:
    """The same picture by core's own nodes."""
    with torch.inference_mode():
        conditionings = []
        for caption in ("red apple", "a cat in a box"):
            [conditioning] = nodes.CLIPTextEncode().encode(clip, caption)
            conditionings.append(FluxGuidance.execute(conditioning, settings.guidance)[0])
        latent = nodes.EmptyLatentImage().generate(settings.width, settings.height, 1)[0]
        [drawn] = nodes.KSampler().sample(patcher, settings.seed, settings.steps, settings.cfg, settings.sampler_name,
                                          settings.scheduler, *conditionings, latent)
        return nodes.VAEDecode().decode(vae, drawn)[0][0]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_picture_is_that_of_ksampler_with_load_lora_at_that_strength(host, patcher, clip, random_vae, lora, texts,
                                                                      strength):
    file = formats.write(lora, "ComfyUI", FAMILIES)
    loaded, _ = comfy.sd.load_lora_for_models(patcher, None, file, strength, 0)
    expected = ksampler(loaded, clip, random_vae, SETTINGS)
    assert host.sampler(lora, strength)(*texts, SETTINGS, never).equal(expected)


def test_at_strength_zero_it_is_the_picture_of_the_base_and_at_half_another_than_at_one(host, patcher, clip, random_vae,
                                                                                       lora, texts):
    base, half, whole = (host.sampler(lora, strength)(*texts, SETTINGS, never) for strength in (0.0, 0.5, 1.0))
    assert base.equal(ksampler(patcher, clip, random_vae, SETTINGS))
    assert not half.equal(base) and not half.equal(whole) and not whole.equal(base)


def test_the_negative_prompt_counts_only_if_cfg_is_not_one(host, texts):
    """As the help page says."""
    draw, (text, negative) = host.sampler({}, 1.0), texts
    for cfg, same in ((1.0, True), (2.0, False)):
        settings = replace(SETTINGS, cfg=cfg)
        assert draw(text, negative, settings, never).equal(draw(text, text, settings, never)) is same


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_sde", "uni_pc", "ddim"])
def test_who_waits_is_let_in_after_the_step_under_way_and_the_picture_is_the_same_afterwards(host, lora, texts,
                                                                                            sampler_name):
    settings = replace(SETTINGS, sampler_name=sampler_name)
    draw, somebody_waits = host.sampler(lora, 1.0), After(2, lambda: True)
    torch.manual_seed(77)
    generator = torch.random.get_rng_state()
    undisturbed = draw(*texts, settings, never)
    with pytest.raises(GiveWay):
        draw(*texts, settings, somebody_waits)
    assert somebody_waits.asked == 2
    assert torch.random.get_rng_state().equal(generator)
    assert draw(*texts, settings, never).equal(undisturbed)


def test_give_way_is_asked_once_in_every_step(host, texts):
    asked = After(0, never)
    host.sampler({}, 1.0)(*texts, SETTINGS, asked)
    assert asked.asked == SETTINGS.steps


def test_a_model_that_is_unloaded_while_a_picture_is_drawn_costs_only_time(host, lora, texts):
    draw, free = host.sampler(lora, 1.0), After(2, mm.unload_all_models)
    undisturbed = draw(*texts, SETTINGS, never)
    assert draw(*texts, SETTINGS, free).equal(undisturbed)
    # On the CPU the picture is drawn to its end; elsewhere the next step finds its weights on another device.
    assert free.asked == SETTINGS.steps + (SETTINGS.steps if host.device.type == "cpu" else 2)


def test_other_patches_on_the_model_while_a_picture_is_drawn_cost_only_time(host, patcher, lora, texts):
    draw, take_off = host.sampler(lora, 1.0), After(3, lambda: mm.load_models_gpu([patcher]))
    undisturbed = draw(*texts, SETTINGS, never)
    assert draw(*texts, SETTINGS, take_off).equal(undisturbed)
    assert take_off.asked == 2 * SETTINGS.steps


def test_a_model_that_never_stays_is_given_up(host, lora, texts):
    asked = []

    def free() -> bool:
        asked.append(mm.unload_all_models())
        return False

    with pytest.raises(RuntimeError, match="ComfyUI unloaded the model 3 times while this picture was drawn"):
        host.sampler(lora, 1.0)(*texts, SETTINGS, free)
    assert len(asked) == 3 * (SETTINGS.steps if host.device.type == "cpu" else 1)


def test_an_error_while_the_model_is_gone_is_not_the_pictures(host, lora, texts):
    """On a GPU, a step whose weights are moved away fails. The error here stands for that one."""
    def gone() -> None:
        mm.unload_all_models()
        raise RuntimeError("Expected all tensors to be on the same device")

    draw = host.sampler(lora, 1.0)
    undisturbed = draw(*texts, SETTINGS, never)
    assert draw(*texts, SETTINGS, After(2, gone)).equal(undisturbed)


def test_an_error_of_the_pictures_own_is_raised_at_once(host, texts):
    def fail() -> None:
        raise RuntimeError("its own")

    failing = After(2, fail)
    with pytest.raises(RuntimeError, match="its own"):
        host.sampler({}, 1.0)(*texts, SETTINGS, failing)
    assert failing.asked == 2


def test_a_device_that_is_too_small_is_not_tried_three_times(host, texts):
    """Memory that runs out while the model loads leaves it unloaded, too. The error stands for a GPU's."""
    def run_out() -> None:
        mm.unload_all_models()
        raise torch.OutOfMemoryError("CUDA out of memory")

    failing = After(2, run_out)
    with pytest.raises(torch.OutOfMemoryError):
        host.sampler({}, 1.0)(*texts, SETTINGS, failing)
    assert failing.asked == 2


OPTIONS = {"w": "width", "h": "height", "d": "seed", "s": "sampler_steps", "l": "cfg", "g": "guidance", "m": "strength"}


@pytest.mark.parametrize(("option", "name"), OPTIONS.items())
def test_a_line_may_ask_for_what_the_node_may(option, name):
    [given] = [i for i in SamplePreview.define_schema().inputs if i.id == name]
    step = given.step if name in ("width", "height") else 1
    for value in (given.min, given.max):
        parse_all(f"a cat --{option} {value}", "", SETTINGS)
    for value in (given.min - step, given.max + step):
        with pytest.raises(ValueError, match=f"--{option} {value}: .* from {given.min:g} to"):
            parse_all(f"a cat --{option} {value}", "", SETTINGS)


def test_a_line_that_cannot_be_read_is_refused_before_anything_runs():
    assert SamplePreview.validate_inputs(prompts="a cat --w 512") is True
    assert "line 2: --w 500: width must be" in SamplePreview.validate_inputs(prompts="a cat\na dog --w 500")
    assert SamplePreview.validate_inputs(prompts=None) is True, "it is linked: ComfyUI has not computed it yet"
