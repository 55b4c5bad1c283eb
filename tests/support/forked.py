"""ComfyUI servers that begin where the libraries are loaded already.

Starting one takes some ten seconds, and most of that is PyTorch and what else ComfyUI imports. So a process imports
them once and then forks for each server. The fork runs ComfyUI's own main.py, from its first line, with its own
arguments."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torchvision", "torchaudio", "torchsde", "transformers", "transformers.models.auto.modeling_auto",
             "transformers.models.clip.tokenization_clip", "transformers.models.llama.tokenization_llama",
             "transformers.models.qwen2.tokenization_qwen2", "transformers.models.t5.tokenization_t5",
             "safetensors.torch", "scipy.stats", "scipy.signal", "einops", "kornia", "spandrel", "av", "PIL.Image",
             "aiohttp.web", "alembic.command", "sqlalchemy.orm", "sqlalchemy.dialects.sqlite", "pydantic.main",
             "pydantic_settings", "peft", "diffusers", "bitsandbytes", "comfy_kitchen")
"""Those that ComfyUI and LiveLoRA import; what is not there is left out."""


class Forked:
    """A server's process, with as much of `subprocess.Popen` as the tests use."""

    def __init__(self, parent: Parent, pid: int) -> None:
        self._parent, self.pid, self.returncode = parent, pid, None

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = self._parent.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        end = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("main.py", timeout or 0)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, how: int) -> None:
        """As one sends it to any process."""
        if self.poll() is None:
            os.kill(self.pid, how)

    def kill(self) -> None:
        """At once."""
        self.send_signal(9)


class Parent:
    """The process that forks. It is started when the first server is."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def launch(self, command: list[str], log: Any, cwd: Path) -> Forked:
        """A server: the Python of `command` is ours, what follows are main.py and its arguments."""
        if self._process is None:
            self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             text=True)
        log.flush()
        task = {"argv": command[1:], "log": log.name, "cwd": str(cwd), "environment": dict(os.environ)}
        return Forked(self, self.ask(task))

    def ask(self, request: dict[str, Any]) -> Any:
        """Its answer."""
        assert self._process and self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Servers that still run go on."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait(60)


def serve() -> None:
    """The loop of the process that forks."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.freeze()  # a fork that collects garbage would copy every page of it
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            done, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        elif (answer := os.fork()) == 0:
            answers.close()
            become(request)
            return
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def become(request: dict[str, Any]) -> None:
    """In the fork: a Python that was started with main.py."""
    log, nothing = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
