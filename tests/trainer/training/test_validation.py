"""What a held-out curve says."""

from __future__ import annotations

from livelora.trainer.training.validation import Curve

FALLING = [0.3] * 20 + [0.2] * 40
"""Training losses of 60 steps."""


def curve(*losses: float) -> Curve:
    return Curve(0.5, [(20 * i, loss) for i, loss in enumerate(losses)])


def test_the_best_step_is_the_lowest_that_was_trained():
    assert curve(0.1, 0.4, 0.3, 0.35).best == (40, 0.3)  # the first is the untrained start
    assert curve(0.5).best is None and Curve().best is None


def test_measurements_since_the_best_are_counted():
    assert [curve(*losses).since_best for losses in ((0.5,), (0.5, 0.4), (0.5, 0.4, 0.3, 0.35, 0.34))] == [0, 0, 2]


def test_overfitting_is_told_in_a_sentence_with_both_curves():
    told = curve(0.5, 0.3, 0.32, 0.34).overfitting(FALLING)
    assert told.startswith("Overfitting: since step 20 the held-out loss has risen from 0.300 to 0.340, while the "
                           "training loss fell from 0.300 to 0.200 on average.")
    assert "set result to 'best'" in told and "train about 20 steps" in told


def test_nothing_is_told_without_both_signs():
    assert curve(0.5, 0.3, 0.28, 0.26).overfitting(FALLING) == ""  # still falling
    assert curve(0.5, 0.3, 0.34).overfitting(FALLING) == ""  # one bad measurement is none
    assert curve(0.5, 0.3, 0.301, 0.302).overfitting(FALLING) == ""  # hardly worse
    assert curve(0.5, 0.3, 0.32, 0.34).overfitting([0.2] * 20 + [0.3] * 40) == ""  # training rises too: it breaks
    assert Curve().overfitting([]) == ""
