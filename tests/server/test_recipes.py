"""Recipes beyond the default through a real server: the file of every adapter draws, a run goes on from a file, is
extended, stops early."""

from __future__ import annotations

import numpy as np
import pytest
from client import newest_job, pixels
from comfyui import Failed
from graphs import drawing, training, with_save

ADAPTERS = {"rsLoRA": {}, "DoRA": {}, "LoHa": {}, "LoKr": {}, "OFT": {"rank": 16}, "PiSSA": {"adapter": "LoRA",
                                                                                          "init": "PiSSA"}}


def saved(server, graph, name: str, **options) -> str:
    """Trains, saves, and gives the file's name."""
    graph = with_save(graph, name)
    graph["save"]["inputs"] |= options
    graph["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["save", 0]}}
    return server.run(graph)["shown"]["text"][0]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapters_file_draws_what_the_train_node_draws(server, draw, adapter):
    """LoraLoader with the file in ComfyUI's and in kohya's names, at strength 1."""
    graph = training(seed=900, **{"adapter": adapter, "steps": 5, "learning_rate": 0.02, **ADAPTERS[adapter]})
    direct = pixels(server, server.run(graph | {k: v for k, v in drawing("red apple", model=["train", 0]).items()
                                                if k != "model"}))
    for format in ("ComfyUI", "kohya"):
        drawn = draw(server, lora=saved(server, graph, f"{adapter}_{format}", format=format, dtype="fp32"))
        assert np.abs(drawn.astype(int) - direct).max() <= 1, format
    assert np.abs(direct.astype(int) - draw(server)).mean() > 0.3


def job_of(server, graph) -> dict:
    server.run(graph)
    return server.get(f"/livelora/jobs/{newest_job(server)}")


def test_a_run_goes_on_from_a_file_in_kohyas_names(server):
    file = saved(server, training(seed=901, steps=4, held_out=4.0), "start", format="kohya", dtype="fp32")
    first = server.get(f"/livelora/jobs/{newest_job(server)}")
    second = job_of(server, training(seed=902, steps=2, held_out=4.0, start_from=file))
    assert second["job"] != first["job"]
    assert second["validation"][0][1] == pytest.approx(first["validation"][-1][1], rel=1e-5)
    assert second["validation_base"] == pytest.approx(first["validation_base"], rel=1e-6)


def test_a_finished_job_is_extended(server):
    first = job_of(server, training(seed=903, steps=3))
    longer = job_of(server, training(seed=903, steps=3, extra_steps=2))
    assert (longer["job"], longer["step"], longer["message"]) == (first["job"], 5, "Trained 5 steps.")
    assert longer["losses"][:3] == first["losses"]


def test_the_best_lora_is_handed_on_and_a_run_that_gets_worse_stops_early(server, draw):
    recipe = {"steps": 60, "learning_rate": 0.05, "held_out": 0.2, "validate_every": 2, "early_stop_patience": 2}
    files = [saved(server, training(seed=904, **recipe, result=result), result) for result in ("best", "last")]
    job = server.get(f"/livelora/jobs/{newest_job(server)}")
    assert job["message"].startswith(f"Stopped early at step {job['best'][0] + 4}: no held-out loss below")
    assert not np.array_equal(*(draw(server, lora=file) for file in files))


@pytest.mark.parametrize(("change", "message"), [
    ({"learning_rate": -1e-4}, "A negative one unlearns what the images show: if that is what you want, turn erase "
                               "on."),
    ({"erase": True}, "learning_rate must be below 0 to erase a concept, got 0.001."),
    ({"result": "best"}, "result is 'best', but there are no held-out images"),
    ({"early_stop_patience": 2}, "early_stop_patience is 2, but there are no held-out images to measure."),
    ({"target_regex": "nothing"}, "No layer of this model is trained: 'nothing'"),
    ({"held_out": 30.0}, "held_out 30 leaves nothing to train on"),
])
def test_what_cannot_be_trained_is_refused_by_a_sentence(server, change, message):
    with pytest.raises(Failed) as caught:
        server.run(training(seed=905, **change))
    assert message in caught.value.message
