"""`python dev.py demo` keeps its word: the LoRA is really learned, and ComfyUI's own nodes show it."""

from __future__ import annotations

import demo
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return demo.run(tmp_path_factory.mktemp("demo"))


def test_the_held_out_loss_falls_by_a_quarter(found):
    validation = dict(found["job"]["validation"])
    assert validation[found["job"]["steps"]] <= 0.75 * validation[0]


def test_overfitting_shows_in_the_other_curve(found):
    losses = [loss for _, loss in found["overfit"]]
    assert losses[0] == pytest.approx(found["job"]["validation"][0][1]), "the same base, images and noise"
    assert losses[-1] > 1.05 * min(losses)


def test_the_judge_can_tell_the_styles_and_sees_the_lora_in_the_pictures(found):
    assert found["accuracy"] >= 0.9
    assert found["LoRA 1.0"] >= 0.65
    assert found["base"] <= 0.25


def test_comfyui_loads_the_lora_whole(found):
    assert found["lora"].exists() and found["listed"]
    assert "lora key not loaded" not in found["log"]


def test_the_picture_has_a_row_for_each_prompt_and_three_columns(found):
    page = np.asarray(Image.open(found["picture"]).convert("L"))
    edge, left, top = 136, 210, 34
    assert page.shape == (top + demo.ROWS * edge + 8, left + 3 * edge + 8)
    for row in range(demo.ROWS):
        cells = [page[top + row * edge:][:128, left + column * edge:][:, :128] for column in range(3)]
        assert all(cell.std() > 10 for cell in cells), "a picture, not a blank"
        assert not np.array_equal(cells[0], cells[2])
