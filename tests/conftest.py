"""The checkout as the package `livelora`, without running its root `__init__` (that one needs ComfyUI's node API), and
the real ComfyUI that `dev.py` made, on the CPU."""

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

from comfy.cli_args import args  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# A shell that runs us in the background ignores Ctrl+C, and so would the servers that are told to end by it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine may take any time for an example.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
args.cpu = True  # before anything asks for a device
