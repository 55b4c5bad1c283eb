"""The model where training needs it: brought back when somebody else was there, and not else."""

from __future__ import annotations

import pytest
from livelora.trainer.model.resident import MOST_DISTURBED, Resident


class Device:
    """Stands for a program that has the model on its device, or not. What loads takes time, so loads are counted."""

    def __init__(self) -> None:
        self.there, self.loads = False, []

    def load(self, room: int) -> None:
        self.there = True
        self.loads.append(room)

    def undisturbed(self) -> bool:
        return self.there


def test_it_is_loaded_once_while_nobody_comes():
    device = Device()
    resident = Resident(device, lambda: 7)
    resident.bring()
    assert [resident.run(lambda k=k: k) for k in range(3)] == [0, 1, 2] and device.loads == [7]


def test_after_somebodys_turn_it_is_loaded_again_though_it_seems_to_be_there():
    """It may be patched, or the room beside it taken."""
    device, turns = Device(), [0]
    resident = Resident(device, lambda: 7, lambda: turns[0])
    resident.bring()
    turns[0] = 1
    assert resident.run(lambda: "done") == "done" and len(device.loads) == 2
    assert resident.run(lambda: "done") == "done" and len(device.loads) == 2


def test_work_from_which_it_was_taken_away_is_done_again():
    device, calls = Device(), []

    def work() -> int:
        calls.append(len(calls))
        device.there = len(calls) != 2  # somebody unloads it within the second call
        if len(calls) == 2:
            raise RuntimeError("its weights are gone")
        return calls[-1]

    resident = Resident(device, lambda: 7)
    assert [resident.run(work), resident.run(work)] == [0, 2] and len(device.loads) == 2


def test_an_error_of_the_works_own_is_raised():
    resident = Resident(Device(), lambda: 7)
    with pytest.raises(ZeroDivisionError):
        resident.run(lambda: 1 // 0)


def test_it_gives_up_with_a_sentence_where_somebody_keeps_taking_it_away():
    device = Device()

    def work() -> None:
        device.there = False

    with pytest.raises(RuntimeError, match=f"The model was unloaded during {MOST_DISTURBED} steps in a row."):
        Resident(device, lambda: 7).run(work)
    assert len(device.loads) == MOST_DISTURBED
