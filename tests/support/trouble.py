"""What a server is put through, and what must be whole afterwards. Linux only: one process sets another's limits."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from comfyui import ROOT, Server
from PIL import Image
from safetensors.torch import load_file


def troubled_server(base: Path, *arguments: str) -> Server:
    """One with the troublemaker's nodes; not started yet."""
    server = Server(base, *arguments)
    link = base / "custom_nodes" / "troublemaker"
    link.symlink_to(ROOT / "tests" / "support" / "troublemaker", target_is_directory=True)
    return server


def failing(error: str, seed: int) -> dict:
    """A prompt that raises."""
    return {"fail": {"class_type": "TroublemakerFail", "inputs": {"error": error, "seed": seed}}}


def dawdling(seconds: float, seed: int) -> dict:
    """A prompt that takes its time."""
    return {"dawdle": {"class_type": "TroublemakerDawdle", "inputs": {"seconds": seconds, "seed": seed}}}


@contextlib.contextmanager
def full_disk(server: Server, most: int) -> Iterator[None]:
    """While inside, the kernel lets the server write no file beyond `most` bytes (EFBIG)."""
    pid = server.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[str]:
    """While inside, nothing can be made, renamed or removed in a job's folder, neither by root, whom chmod does not
    stop. Where the file system has no immutable files, only the states' folder is out of the way. Tells how."""
    folders = [str(p) for p in (folder, *folder.iterdir()) if p.is_dir() and p.suffix != ".tmp"]
    modes = {p: os.stat(p).st_mode for p in folders}
    root = os.geteuid() == 0
    if root and subprocess.run(["chattr", "+i", *folders], capture_output=True).returncode:
        subprocess.run(["chattr", "-i", *folders], capture_output=True)
        states, away = folder / "state", folder / "state moved"
        states.rename(away)
        states.touch()
        try:
            yield "a file instead of the states' folder"
        finally:
            states.unlink()
            away.rename(states)
        return
    try:
        if not root:
            for path in folders:
                os.chmod(path, 0o500)
        yield "immutable" if root else "chmod"
    finally:
        if root:
            subprocess.run(["chattr", "-i", *folders], check=True)
        for path, mode in modes.items():
            os.chmod(path, mode)


def health(server: Server, seconds: float = 60) -> dict:
    """What is left of trainings, once nothing is, or after so long: the last of it may just be going."""
    end = time.monotonic() + seconds
    while True:
        found = server.get("/troublemaker/health")
        if found["idle"] and "livelora" not in found["threads"] or time.monotonic() > end:
            return found
        time.sleep(0.1)


def half_written(folder: Path) -> list[str]:
    """Every file below that is temporary, or of which a part is missing."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.name.startswith(".") and path.name != ".lock":
                raise ValueError("a temporary name")
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()]
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".png":
                Image.open(path).load()
        except Exception as err:
            found.append(f"{path.relative_to(folder)}: {err}")
    return found


def same_lora(one: Path, two: Path, name: str = "lora.safetensors") -> bool:
    """Whether two jobs learned the same, bit for bit."""
    ours, theirs = load_file(one / name), load_file(two / name)
    return ours.keys() == theirs.keys() and all(
        ours[n].numpy().tobytes() == theirs[n].numpy().tobytes() and ours[n].dtype == theirs[n].dtype for n in theirs)
