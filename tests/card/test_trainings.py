"""The trainings of tests/comfy once more, with the model, the text encoders and the VAE on the card."""

# ruff: noqa: F403
from test_against_diffusers import *
from test_host import *
from test_quantized import *
from test_recipe import *
from test_sampling import *
from test_view import *

del test_ksampler_draws_nearly_the_same_and_a_lora_on_top_does_nearly_what_it_does_without  # noqa: F821
del test_it_answers_the_same_when_half_of_it_is_streamed  # noqa: F821
"""A LoRA on quantized weights is rounded with the device's random numbers; the bounds are for those of the CPU."""
