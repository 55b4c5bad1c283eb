"""Trains a job to its end in this process, as `test_resume.py` asks for it, and prints each step: to be killed."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: E402, F401  the package and ComfyUI
import torch  # noqa: E402
from livelora.trainer.comfy.demo_model import make_clip  # noqa: E402
from livelora.trainer.comfy.host import ComfyHost  # noqa: E402
from livelora.trainer.jobs.book import Book  # noqa: E402
from livelora.trainer.jobs.lease import Lease  # noqa: E402
from livelora.trainer.recipe.config import TrainConfig  # noqa: E402
from livelora.trainer.training.task import Task  # noqa: E402
from reading import read
from tiny_flux import load_flux, random_flux, random_vae  # noqa: E402


def main(home: Path, images: Path, dtype: str, recipe: dict) -> None:
    host = ComfyHost(load_flux(random_flux()), make_clip(), random_vae())
    host.dtype = getattr(torch, dtype)
    dataset = read(images)
    job = Book(home, Lease()).submit(Task.of(host, TrainConfig(**recipe), dataset))
    job.listeners.append(lambda job, event, _: print(event, job.state, job.history.step, flush=True))
    job.ended.wait()
    print("ended", job.state, job.message, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
