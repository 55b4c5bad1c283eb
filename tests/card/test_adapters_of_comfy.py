"""The adapters of tests/comfy once more, with the model, the text encoders and the VAE on the card."""

# ruff: noqa: F403
import pytest
from test_adapters import *


@pytest.fixture(autouse=True)
def not_pissa_twice(request):
    """The device draws for PiSSA's start, and only a training seeds it."""
    if request.node.name == "test_checkpointing_changes_no_gradient[PiSSA]":
        pytest.skip("two starts differ, because the card's random numbers go on")
