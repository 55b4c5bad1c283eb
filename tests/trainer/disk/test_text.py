"""How a count is written."""

from __future__ import annotations

import pytest
from livelora.trainer.disk.text import counted


@pytest.mark.parametrize(("number", "written"), [(0, "0 mask pictures"), (1, "1 mask picture"), (2, "2 mask pictures")])
def test_a_noun_agrees_with_its_number(number, written):
    assert counted(number, "mask picture") == written
