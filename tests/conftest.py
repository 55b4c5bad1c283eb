"""The checkout as the package `livelora`, without running its root `__init__` (that one needs ComfyUI's node API), and
the real ComfyUI that `dev.py` made, on the CPU; which tests run first, and how servers start."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ""))

package = types.ModuleType("livelora")
package.__path__ = [str(ROOT)]
sys.modules["livelora"] = package
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests" / "support")]

if not (COMFYUI / "main.py").exists():
    sys.exit("COMFYUI_PATH names no ComfyUI. Run the tests with: python dev.py test")
sys.path.insert(0, str(COMFYUI))

import pytest  # noqa: E402
from comfy.cli_args import args  # noqa: E402
from comfyui import Server  # noqa: E402
from forked import Parent  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from PIL import ImageFont  # noqa: E402
from trainings import wait_for as wait_for_job  # noqa: E402

# A shell that runs us in the background ignores Ctrl+C, and so would the servers that are told to end by it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine may take any time for an example.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
args.cpu = True  # before anything asks for a device

LONGEST = ("card/", "test_demo", "test_chaos", "test_crash", "web/", "test_resume")
"""Files that take longest. They run first, so that no process is left alone with one of them at the end. The card comes
before all others: PyTorch must not have computed a gradient in the process that its tests are forked from."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts files, and leaves the tests of a file in their order."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def forked_servers():
    """Where a process can fork, servers begin with their libraries loaded already."""
    if not sys.platform.startswith("linux"):
        yield
        return
    parent = Parent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "launch", staticmethod(parent.launch))
        yield
    parent.close()


@pytest.fixture
def wait_for():
    """Waits until a job says something, and gives all that it says then."""
    return wait_for_job


@pytest.fixture
def system_font():
    """Passes over a test where the system has no font for more letters than pillow's own."""
    try:
        ImageFont.truetype("DejaVuSans.ttf", 13)
    except OSError:
        pytest.skip("this machine has no DejaVu Sans")
