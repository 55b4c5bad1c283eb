"""The fixtures of the tests inside ComfyUI: a tiny FLUX.1 with random weights, its CLIP and VAE, and a host of them."""

from __future__ import annotations

import importlib

import pytest
import tiny_flux
import torch
from livelora.trainer.comfy.demo_model import make_clip
from livelora.trainer.comfy.host import ComfyHost
from tiny_flux import load_flux, random_flux

importlib.import_module("utils.install_util")  # before ComfyUI puts its comfy/utils.py in front, as its main.py does


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
    return tiny_flux.random_vae()


@pytest.fixture
def host(patcher, clip, random_vae):
    return ComfyHost(patcher, clip, random_vae)
