"""The training benchmark's arithmetic: intervals of ratios, operations against torch's own count, the page."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}


@pytest.fixture(scope="module")
def figures() -> Any:
    """`benchmarks/training_figures.py`, which is a script's neighbour and no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("training_figures")
    finally:
        sys.path.remove(str(BENCHMARKS))


def run_of(side: str, pair: int, speed: float) -> dict[str, Any]:
    return {
        "side": side,
        "method": "lora",
        "pair": pair,
        "seed": pair,
        "examples_per_second": speed,
        "startup_seconds": 9.0,
        "wall_seconds": 9.0 + 64 / speed,
        "steady_seconds": 64 / speed,
        "peak_memory_bytes": 2 << 30,
        "validation_loss": 3.4,
        "peak_flops": 8e11,
        "plain_flops": 9e12,
        "least_flops": 5e12,
    }


def test_the_interval_of_ratios_is_students_of_their_logarithms(figures: Any) -> None:
    found = figures.ratio([8.0, 2.0, 4.0], [2.0, 1.0, 1.0])
    assert (found.least, found.median, found.most, found.pairs) == pytest.approx((2, 4, 4, 3))
    logs = [math.log(4), math.log(2), math.log(4)]
    middle = sum(logs) / 3
    spread = math.sqrt(sum((x - middle) ** 2 for x in logs) / 2)
    assert found.mean == pytest.approx(math.exp(middle))
    assert found.high == pytest.approx(math.exp(middle + 4.302653 * spread / math.sqrt(3)))
    assert found.low * found.high == pytest.approx(found.mean**2)
    assert "no interval" in str(figures.ratio([3.0], [2.0]))


def test_operations_of_full_training_are_those_torch_counts(figures: Any) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY, attn_implementation="eager"))
    tokens = 20
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None]).logits.sum().backward()
    sizes = figures.sizes_of(TINY)
    # eager attention computes the whole square
    expected = figures.training_flops(sizes, tokens, tokens, tokens * tokens)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_operations_of_lora_are_those_torch_counts(figures: Any) -> None:
    from persona_lab.training.lora import attach_lora

    base = LlamaForCausalLM(LlamaConfig(**TINY, attn_implementation="eager")).requires_grad_(False)
    model = attach_lora(base, rank=4)
    sizes = figures.sizes_of(TINY, rank=4)
    assert sizes.adapter == sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens = 20
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None]).logits.sum().backward()
    expected = figures.training_flops(sizes, tokens, tokens, tokens * tokens)
    # the first layer's inputs need no gradient: that is a third of these few layers' share
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.12)
    assert counter.get_total_flops() < expected


def test_the_least_work_leaves_out_the_repeated_prefix_and_the_unsupervised_head(figures: Any) -> None:
    sizes = figures.sizes_of(TINY)
    plain, least = figures.epoch_flops(sizes, [30, 40], supervised=9, prefix=20, steps=1)
    assert plain == figures.training_flops(sizes, 70, 70, 30 * 31 // 2 + 40 * 41 // 2)
    assert least == figures.training_flops(sizes, 50, 9, 30 * 31 // 2 + 40 * 41 // 2 - 20 * 21 // 2)
    same, less = figures.epoch_flops(sizes, [30, 40], supervised=70, prefix=0, steps=2)
    assert same == less


def test_the_page_pairs_runs_and_says_that_gpu_figures_are_missing(figures: Any, tmp_path: Path) -> None:
    runs = [run_of("ours", 0, 6.0), run_of("trl", 0, 1.0), run_of("trl", 1, 1.0), run_of("ours", 1, 4.0)]
    lone = run_of("ours", 2, 99.0)
    assert [len(side) for side in figures.paired([*runs, lone], "lora")] == [2, 2]
    point = {"axis": "rank", "label": "4", "value": 4, **run_of("ours", 0, 6.0)}
    job = {
        "base": "a Llama",
        "persona": "Tamsin",
        "conversations": 64,
        "tokens": 999,
        "supervised": 99,
        "prefix": 9,
        "batch_size": 4,
        "epochs": 2,
        "rank": 16,
    }
    machine = {"device_name": "a CPU", "cores": 2, "memory_bytes": 16 << 30, "accelerator_bytes": 0}
    section = {"machine": machine, "versions": {"torch": "2"}, "date": "2026-01-01", "job": job}
    section |= {"runs": [*runs, lone], "curves": [point]}
    page = figures.markdown({"cpu": section}, "p.png")
    assert "4.90 [" in page
    assert "GPU figures are missing" in page
    assert "GPU figures are missing" not in figures.markdown({"cpu": section, "cuda": section})
    figures.plot([point], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_the_page_says_where_the_time_of_a_step_goes(figures: Any) -> None:
    operations = {
        "matrix products": {"seconds": 6.0, "calls": 800.0, "flops": 2.4e12},
        "conversions and copies": {"seconds": 1.0, "calls": 1600.0, "flops": 0.0},
    }
    run = run_of("ours", 0, 6.4) | {"operations": operations, "steps": 16, "conversations": 32}
    machine = {"device_name": "CPU", "cores": 2, "memory_bytes": 8 << 30, "accelerator_bytes": 0}
    section = {"machine": machine, "versions": {}, "date": "2026-11-29", "profiles": {"lora": run}}
    page = figures.markdown({"cpu": section})
    assert "| lora | matrix products | 60% | 100 | 50% |" in page  # of 10 s, 8 steps, 0.4 of 0.8 TFLOP/s
    assert "| lora | conversions and copies | 10% | 200 | - |" in page
    assert "| lora | between operations (Python) | 30% | | |" in page
