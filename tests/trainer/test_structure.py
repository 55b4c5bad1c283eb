"""The house: imports point downwards and never in circles, nothing is written that the registry forbids."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = {"comfy", "folder_paths", "comfy_execution", "comfy_extras", "execution"}
FLOORS = ("disk", "model", "lora", "recipe", "data", "training", "jobs", "samples", "captioning", "comfy")
"""The packages of `trainer`, from the ground up: each imports from those before it alone."""
SHIPPED = [p for folder in ("trainer", "nodes") for p in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "__init__.py"]
FAMILY_WORDS = re.compile(r"(?i:flux|double|single|\b16 (latent )?channels)|\bPATCH\b")
"""What only one model family has, or says."""
ABOUT_FAMILIES = {"trainer/comfy/demo_model.py", "nodes/demo_model.py", "__init__.py",
                  *(str(p.relative_to(ROOT)) for p in (ROOT / "trainer/comfy/families").glob("*.py"))}


def name_of(path: Path) -> str:
    """`trainer/lora/file.py` → `trainer.lora.file`; a package by its own name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in SHIPPED}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, for types alone as well, ours by their names from the root; and whether that happens
    when the file itself is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top, package = {id(n) for n in tree.body}, path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[:len(package) - node.level + 1], *filter(None, [node.module]))
                            if node.level else [node.module or ""])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base, id(node) in top


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One that is in a graph; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node):], node]
        if node not in done:
            for other in sorted(graph.get(node, ())):
                if found := walk(other, [*way, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


OURS = {name: {other for other, _ in imports(path) if other in MODULES and other != name}
        for name, path in MODULES.items()}


def test_no_modules_import_each_other_in_a_circle():
    assert circle(OURS) == []


@pytest.mark.parametrize("package", sorted({name_of(path.parent / "__init__.py") for path in SHIPPED} - {""}))
def test_no_packages_import_each_other_in_a_circle(package):
    """What lies side by side in a package, modules and packages, each with all that is in it."""
    graph: dict[str, set[str]] = {}
    for name, others in OURS.items():
        for other in others:
            one, two = (n.removeprefix(f"{package}.").split(".")[0] if n.startswith(f"{package}.") else ""
                        for n in (name, other))
            if one and two and one != two:
                graph.setdefault(one, set()).add(two)
    assert circle(graph) == []


def test_a_circle_would_be_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_each_package_has_its_floor():
    assert {p.parent.name for p in (ROOT / "trainer").glob("*/__init__.py")} == {*FLOORS}


@pytest.mark.parametrize("name", sorted(name for name in OURS if name.count(".") > 1 and name.startswith("trainer.")))
def test_no_package_of_the_engine_imports_one_above_it(name):
    floor = FLOORS.index(name.split(".")[1])
    above = {other for other in OURS[name] if other.startswith("trainer.") and other.count(".")
             and FLOORS.index(other.split(".")[1]) > floor}
    assert not above


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
            assert first != "nodes", f"{where} imports {name} from above"


@pytest.mark.parametrize("path", [p for p in SHIPPED if str(p.relative_to(ROOT)) not in ABOUT_FAMILIES],
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_only_a_familys_own_file_knows_it(path):
    """Not even as an English word, so that a search finds nothing."""
    lines = path.read_text(encoding="utf-8").split("\n")
    found = [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if FAMILY_WORDS.search(line)]
    assert not found


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


def test_tests_mirror_the_engine():
    """Each package that has tests of its own has them under its own name."""
    here = ROOT / "tests" / "trainer"
    tested = {p.parent.relative_to(here) for p in here.rglob("test_*.py")} - {Path()}
    assert not {str(place) for place in tested if not (ROOT / "trainer" / place / "__init__.py").exists()
                and place != Path("data")}


def test_requirements_are_lower_bounds_and_leave_torch_alone():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert all(">=" in line and "==" not in line and "<" not in line for line in lines)
    assert not [line for line in lines if line.split(">")[0] in ("torch", "torchvision", "numpy", "transformers")]
    assert all(f'"{line}"' in (ROOT / "pyproject.toml").read_text() for line in lines)
