"""The trainings of tests/comfy once more, with the model, the text encoders and the VAE on the card."""

# ruff: noqa: F403
from test_against_diffusers import *
from test_host import *
from test_quantized import *
from test_recipe import *
from test_sampling import *
from test_view import *

del test_ksampler_draws_nearly_the_same_and_a_lora_on_top_does_nearly_what_it_does_without  # noqa: F821
"""NF4's random rounding of a LoRA differs with the device's random numbers; its bound is for those of the CPU."""
