"""The house: imports point downwards, nothing is written that the registry forbids."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = {"comfy", "folder_paths", "comfy_execution", "comfy_extras", "execution"}
SHIPPED = [p for folder in ("trainer", "nodes") for p in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "__init__.py"]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, relative ones as paths below the root; and whether that happens on import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(n) for n in tree.body}
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "/".join(package[:len(package) - node.level + 1]) + "/" if node.level else ""
            names = [node.module.replace(".", "/")] if node.module and node.level else [node.module or ""]
            if node.level and not node.module:
                names = [alias.name for alias in node.names]
            yield from ((base + name, id(node) in top) for name in names)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    where = path.relative_to(ROOT)
    for name, _ in imports(path):
        first = name.split(".")[0]
        if first in COMFYUI:
            assert where.parts[:2] == ("trainer", "comfy"), f"{where} imports {name}: only trainer/comfy may"
        if first == "server":
            assert where == Path("nodes/routes.py"), f"{where} imports PromptServer: only nodes/routes.py may"
        if first == "comfy_api":
            assert where.parts[0] in ("nodes", "__init__.py"), f"{where} imports {name}: only nodes may"
        if where.parts[0] == "trainer":
            assert not name.startswith("nodes"), f"{where} imports {name} from above"
            if where.parts[1] != "comfy":
                assert not name.startswith("trainer/comfy"), f"{where} imports {name}: trainer reaches it through Host"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_load_when_training_starts(path):
    heavy = ("peft", "bitsandbytes", "diffusers", "transformers", "accelerate", "pytorch_optimizer")
    assert not [n for n, at_import in imports(path) if n.split(".")[0] in heavy]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_the_registry_forbids(path):
    """No subprocess, network, environment changes, pickle, eval or exec in what is shipped."""
    forbidden = {"subprocess", "requests", "urllib", "http", "socket", "pickle", "huggingface_hub"}
    assert not {name.split(".")[0] for name, _ in imports(path)} & forbidden
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "torch.load", "torch.save", "print"), f"{path}: {called}"
        if isinstance(node, (ast.Assign, ast.Delete)):
            assert "environ" not in ast.unparse(node)


def test_files_are_short():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SHIPPED}
    assert not {name: length for name, length in lengths.items() if length > 300}


def test_requirements_are_lower_bounds_and_leave_torch_alone():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert all(">=" in line and "==" not in line and "<" not in line for line in lines)
    assert not [line for line in lines if line.split(">")[0] in ("torch", "torchvision", "numpy", "transformers")]
    assert all(f'"{line}"' in (ROOT / "pyproject.toml").read_text() for line in lines)
