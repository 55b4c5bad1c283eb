"""The trainings of tests/comfy once more, with the model, the text encoders and the VAE on the card."""

# ruff: noqa: F403
from test_against_diffusers import *
from test_host import *
from test_quantized import *
from test_recipe import *
from test_sampling import *
from test_view import *
