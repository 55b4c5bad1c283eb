"""How many bytes a step takes beyond the weights, counted exactly. `-s` prints them by recipe."""

from __future__ import annotations

import gc

import pytest
import softcard as card
from test_refused import RECIPES, make  # noqa: F401

MB = 1024**2
MORE = {
    "all recomputed": {"gradient_checkpointing": "all"},
    "batch 1": {"batch_size": 1},
    "rank 64": {"rank": 64},
    "rank 64, all recomputed": {"rank": 64, "gradient_checkpointing": "all"},
}


@pytest.fixture
def measured(make):  # noqa: F811
    """Gives the bytes that a trainer keeps after its second step, those at the peak of its third, and those that were
    planned."""
    def measured(**recipe) -> tuple[int, int, int]:
        gc.collect()  # what is left of the trainer before: a view has circles of references
        before, trainer = card.used(), make(**recipe)
        trainer.step(), trainer.step()
        kept = card.used() - before
        peak, again = card.peak_of(trainer.step), card.peak_of(trainer.step)
        assert peak == again and card.used() - before == kept
        return kept, kept + peak, trainer.plan.work

    return measured


def test_a_step_takes_what_was_planned_each_time_and_gives_it_back(measured):
    found = {name: measured(**recipe) for name, recipe in {**RECIPES, **MORE}.items()}
    for name, (kept, peak, planned) in found.items():
        print(f"{name:28} keeps {kept / MB:6.2f} MB, peak {peak / MB:6.2f} MB, planned {planned / peak:.3f} of it")
    kept, peaks, planned = ({name: pair[i] for name, pair in found.items()} for i in range(3))
    assert planned == pytest.approx(peaks, rel=0.05)
    assert peaks["AdamW8bit"] > 2 * peaks["all recomputed"] and peaks["AdamW8bit"] > 1.5 * peaks["batch 1"]
    assert kept["AdamW"] > kept["AdamW8bit"] > kept["bf16"] and kept["rank 64"] > 10 * kept["AdamW8bit"]
