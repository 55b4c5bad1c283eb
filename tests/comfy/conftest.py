from __future__ import annotations

import comfy.sd
import pytest
import torch
from comfy.taesd.taesd import TAESD
from livelora.trainer.comfy.demo_model import make_clip
from livelora.trainer.comfy.model import ComfyHost
from tiny_flux import load_flux, random_flux


@pytest.fixture(scope="session")
def flux_state() -> dict[str, torch.Tensor]:
    return random_flux()


@pytest.fixture
def patcher(flux_state):
    return load_flux(flux_state)


@pytest.fixture(scope="session")
def clip():
    return make_clip()


@pytest.fixture(scope="session")
def random_vae():
    """A VAE of the right shape with random weights."""
    draw = torch.Generator().manual_seed(1)
    state = {name: torch.randn(value.shape, generator=draw) / max(1, value[0].numel()) ** 0.5 if value.ndim > 1
             else torch.zeros(value.shape) for name, value in TAESD(latent_channels=16).state_dict().items()}
    return comfy.sd.VAE(sd={**state, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)})


@pytest.fixture
def host(patcher, clip, random_vae):
    return ComfyHost(patcher, clip, random_vae)
