"""The objective against numbers worked out by hand, diffusers and scipy."""

from __future__ import annotations

import pytest
import torch
from livelora.trainer import objective
from scipy import stats


@pytest.mark.parametrize(("edge", "shift"), [(512, 1.8775), (1024, 3.1582), (256, 1.6487)])
def test_resolution_shift_is_on_the_published_line(edge, shift):
    """1.88 at 512², 3.158 at 1024² (HAZARDS, recipe trap 2), e^0.5 at 256 tokens."""
    assert objective.resolution_shift((edge // 16) ** 2) == pytest.approx(shift, abs=2e-4)


def test_resolution_shift_equals_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (256, 1024, 2304, 4096):
        expected = torch.tensor(calculate_shift(tokens, 256, 4096, 0.5, 1.15)).exp().item()
        assert objective.resolution_shift(tokens) == pytest.approx(expected, rel=1e-6)


def test_shift_sigmas_equals_the_samplers_shift():
    """diffusers' scheduler shifts the sampler's sigmas by the same formula."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = torch.linspace(0.01, 1, 50)
    expected = scheduler.time_shift(mu=1.15, sigma=1.0, t=sigmas)
    torch.testing.assert_close(objective.shift_sigmas(sigmas, torch.tensor(1.15).exp().item()), expected)


def test_sigmoid_sampling_is_logit_normal():
    sigmas = objective.sample_sigmas(20000, 256, "sigmoid", objective.generator(0, "x"))
    statistic = stats.kstest(torch.logit(sigmas.double()).numpy(), "norm")
    assert statistic.pvalue > 0.01


def test_resolution_shift_moves_the_logit_by_its_logarithm():
    """logit(σ') = logit(σ) + ln s, so the logit-normal's mean becomes μ."""
    plain = objective.sample_sigmas(100, 4096, "sigmoid", objective.generator(0, "x"))
    shifted = objective.sample_sigmas(100, 4096, "resolution_shift", objective.generator(0, "x"))
    torch.testing.assert_close(torch.logit(shifted.double()), torch.logit(plain.double()) + 1.15, atol=1e-4, rtol=1e-4)


def test_noising_target_and_loss_by_hand():
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), -4.0)
    noisy = objective.add_noise(latents, noise, torch.tensor([0.0, 0.25]))
    assert noisy.flatten().tolist() == [2.0, 0.5]
    assert objective.velocity(latents, noise).flatten().tolist() == [-6.0, -6.0]
    pred = torch.tensor([-6.0, -3.0]).view(2, 1, 1, 1)
    assert objective.flow_matching_loss(pred, objective.velocity(latents, noise)).tolist() == [0.0, 9.0]


def test_velocity_leads_from_noise_to_latents():
    """One Euler step of length σ along the velocity undoes the noise exactly."""
    latents, noise, sigma = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3), torch.tensor([0.7])
    noisy = objective.add_noise(latents, noise, sigma)
    torch.testing.assert_close(noisy - sigma * objective.velocity(latents, noise), latents)


def test_generators_depend_on_their_arguments_alone():
    state = torch.random.get_rng_state()
    one, two = (torch.randn(4, generator=objective.generator(1, "a", 2)) for _ in range(2))
    assert one.equal(two)
    assert not one.equal(torch.randn(4, generator=objective.generator(1, "a", 3)))
    assert not one.equal(torch.randn(4, generator=objective.generator(2, "a", 2)))
    assert torch.random.get_rng_state().equal(state)
