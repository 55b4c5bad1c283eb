"""A recipe reports all its problems at once, each with the value and what to do."""

from __future__ import annotations

import pytest
from livelora.trainer.config import PRESETS, TrainConfig

WRONG = [
    ({"steps": 0}, "steps must be at least 1, got 0."),
    ({"rank": 0}, "rank must be at least 1, got 0."),
    ({"rank": -4}, "rank must be at least 1, got -4."),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0."),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0."),
    ({"alpha": -1.0}, "alpha must be at least 0, got -1.0."),
    ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1."),
    ({"max_grad_norm": -1.0}, "max_grad_norm must be at least 0, got -1.0."),
    ({"guidance": -1.0}, "guidance must be at least 0, got -1.0."),
    ({"save_every": 0}, "save_every must be at least 1, got 0."),
    ({"validate_every": 0}, "validate_every must be at least 1, got 0."),
    ({"lr_warmup_steps": -1}, "lr_warmup_steps must be at least 0, got -1."),
    ({"lr_warmup_steps": 11}, "lr_warmup_steps (11) is longer than the run (10 steps). Choose fewer"),
    ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0. A usual value is 0.0001."),
    ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan."),
    ({"optimizer": "SGD"}, "optimizer must be one of AdamW8bit, AdamW, got 'SGD'."),
    ({"lr_scheduler": "step"}, "lr_scheduler must be one of cosine, linear, constant, got 'step'."),
    ({"timestep_sampling": "beta"}, "timestep_sampling must be one of sigmoid, resolution_shift, got 'beta'."),
    ({"target_modules": "mlp"}, "target_modules must be one of all, attention and mlp, attention, got 'mlp'."),
    ({"adapter_dtype": "fp8"}, "adapter_dtype must be one of fp32, bf16, got 'fp8'."),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_each_problem_is_named(change, message):
    with pytest.raises(ValueError) as caught:
        TrainConfig(**{"steps": 10, "rank": 4, **change})
    assert message in str(caught.value)


def test_all_problems_come_together():
    with pytest.raises(ValueError) as caught:
        TrainConfig(steps=0, rank=0, learning_rate=-1.0, optimizer="SGD")  # type: ignore[arg-type]
    assert str(caught.value).count("\n- ") == 4


def test_alpha_of_zero_means_rank():
    assert TrainConfig(steps=1, rank=16).lora_alpha == 16
    assert TrainConfig(steps=1, rank=16, alpha=8).lora_alpha == 8


def test_presets_are_what_practitioners_use():
    assert PRESETS["character"].rank == 16 and 1000 <= PRESETS["character"].steps <= 1500
    assert 24 <= PRESETS["style"].rank <= 32 and 2000 <= PRESETS["style"].steps <= 3000
    assert 32 <= PRESETS["concept"].rank <= 64
