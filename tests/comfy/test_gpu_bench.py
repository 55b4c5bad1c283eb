"""bench/gpu.py runs from start to end on the CPU with a tiny model, so that it will on the day a GPU is at hand."""

from __future__ import annotations

import json

import gpu
import torch


def run(path, capsys, **options) -> tuple[list[dict], str]:
    """Its rows and what it prints."""
    gpu.main(["--tiny", "--json", str(path), *(f"--{name}={value}" for name, value in options.items())])
    return json.loads(path.read_text())["rows"], capsys.readouterr().out


def test_every_engine_makes_its_steps_and_one_that_runs_out_of_memory_is_a_row(tmp_path, capsys, monkeypatch):
    ours = gpu.ENGINES["LiveLoRA"]

    def scarce(world, row, clock):
        if row.card == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ours(world, row, clock)

    monkeypatch.setitem(gpu.ENGINES, "LiveLoRA", scarce)
    monkeypatch.setattr(gpu, "STEPS", 2)
    rows, printed = run(tmp_path / "gpu.json", capsys)
    assert {(row["weights"], row["card"], row["engine"]) for row in rows} == {
        (weights, card, engine) for weights in ("bf16", "fp8") for card in (None, 8) for engine in gpu.ENGINES}
    for row in rows:
        scarce_row = row["engine"] == "LiveLoRA" and row["card"] == 8
        assert row["note"] == ("out of memory" if scarce_row else ""), row
        assert len(row["seconds"]) == (0 if scarce_row else gpu.STEPS)
    assert printed.count("| out of memory |") == 2
    assert printed.count("\n| ") == 2 + len(rows)


def test_when_the_time_is_up_the_rest_is_told_and_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "SPARE", 600)
    rows, printed = run(tmp_path / "gpu.json", capsys, minutes=9)
    assert all(row["note"] == "no time" and not row["seconds"] for row in rows)
    assert printed.count("| no time |") == len(rows)


def test_the_flop_of_a_step_are_those_of_its_products():
    """By hand: a product costs 2 FLOP for a token and weight, and as many in the backward if its input has a gradient:
    no text has one before the first attention, nor what is made of timestep, guidance and pooled text. Attention costs
    4 L² D, and twice that backward."""
    pixels, d = 256, gpu.TINY["hidden_size"]
    image, text = (pixels // 16) ** 2, gpu.TEXT_TOKENS
    blocks = 2 * 12 * d * d * (image + text) + image * 64 * d * 2
    without = 3 * d * d * text
    forward_alone = text * 128 * d + (2 * 256 * d + 128 * d + 3 * d * d) + (2 * 6 + 3 + 2) * d * d
    attention = 2 * 12 * (image + text)**2 * d
    expected = 4 * blocks - 2 * without + 2 * forward_alone + attention
    assert abs(gpu.flop(gpu.TINY, pixels) / expected - 1) < 1e-3
