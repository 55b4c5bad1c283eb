"""What nodes do with a choice that is none, over a link or in a dynamic combo, where ComfyUI does not look."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import execution
import pytest
import torch
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from hypothesis import given, settings
from hypothesis import strategies as st
from livelora.nodes.choices import CHECKED_ELSEWHERE
from livelora.nodes.dataset_images import DatasetFromImages

HERE = Path(__file__).parents[2] / "nodes"
MODULES = [importlib.import_module(f"livelora.nodes.{path.stem}") for path in sorted(HERE.glob("[a-z]*.py"))]
NODES = [found for module in MODULES for found in vars(module).values()
         if isinstance(found, type) and issubclass(found, io.ComfyNode) and found.__module__ == module.__name__]


def choices(inputs: Iterable[io.Input], way: dict[str, Any], prefix: str = "") -> Iterator[tuple[dict, str, list]]:
    """Every choice among some inputs: what is written for it to be there, its name in a workflow, and its options."""
    for entry in inputs:
        name = prefix + entry.id
        if isinstance(entry, io.DynamicCombo.Input):
            yield way, name, [option.key for option in entry.options]
            for option in entry.options:
                yield from choices(option.inputs, {**way, name: option.key}, f"{name}.")
        elif isinstance(entry, io.Combo.Input) and entry.id not in CHECKED_ELSEWHERE:
            yield way, name, entry.options


ALL = [(node, *choice) for node in NODES for choice in choices(node.define_schema().inputs, {})]
NEEDED = {"Train": {"preset": "style"}, "Live": {"which": "best"}, "Grid": {"columns": "steps"},
          "Captioner": {"engine.preset": "general"}}
LEFT_OUT = {("Live", "which"), ("Grid", "columns")}
"""Choices whose wrong value ComfyUI tells to nobody. They are refused in `validate_inputs`, before anything runs."""


def run(node: type[io.ComfyNode], inputs: dict[str, Any]) -> None:
    """Runs a node as ComfyUI does once its inputs are there. A value that is written here is one that came over a link:
    ComfyUI has checked those that are written before."""
    prompt = DynamicPrompt({"7": {"class_type": node.define_schema().node_id, "inputs": inputs}})
    values, _, dynamic = execution.get_input_data(inputs, node, "7", None, prompt)
    running = execution._async_map_node_over_list("prompt", "7", node, values, node.FUNCTION, v3_data=dynamic)
    with ThreadPoolExecutor(1) as other:  # in this thread, Playwright's loop runs if browser tests came before
        other.submit(asyncio.run, running).result()


def test_each_kind_of_choice_is_among_them():
    names = {(node.__name__, name) for node, _, name, _ in ALL}
    assert {("Train", "preset"), ("Train", "mode"), ("Train", "loss"), ("Live", "which"), ("Grid", "columns"),
            ("Captioner", "engine"), ("Captioner", "engine.preset"), ("DatasetFromImages", "crop"),
            ("MergeLoras", "lora_b"), ("SamplePreview", "scheduler")} <= names
    assert len(NODES) == 13


@settings(max_examples=60)
@given(st.sampled_from(ALL), st.data())
def test_a_value_that_is_no_option_is_refused_with_the_options(choice, data):
    node, way, name, options = choice
    near = st.sampled_from([str(option) for option in options] or ["none"]).flatmap(
        lambda option: st.sampled_from([option.upper(), f"{option} ", option[:-1], [option]]))
    value = data.draw((near | st.text() | st.none() | st.integers() | st.dictionaries(st.text(), st.text())).filter(
        lambda value: value not in options))
    with pytest.raises(ValueError) as caught:
        run(node, {**way, name: value})
    told = str(caught.value)
    [line] = [line for line in told.split("\n") if line.startswith(f"{name.split('.')[-1]} must be one of ")]
    assert all(option in line for option in options[:20])
    if (node.__name__, name) not in LEFT_OUT:
        assert f", got {repr(value)[:80]}" in line


def test_every_option_is_taken():
    for node, way, name, options in ALL:
        for option in options:
            with pytest.raises(TypeError, match="missing .* required"):  # for it has no other inputs
                run(node, {**NEEDED.get(node.__name__, {}), **way, name: option})


def test_conditioning_with_more_than_text_is_refused():
    """What ReferenceLatent and ConditioningSetMask add would be left out. What FluxGuidance adds is the recipe's."""
    text = {"pooled_output": torch.zeros(1, 8), "guidance": 3.5, "reference_latents": [torch.zeros(1, 16, 8, 8)],
            "mask": torch.ones(1, 8, 8), "attention_mask": None}
    with pytest.raises(ValueError, match="holds mask, reference_latents as well, which training would leave out"):
        DatasetFromImages.execute([64], ["ohwx"], ["refuse"], images=[torch.zeros(1, 64, 64, 3)],
                                  conditioning=[[[torch.zeros(1, 4, 8), text]]])


def test_latents_with_a_mask_are_refused():
    latents = {"samples": torch.zeros(1, 16, 8, 8), "noise_mask": torch.ones(1, 1, 64, 64)}
    with pytest.raises(ValueError, match="hold a noise_mask as well, which training would leave out"):
        DatasetFromImages.execute([64], ["ohwx"], ["refuse"], latents=[latents], captions=["a cat"])
