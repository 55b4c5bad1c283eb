"""Trains jobs to their end as `test_resume.py` asks for it, each in a process of its own that can be killed.

Loading PyTorch, ComfyUI and a model takes much longer than such a training. So this process does it once, and forks for
each job that it reads from its input, a line of JSON each. A job's process prints each of its steps to a file; its
number is answered when it begins, its exit status when it has ended."""

import gc
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: E402, F401  the package and ComfyUI
import torch  # noqa: E402

torch.set_num_threads(1)  # a pool of threads would not survive the fork

from livelora.trainer.comfy.demo_model import make_clip  # noqa: E402
from livelora.trainer.comfy.host import ComfyHost  # noqa: E402
from livelora.trainer.disk.packages import load_all  # noqa: E402
from livelora.trainer.jobs.book import Book  # noqa: E402
from livelora.trainer.jobs.lease import Lease  # noqa: E402
from livelora.trainer.recipe.config import TrainConfig  # noqa: E402
from livelora.trainer.training.optim import packages_for  # noqa: E402
from livelora.trainer.training.task import Task  # noqa: E402
from reading import read  # noqa: E402
from tiny_flux import load_flux, random_flux, random_vae  # noqa: E402


def train(host: ComfyHost, home: str, images: str, dtype: str, recipe: dict) -> None:
    host.dtype = getattr(torch, dtype)
    job = Book(Path(home), Lease()).submit(Task.of(host, TrainConfig(**recipe), read(Path(images), resolution=32)))
    job.listeners.append(lambda job, event, _: print(event, job.state, job.history.step, flush=True))
    job.ended.wait()
    print("ended", job.state, job.message, flush=True)


def main() -> None:
    load_all(packages_for(TrainConfig(steps=1, rank=1, ema_decay=0.9)))
    host = ComfyHost(load_flux(random_flux(hidden_size=128, num_heads=1)), make_clip(), random_vae())
    answers = os.fdopen(os.dup(1), "w")
    gc.freeze()  # a fork that collects garbage would copy every page of it
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(job.pop("output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            train(host, **job)
            os._exit(0)
        print(child, file=answers, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
