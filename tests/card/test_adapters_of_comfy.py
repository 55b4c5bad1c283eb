"""The adapters of tests/comfy once more, with the model, the text encoders and the VAE on the card."""

# ruff: noqa: F403
import pytest
from test_adapters import *


@pytest.fixture(autouse=True)
def not_pissa(request):
    """PEFT puts PiSSA's matrices into parameters of the CPU, which PyTorch lets real devices alone do."""
    if "PiSSA" in request.node.name and {"host", "bases"} & {*request.fixturenames}:
        pytest.skip("PyTorch does not let the card's data into a parameter of the CPU")
