from __future__ import annotations

import numpy as np
import pytest
import torch
from livelora.trainer.jobs.folder import JobFolder
from livelora.trainer.samples.comparison import parse_strengths, saved, spread
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    made = JobFolder(tmp_path / "20261122-cat")
    made.create()
    return made


def write(folder: JobFolder, step: int, index: int, prompt: str, level: float) -> None:
    folder.write_sample(step, index, torch.full((16, 16, 3), level), {"livelora": {"prompt": prompt, "step": step}})


def levels(table) -> list[list[int | None]]:
    return [[picture and picture.getpixel((0, 0))[0] for picture in row] for row in table.cells]


def test_rows_are_prompts_and_columns_are_steps(folder):
    for step in (0, 100, 90):
        for index, prompt in enumerate(("a cat", "a dog")):
            write(folder, step, index, prompt, (step + index) / 255)
    table = saved(folder, 8)
    assert (table.rows, table.columns) == (["a cat", "a dog"], ["step 0", "step 90", "step 100"])
    assert levels(table) == [[0, 90, 100], [1, 91, 101]]


def test_a_picture_that_is_missing_or_broken_leaves_its_cell_empty(folder):
    write(folder, 0, 0, "a cat", 0.2)
    write(folder, 0, 1, "a dog", 0.4)
    write(folder, 10, 1, "a dog", 0.6)
    (folder.path / "samples" / "step_000020_00.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    Image.new("RGB", (8, 8)).save(folder.path / "samples" / "step_000020_01.png")  # not from a job
    assert levels(saved(folder, 8)) == [[51, None, None], [102, 153, None]]


def test_a_prompt_that_changed_has_a_row_for_each_wording(folder):
    write(folder, 0, 0, "a cat", 0.2)
    write(folder, 10, 0, "a red cat", 0.4)
    write(folder, 10, 1, "a dog", 0.6)
    table = saved(folder, 8)
    assert (table.rows, levels(table)) == (["a cat", "a red cat", "a dog"], [[51, None], [None, 102], [None, 153]])


def test_only_the_chosen_steps_are_shown(folder):
    for step in range(0, 101, 10):
        write(folder, step, 0, "a cat", step / 255)
    assert saved(folder, 3).columns == ["step 0", "step 50", "step 100"]
    assert saved(folder, 1).columns == ["step 100"]


def test_a_job_without_samples_is_refused(folder):
    with pytest.raises(ValueError, match="20261122-cat has no samples to show. Wire LoRA Sample Preview into"):
        saved(folder, 8)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 30, 1000])
@pytest.mark.parametrize("most", [2, 3, 8])
def test_columns_are_chosen_as_numpy_would_space_them(count, most):
    steps = [7 * i for i in range(count)]
    found = spread(steps, most)
    places = np.linspace(0, count - 1, min(most, count))
    assert len(set(found)) == min(most, count)
    assert found[-1] == steps[-1] and (most == 1 or found[0] == steps[0])
    assert np.abs(np.array(found) / 7 - places).max() <= 0.5


def test_strengths_are_numbers_between_commas():
    assert parse_strengths("0, 0.5,1,-1.25,") == [0, 0.5, 1, -1.25]
    assert parse_strengths("1e-1") == [0.1]


@pytest.mark.parametrize(("text", "named"), [("0, half, 11, 1", "got 'half', '11'"), ("nan, -inf", "got 'nan', '-inf'"),
                                             (" , ", "got ' , '"), ("0;1", "got '0;1'")])
def test_what_is_no_strength_is_named(text, named):
    with pytest.raises(ValueError, match="strengths are numbers from -10 to 10 with commas between") as caught:
        parse_strengths(text)
    assert named in str(caught.value)
