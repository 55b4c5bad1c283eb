"""A run that is killed again and again ends with the very bits of one that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from livelora.trainer.jobs.book import Book
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.task import Task
from PIL import Image
from reading import read

SCRIPT = Path(__file__).parents[1] / "support" / "train.py"
TIMES = ("seconds", "spent", "of_peak")
"""What a line of the metrics says of time."""
RECIPE = {"steps": 64, "rank": 8, "learning_rate": 1e-3, "optimizer": "AdamW8bit", "batch_size": 2,
          "gradient_accumulation_steps": 2, "ema_decay": 0.9, "caption_dropout": 0.3, "caption_shuffle": "tags",
          "dropout": 0.1, "lr_scheduler": "cosine", "lr_warmup_steps": 5, "held_out": 1, "validate_every": 7,
          "save_every": 4, "stratified_timesteps": True}

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue", "white", "black", "orange")):
        Image.new("RGB", (64, 64 if number % 2 else 96), color).save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"ohwx, {color}, flat, plain")
    return folder


class Trainings:
    """The process that forks one for each training."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._process = subprocess.Popen([sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True)
        assert self._answer() == "ready"

    def start(self, home: Path, images: Path, dtype: str, recipe: dict) -> int:
        """Begins a training and gives its process's number."""
        self._output.write_text("")
        job = {"home": str(home), "images": str(images), "dtype": dtype, "recipe": recipe, "output": str(self._output)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def lines(self) -> Iterator[list[str]]:
        """The words of each line that the training prints, as they come."""
        with open(self._output, encoding="utf-8") as file:
            while True:
                line, end = file.readline(), time.monotonic() + 300
                while not line.endswith("\n"):
                    assert time.monotonic() < end, "the training says nothing any more"
                    time.sleep(0.002)
                    line += file.readline()
                yield line.split()

    def status(self) -> int:
        """Waits for its end; below 0 it is the signal that ended it."""
        return int(self._answer())

    def finish(self, *task) -> str:
        """Trains to the end, and gives the last line."""
        self.start(*task)
        assert self.status() == 0
        return self._output.read_text(encoding="utf-8").splitlines()[-1]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> str:
        answer = self._process.stdout.readline().strip()
        assert answer, "the process that forks has ended"
        return answer


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    made = Trainings(tmp_path_factory.mktemp("trainings"))
    yield made
    made.close()


def kill_at_a_random_moment(trainings: Trainings, process: int, draw: random.Random) -> int:
    """Up to five steps after its first, and then somewhere in what follows. Gives the last step it told."""
    step, last = 0, None
    for word in trainings.lines():
        assert word[0] != "ended", f"It came to its end before it could be killed: {word}"
        if word[1] == "training" and int(word[2]) > 0:
            step = int(word[2])
            last = last or step + draw.randrange(5)
        if last and step >= last:
            break
    time.sleep(draw.uniform(0, 0.2))
    os.kill(process, signal.SIGKILL)
    assert trainings.status() == -signal.SIGKILL
    return step


def left(home: Path) -> dict[str, object]:
    """Everything a job leaves, but for times."""
    [folder] = [p for p in home.iterdir() if p.is_dir()]
    found: dict[str, object] = {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "state").rglob("*")
                                if p.is_file()}
    found["metrics"] = [{k: v for k, v in json.loads(line).items() if k not in TIMES}
                        for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for path in folder.rglob("lora*.safetensors"):
        content = path.read_bytes()
        size = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:size])  # safetensors writes its metadata in any order
        found[str(path.relative_to(folder))] = header, content[size:]
    return found


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed by SIGKILL")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ten_kills_change_no_bit(tmp_path, images, trainings, dtype):
    """AdamW8bit, accumulation, EMA, dropouts, shuffled captions, held-out losses: weights, optimizer, schedule,
    average and metrics."""
    recipe = {**RECIPE, "adapter_dtype": "fp32" if dtype == "float32" else "bf16"}
    assert trainings.finish(tmp_path / "straight", images, dtype, recipe) == "ended done Trained 64 steps."
    seed = random.randrange(10**6)
    print(f"the kills' seed is {seed}")
    draw, steps = random.Random(seed), []
    for _ in range(10):
        process = trainings.start(tmp_path / "killed", images, dtype, recipe)
        steps.append(kill_at_a_random_moment(trainings, process, draw))
    print(f"killed after steps {steps}")
    assert trainings.finish(tmp_path / "killed", images, dtype, recipe) == "ended done Trained 64 steps."
    straight, killed = left(tmp_path / "straight"), left(tmp_path / "killed")
    assert straight.keys() == killed.keys() and len(straight) == 13
    assert [name for name in straight if straight[name] != killed[name]] == []


def run(home, host, dataset, **change):
    job = Book(home, Lease()).submit(Task.of(host, TrainConfig(**{**RECIPE, "steps": 8, **change}), dataset))
    assert job.ended.wait(300) and job.state == "done", job.message
    return job


def test_a_finished_job_is_extended_bit_for_bit_where_the_schedule_is_constant(tmp_path, images, host):
    dataset = read(images)
    long = run(tmp_path / "long", host, dataset, steps=12, lr_scheduler="constant")
    short = run(tmp_path / "short", host, dataset, lr_scheduler="constant")
    extended = run(tmp_path / "short", host, dataset, lr_scheduler="constant", extra_steps=4)
    assert extended.id == short.id and extended.message == "Trained 12 steps."
    theirs, ours = left(tmp_path / "long"), left(tmp_path / "short")
    metrics = [line for line in ours.pop("metrics") if (line["step"], "validation" in line) != (8, True)]
    assert metrics == theirs.pop("metrics")  # step 8 was the last one once, and so measured
    assert theirs.keys() == ours.keys()
    for name in theirs:  # but for what the LoRA files tell of the recipe
        assert theirs[name][1:] == ours[name][1:] if "lora" in name else theirs[name] == ours[name], name
    assert run(tmp_path / "short", host, dataset, lr_scheduler="constant").history.step == 12  # nothing is taken back
    assert long.history.step == 12


def test_an_extended_cosine_goes_on_where_the_longer_one_would_be(tmp_path, images, host):
    dataset = read(images)
    run(tmp_path / "long", host, dataset, steps=12)
    run(tmp_path / "short", host, dataset)
    run(tmp_path / "short", host, dataset, extra_steps=4)
    rates = [[line["learning_rate"] for line in left(tmp_path / name)["metrics"] if "loss" in line]
             for name in ("long", "short")]
    assert rates[0][8:] == rates[1][8:] and rates[0][7] != rates[1][7]
