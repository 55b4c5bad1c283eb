"""The adapters of tests/comfy once more, with the model, the text encoders and the VAE on the card."""

# ruff: noqa: F403
from test_adapters import *
