"""The objective against numbers worked out by hand, diffusers and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from livelora.trainer.comfy.families.flux1 import FLUX1
from livelora.trainer.model.process import shift_sigmas
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.seeds import generator
from livelora.trainer.training import objective
from scipy import special, stats

FLOW = FLUX1.process


def config(**changes):
    return TrainConfig(steps=1, rank=4, **changes)


def sigmas(count, tokens=256, **changes):
    return objective.sigmas_of(objective.normals(count, generator(0, "x")), tokens, config(**changes), FLOW)


def losses(errors, sigma=1.0, **changes):
    """The loss of each error, in fp32."""
    pred = torch.tensor(errors).view(1, 1, 1, -1)
    return objective.elementwise_loss(pred, torch.zeros_like(pred), torch.tensor([sigma]), config(**changes)).flatten()


@pytest.mark.parametrize(("edge", "shift"), [(512, 1.8775), (1024, 3.1582), (256, 1.6487)])
def test_resolution_shift_is_on_the_published_line(edge, shift):
    """1.88 at 512², 3.158 at 1024² (HAZARDS, recipe trap 2), e^0.5 at 256 tokens."""
    assert FLOW.resolution_shift((edge // 16) ** 2) == pytest.approx(shift, abs=2e-4)


def test_resolution_shift_equals_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (256, 1024, 2304, 4096):
        expected = torch.tensor(calculate_shift(tokens, 256, 4096, 0.5, 1.15)).exp().item()
        assert FLOW.resolution_shift(tokens) == pytest.approx(expected, rel=1e-6)


def test_shift_sigmas_equals_the_samplers_shift():
    """diffusers' scheduler shifts the sampler's sigmas by the same formula."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = torch.linspace(0.01, 1, 50)
    expected = scheduler.time_shift(mu=1.15, sigma=1.0, t=sigmas)
    torch.testing.assert_close(shift_sigmas(sigmas, torch.tensor(1.15).exp().item()), expected)


def test_draws_are_those_of_earlier_recipes():
    """Printed by this file's `sample_sigmas` at commit 3cf4f91, before there were other distributions."""
    draw = objective.normals(4, generator(7, "micro-batch", 3))
    for sampling, expected in (
            ("sigmoid", [0.5329484343528748, 0.9257218241691589, 0.5913489460945129, 0.7405099272727966]),
            ("resolution_shift", [0.6817845106124878, 0.9590172171592712, 0.7309690713882446, 0.8427217602729797])):
        found = objective.sigmas_of(draw, 1024, config(timestep_sampling=sampling), FLOW)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-7, atol=0)


@pytest.mark.parametrize(("sampling", "changes", "distribution"), [
    ("sigmoid", {}, stats.norm()),
    ("logit_normal", {"timestep_mean": -0.5, "timestep_std": 1.5}, stats.norm(-0.5, 1.5)),
    ("uniform", {}, stats.logistic()),
    ("resolution_shift", {}, stats.norm(1.15)),
    ("fixed_shift", {"timestep_shift": 3.0}, stats.norm(np.log(3)))])
def test_the_logit_of_the_noise_level_has_its_distribution(sampling, changes, distribution):
    """Esser et al. 2024, section 3.1: the logit is normal; shifting by s adds ln s to it, and μ is 1.15 at 4096
    tokens. The logit of a uniform variable is logistic."""
    logits = torch.logit(sigmas(20000, 4096, timestep_sampling=sampling, **changes).double()).numpy()
    assert stats.kstest(logits, distribution.cdf).pvalue > 0.01


def test_logit_normal_equals_diffusers():
    from diffusers.training_utils import compute_density_for_timestep_sampling

    found = sigmas(100, timestep_sampling="logit_normal", timestep_mean=0.7, timestep_std=0.4)
    torch.testing.assert_close(found, compute_density_for_timestep_sampling(
        "logit_normal", 100, logit_mean=0.7, logit_std=0.4, generator=generator(0, "x")))


def test_fixed_shift_equals_the_samplers_shift():
    """diffusers' scheduler with a fixed shift, asked for the shifted levels of sigmoid's samples."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=sigmas(100).tolist())
    torch.testing.assert_close(sigmas(100, timestep_sampling="fixed_shift", timestep_shift=3.0), scheduler.sigmas[:-1])


def test_uniform_is_the_share_of_normal_samples_that_lie_below():
    found = objective.sigmas_of(torch.tensor([-3.0, 0.0, 1.0]), 256, config(timestep_sampling="uniform"), FLOW)
    np.testing.assert_allclose(found, stats.norm.cdf([-3, 0, 1]), rtol=1e-5)


def test_resolution_shift_moves_the_logit_by_its_logarithm():
    """logit(σ') = logit(σ) + ln s, so the logit-normal's mean becomes μ."""
    shifted = sigmas(100, 4096, timestep_sampling="resolution_shift")
    torch.testing.assert_close(torch.logit(shifted.double()), torch.logit(sigmas(100).double()) + 1.15, atol=1e-4,
                               rtol=1e-4)


@given(st.integers(1, 200), st.integers(0, 2**32))
def test_stratified_samples_lie_one_in_each_slice(count, seed):
    """scipy's Φ maps them to probabilities; sorted, the i-th lies between i/count and (i + 1)/count."""
    found = objective.stratified_normals(count, generator(seed))
    assert found.shape == (count,) and found.dtype == torch.float32
    places = np.sort(stats.norm.cdf(found.double().numpy())) * count - np.arange(count)
    assert places.min() > -1e-4 and places.max() < 1 + 1e-4


def test_a_million_slices_are_told_apart():
    """fp32 returns Φ(z) to 2⁻²⁴ φ(z) |z| ≤ 1.5e-8, here 0.015 slices. Computed in fp32 it would be off by more."""
    count = 2**20
    found = objective.stratified_normals(count, generator(0)).double().numpy()
    places = np.sort(special.ndtr(found)) * count - np.arange(count)
    assert places.min() > -0.02 and places.max() < 1.02


def test_a_stratified_sample_alone_is_standard_normal():
    """At every place of the window, so the order is random too."""
    windows = torch.stack([objective.stratified_normals(4, generator(k)) for k in range(2000)])
    for place in windows.unbind(1):
        assert stats.kstest(place.double().numpy(), "norm").pvalue > 0.01


def test_stratified_windows_differ_less_than_chance():
    """The mean of four independent samples has variance 1/4; that of one in each quarter has a quarter of the mean
    variance of the normal cut at its quartiles (scipy)."""
    means = torch.stack([objective.stratified_normals(4, generator(k)) for k in range(2000)]).mean(1)
    cuts = stats.norm.ppf([0, 0.25, 0.5, 0.75, 1])
    expected = np.mean([stats.truncnorm.var(low, high) for low, high in zip(cuts, cuts[1:], strict=False)]) / 4
    assert means.var().item() == pytest.approx(expected, rel=0.1) and expected < 0.05


def test_stratified_samples_depend_on_their_generator_alone():
    one, two, other = (objective.stratified_normals(8, generator(k)) for k in (1, 1, 2))
    assert one.equal(two) and not one.equal(other)
    assert not one.argsort().equal(other.argsort())


def test_noising_target_and_loss_by_hand():
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), -4.0)
    noisy = FLOW.add_noise(latents, noise, torch.tensor([0.0, 0.25]))
    assert noisy.flatten().tolist() == [2.0, 0.5]
    assert FLOW.target(latents, noise).flatten().tolist() == [-6.0, -6.0]
    pred = torch.tensor([-6.0, -3.0]).view(2, 1, 1, 1)
    loss = objective.elementwise_loss(pred, FLOW.target(latents, noise), torch.zeros(2), config())
    assert objective.image_losses(loss).tolist() == [0.0, 9.0]


def test_velocity_leads_from_noise_to_latents():
    """One Euler step of length σ along the velocity undoes the noise exactly."""
    latents, noise, sigma = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3), torch.tensor([0.7])
    noisy = FLOW.add_noise(latents, noise, sigma)
    torch.testing.assert_close(noisy - sigma * FLOW.target(latents, noise), latents)


def test_generators_depend_on_their_arguments_alone():
    state = torch.random.get_rng_state()
    one, two = (torch.randn(4, generator=generator(1, "a", 2)) for _ in range(2))
    assert one.equal(two)
    assert not one.equal(torch.randn(4, generator=generator(1, "a", 3)))
    assert not one.equal(torch.randn(4, generator=generator(2, "a", 2)))
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize(("loss", "expected", "slope"), [
    ("l2", 9.0, -6.0), ("l1", 3.0, -1.0), ("huber", 8.0, -4.8), ("smooth_l1", 2.0, -1.2)])
def test_losses_of_an_error_of_minus_3_with_a_threshold_of_4(loss, expected, slope):
    """3² + 4² = 5²: huber is 2·4·(5 − 4) with slope 2·4·(−3)/5, smooth_l1 a quarter of both."""
    pred = torch.tensor([[[[-3.0]]]], requires_grad=True)
    changes = {"huber_c": 4.0} if loss in ("huber", "smooth_l1") else {}
    found = objective.elementwise_loss(pred, torch.zeros(1, 1, 1, 1), torch.ones(1), config(loss=loss, **changes))
    found.sum().backward()
    assert found.item() == pytest.approx(expected) and pred.grad.item() == pytest.approx(slope)


@given(st.floats(-50, 50, width=32), st.floats(2**-7, 8, width=32))
def test_huber_losses_equal_scipys(error, c):
    """scipy's pseudo-Huber is c² (√(1 + (d/c)²) − 1) = c (√(d² + c²) − c)."""
    expected = 2 * special.pseudo_huber(c, error)
    assert losses([error], loss="huber", huber_c=c).item() == pytest.approx(expected, rel=1e-5, abs=1e-10)
    assert losses([error], loss="smooth_l1", huber_c=c).item() == pytest.approx(expected / c, rel=1e-5, abs=1e-10)


def test_small_errors_keep_their_digits():
    """d² (1 − d² / 4c²), the series of 2c (√(d² + c²) − c); in fp32 that form itself gives 0 here."""
    assert losses([1e-4], loss="huber", huber_c=1.0).item() == pytest.approx(1e-8, rel=1e-5)
    assert losses([1e-4], loss="smooth_l1", huber_c=0.5).item() == pytest.approx(2e-8, rel=1e-5)


def test_large_errors_count_linearly():
    """2c |d| − 2c² for |d| ≫ c."""
    assert losses([-1e4], loss="huber", huber_c=0.1).item() == pytest.approx(2000 - 0.02, rel=1e-6)
    assert losses([-1e4], loss="smooth_l1", huber_c=0.1).item() == pytest.approx(20000 - 0.2, rel=1e-6)


@pytest.mark.parametrize("loss", ["l2", "l1", "huber", "smooth_l1"])
def test_no_error_has_no_loss_and_no_gradient(loss):
    pred = torch.zeros(1, 1, 2, 2, requires_grad=True)
    found = objective.elementwise_loss(pred, torch.zeros(1, 1, 2, 2), torch.ones(1), config(loss=loss))
    found.sum().backward()
    assert not found.any() and not pred.grad.any()


def test_half_precision_predictions_are_subtracted_in_fp32():
    """1 + 2⁻⁸ has nine bits: bf16 would round it to 1."""
    pred, target = torch.ones(1, 1, 1, 1).bfloat16(), torch.full((1, 1, 1, 1), -(2.0 ** -8)).bfloat16()
    found = objective.elementwise_loss(pred, target, torch.ones(1), config())
    assert found.dtype == torch.float32 and found.item() == (1 + 2.0 ** -8) ** 2


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [0.01, 0.01, 0.01]), ("exponential", [1.0, 0.1, 0.01]), ("snr", [1.0, 0.2575, 0.01])])
def test_thresholds_by_hand(schedule, expected):
    """At σ = 0, ½, 1 with c = 1/100: 100^−½ = 1/10, and 0.99/4 + 0.01."""
    found = objective.huber_threshold(torch.tensor([0.0, 0.5, 1.0]), 0.01, schedule)
    assert found.tolist() == pytest.approx(expected)


def test_exponential_threshold_decays_as_in_sd_scripts():
    """library/train_util.py, `get_huber_threshold_if_needed`: exp(−α t) with α = −ln(c) / T, t counted to T."""
    timesteps = np.arange(0, 1001, 50)
    expected = np.exp(np.log(0.1) / 1000 * timesteps)
    found = objective.huber_threshold(torch.from_numpy(timesteps / 1000).float(), 0.1, "exponential")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_snr_threshold_equals_that_of_a_variance_preserving_diffusion():
    """sd-scripts' (1 − c) / (1 + √((1 − ᾱ) / ᾱ))² + c with diffusers' ᾱ, at the flow's σ that has the same noise over
    signal: σ / (1 − σ) = n, so σ = n / (1 + n)."""
    from diffusers import DDPMScheduler

    kept = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod.double()
    ratio = ((1 - kept) / kept).sqrt()
    found = objective.huber_threshold((ratio / (1 + ratio)).float(), 0.1, "snr")
    torch.testing.assert_close(found.double(), 0.9 / (1 + ratio) ** 2 + 0.1, rtol=1e-5, atol=0)


def test_every_image_has_the_threshold_of_its_noise_level():
    """With c = 1/100 the thresholds are 1 and 1/100: d = 3/4 and 3/400 make both roots 5/4 of them."""
    pred = torch.tensor([3 / 4, 3 / 400]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    found = objective.elementwise_loss(pred, torch.zeros_like(pred), torch.tensor([0.0, 1.0]), config(
        loss="smooth_l1", huber_c=0.01, huber_schedule="exponential"))
    assert found.shape == (2, 3, 2, 2)
    assert found[0].flatten().tolist() == pytest.approx([2 * (5 / 4 - 1)] * 12)
    assert found[1].flatten().tolist() == pytest.approx([2 * (5 / 4 - 1) / 100] * 12, rel=1e-5)


def test_without_masks_the_loss_is_the_mean_squared_error_bit_for_bit():
    """`flow_matching_loss` at commit 3cf4f91, in one expression."""
    pred, target = torch.randn(3, 16, 9, 7), torch.randn(3, 16, 9, 7)
    found = objective.image_losses(objective.elementwise_loss(pred, target, torch.rand(3), config()))
    assert found.equal((pred.float() - target.float()).square().mean((1, 2, 3)))


def test_masked_losses_are_numpys_weighted_average():
    draw = torch.Generator().manual_seed(0)
    loss, weights = torch.rand(2, 4, 5, 3, generator=draw), torch.rand(2, 5, 3, generator=draw)
    expected = [np.average(image, weights=np.broadcast_to(weight, image.shape))
                for image, weight in zip(loss.numpy(), weights.numpy(), strict=True)]
    np.testing.assert_allclose(objective.image_losses(loss, weights), expected, rtol=1e-6)


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=6, max_size=6).filter(any))
def test_the_area_of_a_mask_does_not_change_an_images_weight(mask):
    """An image that is wrong by the same amount everywhere has that loss, whatever its mask shows."""
    loss = torch.full((1, 2, 2, 3), 7.0)
    assert objective.image_losses(loss, torch.tensor(mask).view(1, 2, 3)).item() == pytest.approx(7.0)


def test_what_a_mask_leaves_out_gets_no_gradient():
    loss = torch.ones(1, 2, 1, 2, requires_grad=True)
    objective.image_losses(loss, torch.tensor([[[0.0, 1.0]]])).sum().backward()
    assert loss.grad.flatten().tolist() == [0.0, 0.5, 0.0, 0.5]


def test_an_image_without_any_weight_is_refused():
    with pytest.raises(AssertionError, match="without any weight"):
        objective.image_losses(torch.ones(2, 1, 1, 1), torch.tensor([1.0, 0.0]).view(2, 1, 1))


def test_unmasked_weight_lifts_what_the_mask_leaves_out():
    masks = torch.tensor([[[0.0, 0.5, 1.0]]])
    for weight, expected in ((0.0, [0.0, 0.5, 1.0]), (0.2, [0.2, 0.6, 1.0]), (1.0, [1.0, 1.0, 1.0])):
        assert objective.mask_weights(masks, weight).flatten().tolist() == pytest.approx(expected)
