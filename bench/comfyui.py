"""A real ComfyUI server for the demo, the benchmarks and the tests: started, spoken to over HTTP, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ""))
FOLDERS = ("models/loras", "models/diffusion_models", "models/vae", "input", "output", "user", "temp", "custom_nodes")


class Refused(Exception):
    """The server did not accept a prompt, or not all of it. `errors` is its answer."""

    def __init__(self, errors: dict) -> None:
        super().__init__(json.dumps(errors, indent=1)[:2000])
        self.errors = errors


class Failed(Exception):
    """A prompt ended with an error or was interrupted. `message` is what a person would read."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def launched(command: list[str], log: IO[str], cwd: Path) -> subprocess.Popen:
    """A process that prints into a log."""
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd)


class Server:
    """ComfyUI on a free port, its models, inputs and outputs in `base`, `pack` as a custom node."""

    launch: Callable[[list[str], IO[str], Path], Any] = staticmethod(launched)
    """How its process is started."""

    def __init__(self, base: Path, *arguments: str, pack_folder: str = "livelora", pack: Path = ROOT) -> None:
        self.base, self.arguments, self.log_path = base, arguments, base / "comfyui.log"
        for name in FOLDERS:
            (base / name).mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / pack_folder
        if not link.exists():
            link.symlink_to(pack, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.client_id = f"http://127.0.0.1:{self.port}", uuid.uuid4().hex
        self.process: Any = None
        self.user = ""
        """The id in whose name everything is asked, where it has several users."""

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, seconds: float = 180) -> None:
        """Starts the server and waits until it answers. Raises RuntimeError with its log if it does not."""
        command = [sys.executable, str(COMFYUI / "main.py"), "--cpu", "--port", str(self.port), "--base-directory",
                   str(self.base), "--database-url", f"sqlite:///{self.base / 'comfyui.db'}", "--disable-api-nodes",
                   *self.arguments]
        with self.log_path.open("a") as log:
            self.process = self.launch(command, log, self.base)
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server and waits for its end."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self) -> str:
        """All that the server has printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def get(self, path: str) -> Any:
        """The JSON answer to a GET; for pictures, the bytes."""
        with urllib.request.urlopen(self._request(path), timeout=60) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body

    def post(self, path: str, content: dict | None = None) -> Any:
        """The JSON answer to a POST. Raises Refused with the server's own JSON if it says 400."""
        try:
            with urllib.request.urlopen(self._request(path, content or {}), timeout=60) as answer:
                body = answer.read()
                return json.loads(body) if body.strip().startswith((b"{", b"[")) else body
        except urllib.error.HTTPError as err:
            if err.code == 400:
                raise Refused(json.loads(err.read())) from err
            raise

    def _request(self, path: str, content: dict | None = None) -> urllib.request.Request:
        headers = {"Comfy-User": self.user} if self.user else {}
        if content is None:
            return urllib.request.Request(self.url + path, headers=headers)
        return urllib.request.Request(self.url + path, json.dumps(content).encode(),
                                      headers | {"Content-Type": "application/json"})

    def queue(self, graph: dict) -> str:
        """Sends a graph in API form and gives its prompt id. Raises Refused if any of its nodes cannot run; ComfyUI
        runs the rest."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": self.client_id})
        if answer["node_errors"]:
            raise Refused(answer)
        return answer["prompt_id"]

    def result(self, prompt_id: str, seconds: float = 600) -> dict:
        """Waits for a prompt and gives its outputs by node. Raises Failed with the error's text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry["status"]["completed"]:
                return entry["outputs"]
            if entry:
                messages = {kind: facts for kind, facts in entry["status"]["messages"]}
                error = messages.get("execution_error")
                raise Failed(error["exception_message"] if error else f"interrupted ({', '.join(messages)})")
            if self.process and self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.log()[-3000:]}")
            time.sleep(0.1)
        raise TimeoutError(f"Prompt {prompt_id} took more than {seconds} s")

    def run(self, graph: dict, seconds: float = 600) -> dict:
        """Sends a graph and waits for its outputs."""
        return self.result(self.queue(graph), seconds)

    def image(self, entry: dict) -> bytes:
        """The file behind an image that an output lists."""
        query = urllib.parse.urlencode({name: entry[name] for name in ("filename", "subfolder", "type")})
        return self.get(f"/view?{query}")

    def to_api(self, workflow: dict) -> dict:
        """A workflow as it is saved (UI form) → as it is sent (API form), as the frontend's graphToPrompt does."""
        infos, links = self.get("/object_info"), {link[0]: link for link in workflow["links"]}
        graph = {}
        for node in workflow["nodes"]:
            if node["type"] not in infos or node.get("mode", 0) in (2, 4):
                continue  # notes, muted and bypassed nodes
            info, values = infos[node["type"]], list(node.get("widgets_values") or [])
            inputs = _widgets(info["input"], values, "")
            for slot in node.get("inputs", []):
                if slot.get("link") is not None:
                    _, origin, origin_slot, *_ = links[slot["link"]]
                    inputs[slot["name"]] = [str(origin), origin_slot]
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        return graph


def _widgets(spec: dict, values: list, prefix: str) -> dict:
    """Takes a node's widget values off `values`, in the order of its inputs; a dynamic combo's own follow its
    choice."""
    found = {}
    for name, (kind, *rest) in [*spec.get("required", {}).items(), *spec.get("optional", {}).items()]:
        options = rest[0] if rest else {}
        if kind == "COMFY_DYNAMICCOMBO_V3" and values:
            found[prefix + name] = choice = values.pop(0)
            inner = next(o["inputs"] for o in options["options"] if o["key"] == choice)
            found |= _widgets(inner, values, f"{prefix}{name}.")
        elif isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            if options.get("forceInput") or not values:
                continue
            found[prefix + name] = values.pop(0)
            if options.get("control_after_generate", name in ("seed", "noise_seed")):
                values.pop(0)
    return found
