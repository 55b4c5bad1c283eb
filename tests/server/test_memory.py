"""The memory plan, where people see it: before a training, while it goes on, and without one."""

from __future__ import annotations

import json
import re

import pytest
from client import newest_job, pixels
from comfyui import Failed, Refused
from graphs import training


def planned(**changes) -> dict:
    """Model, dataset and LoRA Memory Plan."""
    graph = training(0)
    train = graph.pop("train")["inputs"]
    settings = {"card": 0.0, "rank": 4, "adapter": "LoRA", "target_modules": "all", "block_ranks": "",
                "adapter_dtype": "fp32", "optimizer": "AdamW8bit", "ema_decay": 0.0, "batch_size": 1,
                "gradient_accumulation_steps": 1, "gradient_checkpointing": "auto", "leave_free": 0.0, **changes}
    wired = {name: train[name] for name in ("model", "clip", "vae", "dataset")}
    return {**graph, "plan": {"class_type": "LiveLoraMemoryPlan", "inputs": {**wired, **settings}},
            "image": {"class_type": "SaveImage", "inputs": {"images": ["plan", 1], "filename_prefix": "plan"}},
            "json": {"class_type": "PreviewAny", "inputs": {"source": ["plan", 2]}}}


def test_a_plan_is_told_as_text_picture_and_json_without_training(server):
    jobs = len(server.get("/livelora/jobs"))
    found = server.run(planned())
    first, by_size, whole = found["plan"]["text"][0].split("\n")[:3]
    assert re.fullmatch(r"\d+ MB of \d+\.\d GB: weights \d+ MB, LoRA and optimizer \d MB, a step \d+ MB; keeping 6 "
                        r"of 6 blocks, at least [\d.]+ m?s a step\.", first)
    assert by_size.startswith("Pictures of 64 × 64: ") and "no block computed twice" in by_size
    assert whole.startswith("As fast as can be it needs ")
    facts = json.loads(found["json"]["text"][0])
    assert facts["fits"] and facts["kept"] == {"8×8": 6} and facts["needed"] > facts["adapter"] > 0
    assert pixels(server, found).shape == (128, 768, 3)
    assert len(server.get("/livelora/jobs")) == jobs


def test_a_card_that_is_too_small_is_said_so(server):
    found = server.run(planned(card=0.59))
    assert found["plan"]["warnings"][0].startswith("This training needs ")
    facts = json.loads(found["json"]["text"][0])
    assert facts["fits"] is False and facts["least_seconds"] is None, "how fast another card is, nobody knows"


def test_a_training_for_which_there_is_no_memory_is_refused_before_it_begins(server):
    jobs = len(server.get("/livelora/jobs"))
    with pytest.raises(Failed, match=r"This training needs \d+ MB of memory, and there are 0 MB"):
        server.run(training(seed=901, leave_free=1000.0))
    assert len(server.get("/livelora/jobs")) == jobs


def test_a_jobs_plan_is_in_its_status(server):
    server.run(training(seed=902, steps=2))
    memory = server.get(f"/livelora/jobs/{newest_job(server)}")["memory"]
    assert (memory["advice"], memory["blocks"]) == ("", 6)
    assert memory["measured"] is None, "no graphics card, nothing to measure"
    assert re.search(r"; keeping 6 of 6 blocks, at least [\d.]+ m?s a step\.$", memory["sentence"])


@pytest.mark.parametrize("said", [True, False])
def test_what_0_1_0_said_of_gradient_checkpointing_still_trains(server, said):
    server.run(training(seed=903, steps=1, gradient_checkpointing=said))
    recipe = server.get(f"/livelora/jobs/{newest_job(server)}")["recipe"]
    assert recipe["gradient_checkpointing"] == ("auto" if said else "none")


def test_a_value_that_never_was_is_refused(server):
    with pytest.raises(Refused, match="gradient_checkpointing must be one of auto, all, none, got 'often'"):
        server.run(training(seed=904, gradient_checkpointing="often"))
