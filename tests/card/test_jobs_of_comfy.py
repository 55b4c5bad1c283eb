"""Jobs of tests/comfy once more, with the model, the text encoders and the VAE on the card."""

# ruff: noqa: F401
from test_job import (
    dataset,
    jobs,
    straight,
    straight_runs,
    test_a_dora_is_told_of_the_model_as_it_is_wired_whatever_a_prompt_has_left_on_it,
    test_a_job_that_was_paused_goes_on_as_if_it_never_had,
    test_a_job_that_was_stopped_goes_on_as_if_it_never_had,
    test_a_job_trains_and_leaves_all_it_promised,
    test_a_model_that_is_unloaded_within_a_step_changes_no_gradient,
    test_an_error_in_a_step_costs_nothing,
    test_previews_do_not_change_training,
)
