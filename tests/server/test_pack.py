"""The pack as ComfyUI sees it: loads fast, from any folder name, tells what is missing, documents everything."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import texts
from comfyui import COMFYUI, ROOT, Failed, Server, launched
from graphs import training
from livelora.trainer.disk.packages import PACKAGES
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.settings import about
from texts import inputs

NODES = ["LiveLoraCaption", "LiveLoraDataset", "LiveLoraDatasetFromImages", "LiveLoraDemoModel", "LiveLoraGrid",
         "LiveLoraLive", "LiveLoraMemoryPlan", "LiveLoraMerge", "LiveLoraPreview", "LiveLoraQuantize", "LiveLoraReview",
         "LiveLoraSave", "LiveLoraTrain"]


@pytest.fixture(scope="module")
def infos(server):
    return {name: info for name, info in server.get("/object_info").items() if name.startswith("LiveLora")}


def test_the_nodes_are_there(infos):
    assert sorted(infos) == NODES


def test_everything_has_a_tooltip(infos):
    for node, info in infos.items():
        assert info["description"], node
        assert all(options.get("tooltip") for options in inputs(info).values()), node
        assert all(info["output_tooltips"]), node


def test_every_node_has_a_help_page(infos):
    for node in infos:
        text = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
        assert len(text) > 300, node
        for name in inputs(infos[node]):
            assert f"`{name.split('.')[-1]}`" in text, f"{node}.md does not explain {name}"


def test_locale_entries_and_the_recipes_page_are_those_of_the_schemas(infos):
    """Written by `python dev.py bench texts`; the frontend shows these texts, not the schemas' own."""
    written = json.loads(texts.LOCALES.read_text(encoding="utf-8"))
    assert written == texts.definitions(infos)
    assert texts.RECIPE.read_text(encoding="utf-8") == texts.recipe(infos["LiveLoraTrain"])
    assert written["LiveLoraTrain"]["inputs"]["preset_rank"]["name"] == "rank"


def test_every_value_of_the_recipe_is_an_input_of_lora_train(infos):
    """… and has that default there, but for those that a preset fills in. What is no value of the recipe is listed."""
    options = {name.removeprefix("preset."): given for name, given in inputs(infos["LiveLoraTrain"]).items()}
    recipe = {field.name: field.default for field in fields(TrainConfig)}
    assert {*options} - {*recipe} == {"model", "clip", "vae", "dataset", "preset", "mode", "preview", "validation",
                                      "regularization", "result", "start_from", "sharing"}
    assert not {*recipe} - {*options}
    filled_in = ("steps", "rank", "learning_rate")
    assert {name: options[name]["default"] for name in recipe if name not in filled_in} == {
        name: default for name, default in recipe.items() if name not in filled_in}


def test_every_choice_and_range_of_the_recipe_is_the_inputs(infos):
    options = {name.removeprefix("preset."): given for name, given in inputs(infos["LiveLoraTrain"]).items()}
    for field in fields(TrainConfig):
        known = about(field)
        if known.choices:
            assert options[field.name]["options"] == list(known.choices), field.name
        elif "max" in options[field.name]:
            assert (options[field.name]["min"], options[field.name]["max"]) == (known.low, known.high), field.name
    for name, hint in get_type_hints(TrainConfig).items():
        if get_origin(hint) is Literal:
            assert options[name]["options"] == list(get_args(hint)), name


def test_it_loads_from_a_folder_with_any_name(tmp_path):
    with Server(tmp_path, "--disable-all-custom-nodes", "--whitelist-custom-nodes", "comfyui-live-lora.v2",
                pack_folder="comfyui-live-lora.v2") as server:
        assert sorted(n for n in server.get("/object_info") if n.startswith("LiveLora")) == NODES
        server.run(training(seed=1, steps=1))


@pytest.fixture(scope="module")
def hiding(tmp_path_factory):
    """A server, and a file: the package that it names is hidden from the server's Python. It stands for a package that
    the user did not install."""
    folder = tmp_path_factory.mktemp("hiding")
    hidden = folder / "hidden"
    hidden.touch()
    (folder / "sitecustomize.py").write_text(f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split('.')[0] == open({str(hidden)!r}).read() else find(name, path, target)
PathFinder.find_spec = find_spec
""")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(Server, "launch", staticmethod(launched))
        with Server(folder / "base") as server:
            yield server, hidden


@pytest.mark.parametrize("package", ["peft", "bitsandbytes", "diffusers"])
def test_a_missing_package_is_an_error_when_training_starts_not_a_pack_that_fails_to_load(hiding, package):
    server, hidden = hiding
    hidden.write_text(package)
    with pytest.raises(Failed) as caught:
        server.run(training(seed=1))
    assert f"needs the Python package '{package}', which is not installed" in caught.value.message
    assert f'"{sys.executable}" -m pip install {package}' in caught.value.message
    assert "IMPORT FAILED" not in server.log()


@pytest.fixture(scope="module")
def loaded():
    """What the pack's root package tells when it is loaded in a process of its own, for it needs a whole ComfyUI."""
    script = Path(__file__).parents[1] / "support" / "load_pack.py"
    done = subprocess.run([sys.executable, str(script)], cwd=COMFYUI, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_schema_ids_are_the_parameters_of_execute(loaded):
    assert len(loaded["nodes"]) == len(NODES)
    for node, (schema, parameters, takes_more) in loaded["nodes"].items():
        if takes_more:
            assert set(parameters) <= set(schema), node
        else:
            assert schema == parameters, node


def test_loading_the_pack_imports_no_package_that_only_training_needs(loaded):
    """They would cost each start of ComfyUI some seconds."""
    assert not {*loaded["imported"]} & {*PACKAGES, "onnxruntime", "tensorboard", "pytorch_optimizer", "av"}
