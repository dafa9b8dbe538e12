"""What the training benchmark's numbers mean: intervals of ratios, floating-point operations of a job, tables, curves.

Measures nothing and needs no torch.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_GPU = (
    "**GPU figures are missing:** no GPU was at hand. `python benchmarks/training.py` on a machine with one adds them."
)
METHOD = """## How it is measured

- Each measurement is a process of its own; ours and TRL's take turns, and a ratio is taken within a pair, because a
  shared machine is not equally fast all the time. A pair has one seed. Both have our worker's environment. The
  interval is Student's t of the logarithms of the ratios.
- TRL is at its defaults: bf16 autocast over fp32 weights, gradient checkpointing, fused AdamW, padded random
  batches, the model loaded by itself. It is given our token ids and masks, so that both learn exactly the same
  tokens (checked on its own batches). Rates, linear decay and warm-up are the same, but for the step that
  transformers spends at rate 0. It writes no checkpoint.
- Ours is the strategy with its defaults, through the code that the worker runs, but without a validation split,
  because TRL does not validate either: both end with their last weights. The checkpoints written meanwhile count as
  time.
- Speed: of the last epoch where there are several; of a single one, all of training after loading, with our check
  of the fast path. Wall: from the start of the process to the end of training. Start-up: wall without training.
  Peak memory: the process's largest resident size up to there; on a GPU, the most memory allocated there.
- Held-out loss: nats a supervised token of the validation split, by a plain transformers model in fp32 into which
  the trained weights are loaded; one function for both.
- Peak: the fastest large bf16 matrix product in any of the processes, tried in each after training. *Plain* work is
  every token of every conversation; *least* work is the shared prefix once a step, and the head at supervised
  tokens only. Neither counts padding or recomputation.
- Curves: one epoch of ours, the fastest of the runs of a point. Models other than the starter are random Llamas
  with its tokenizer; datasets larger than the character's repeat it.
"""
SIDES = {"ours": "Persona Lab", "trl": "TRL"}


# --- ratios ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """Ratios of paired measurements. `low`, `high`: 95% interval of the geometric mean; nan for a single pair."""

    least: float
    median: float
    most: float
    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        interval = f"[{self.low:.2f}, {self.high:.2f}]" if self.pairs > 1 else "no interval from one pair"
        return f"{self.mean:.2f} {interval}; {self.least:.2f} / {self.median:.2f} / {self.most:.2f}; {self.pairs} pairs"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """`ours[i] / theirs[i]`, where the two of a pair were measured one right after the other.

    The interval is Student's t of the logarithms of the ratios: with few pairs it is wide, as it should be.
    """
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.fmean(logs)
    half = math.nan
    if len(logs) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    values = [math.exp(x) for x in logs]
    return Ratio(
        min(values),
        statistics.median(values),
        max(values),
        math.exp(middle),
        math.exp(middle - half),
        math.exp(middle + half),
        len(logs),
    )


# --- floating-point operations -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What of a decoder decides its cost.

    `linear`: weights of the linear layers in all decoder layers; `head`: of the output head (vocabulary x hidden size);
    `width`: heads x head size; `adapter`: LoRA weights, 0 where all weights are trained.
    """

    linear: int
    head: int
    layers: int
    width: int
    adapter: int = 0


def sizes_of(config: Mapping[str, Any], rank: int = 0) -> Sizes:
    """Of a Llama-shaped config.json; `rank`: of a LoRA on all linear layers, 0 for none."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or hidden // heads
    width, keys = heads * head_size, (config.get("num_key_value_heads") or heads) * head_size
    shapes = [(hidden, width), (hidden, keys), (hidden, keys), (width, hidden), *[(hidden, inner)] * 3]
    return Sizes(
        linear=layers * sum(a * b for a, b in shapes),
        head=config["vocab_size"] * hidden,
        layers=layers,
        width=width,
        adapter=layers * rank * sum(a + b for a, b in shapes),
    )


def training_flops(sizes: Sizes, tokens: int, predicted: int, attended: int) -> float:
    """Floating-point operations of forward and backward over some tokens, a multiplication and an addition each one.

    Forward: 2 for each weight and token; attention 4 x width x layers for each (query, key) pair, as two products (with
    the keys, with the values). Backward: as much again for the gradient of the inputs, and once more for the gradient
    of the weights where they are trained: 6 for each trained weight and token, 4 for each frozen one. Source: Chowdhery
    et al. 2022, PaLM, appendix B (https://arxiv.org/abs/2204.02311), but with causal attention counted as the half that
    it is; Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361) for the 2. Recomputation (gradient checkpointing),
    padding, norms and the optimizer are not counted.

    Args:
        tokens: that go through the decoder layers.
        predicted: positions at which the output head runs.
        attended: (query, key) pairs that causal attention looks at.
    """
    for_each_weight = 4 if sizes.adapter else 6
    attention = 3 * 4 * sizes.width * sizes.layers * attended
    return float(
        for_each_weight * (sizes.linear * tokens + sizes.head * predicted) + 6 * sizes.adapter * tokens + attention
    )


def epoch_flops(sizes: Sizes, lengths: Sequence[int], supervised: int, prefix: int, steps: int) -> tuple[float, float]:
    """Operations of an epoch: the plain way without padding, and the least that gives the same gradients.

    Plain: every token of every conversation, the head at every one. Least: the `prefix` tokens that all conversations
    share once a step, and the head only at the `supervised` tokens.

    Args:
        lengths: tokens of each conversation, prefix included.
        supervised: tokens of all conversations that have a loss.
    """
    pairs = [n * (n + 1) // 2 for n in lengths]
    plain = training_flops(sizes, sum(lengths), sum(lengths), sum(pairs))
    spared = len(lengths) - steps  # so many times the prefix is not computed
    tokens = sum(lengths) - spared * prefix
    attended = sum(pairs) - spared * (prefix * (prefix + 1) // 2)
    return plain, training_flops(sizes, tokens, supervised, attended)


# --- Markdown ----------------------------------------------------------------------------------------


def markdown(found: Mapping[str, Any], picture: str = "") -> str:
    """The page of a results file: a section for each kind of device measured."""
    parts = [
        "# Training speed",
        "",
        "Written by `python benchmarks/training.py`; every measurement is in the JSON file beside it. How it is "
        "measured stands at the end.",
    ]
    for device in ("cpu", "cuda", "mps"):
        if device in found:
            parts += ["", *_section(found[device], picture if device == "cpu" else "")]
    if "cuda" not in found:
        parts += ["", "## GPU", "", NO_GPU]
    return "\n".join([*parts, "", METHOD])


def _section(section: Mapping[str, Any], picture: str) -> list[str]:
    machine = section["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    on_device = machine["accelerator_bytes"]
    memory = f"{(on_device or machine['memory_bytes']) / 2**30:.0f} GiB{' on the device' if on_device else ''}"
    lines = [
        f"## {machine['device_name']}",
        "",
        f"{machine['cores']} cores, {memory}; {section['date']}; {versions}.",
    ]
    notes = section.get("notes", {})
    if section.get("runs"):
        lines += ["", *_comparison(section), *_note(notes, "runs")]
    if section.get("profiles"):
        lines += ["", *_profiles(section["profiles"]), *_note(notes, "profiles")]
    if section.get("curves"):
        lines += ["", *_curves(section["curves"], picture), *_note(notes, "curves")]
    return lines


def _note(notes: Mapping[str, str], part: str) -> list[str]:
    """What a person wrote about a part's figures: `notes` of the results file, which runs leave alone."""
    return ["", textwrap.fill(notes[part], 120, break_long_words=False)] if notes.get(part) else []


def _comparison(section: Mapping[str, Any]) -> list[str]:
    job, runs = section["job"], section["runs"]
    peak = max(run["peak_flops"] for run in runs)
    lines = [
        f"### Against TRL's SFTTrainer: {job['base']}",
        "",
        f"{job['conversations']} conversations of {job['persona']} ({job['tokens']} tokens, {job['supervised']} of "
        f"them supervised, {job['prefix']} shared by all), batch {job['batch_size']}, {job['epochs']:g} epochs; LoRA: "
        f"rank {job['rank']} on all linear layers.",
        "",
        "| | speed, ours / TRL: mean [95%]; min / median / max | wall time, TRL / ours | peak memory, ours / TRL | "
        "held-out loss, ours - TRL: mean (largest) |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(run["method"] for run in runs):
        ours, theirs = paired(runs, method)
        if ours:
            lines.append(_ratio_row(method, ours, theirs))
    lines += [
        "",
        "| | seed | examples/s | start-up s | wall s | memory MB | held-out loss | of peak: plain / least work |",
        "|---|---|---|---|---|---|---|---|",
        *[_run_row(run, peak) for run in runs],
        "",
        f"Peak: {peak / 1e9:.0f} GFLOP/s.",
    ]
    return lines


def paired(runs: Sequence[Mapping[str, Any]], method: str) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Our runs and TRL's of a method, pair by pair; a run without its partner is left out."""
    by_side = {side: {r["pair"]: r for r in runs if r["method"] == method and r["side"] == side} for side in SIDES}
    common = [pair for pair in by_side["ours"] if pair in by_side["trl"]]
    return [by_side["ours"][pair] for pair in common], [by_side["trl"][pair] for pair in common]


def _ratio_row(method: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> str:
    def of(key: str, side: Sequence[Mapping[str, Any]]) -> list[float]:
        return [float(run[key]) for run in side]

    apart = [a - b for a, b in zip(of("validation_loss", ours), of("validation_loss", theirs), strict=True)]
    cells = [
        method,
        str(ratio(of("examples_per_second", ours), of("examples_per_second", theirs))),
        f"{ratio(of('wall_seconds', theirs), of('wall_seconds', ours)).mean:.2f}",
        f"{ratio(of('peak_memory_bytes', ours), of('peak_memory_bytes', theirs)).mean:.2f}",
        f"{statistics.fmean(apart):+.4f} ({max(apart, key=abs):+.4f})",
    ]
    return f"| {' | '.join(cells)} |"


def _run_row(run: Mapping[str, Any], peak: float) -> str:
    most = run["steady_seconds"] * peak
    least = f"{run['least_flops'] / most:.0%}" if run["side"] == "ours" else "-"
    cells = [
        f"{run['method']}, {SIDES[run['side']]}",
        str(run["seed"]),
        f"{run['examples_per_second']:.2f}",
        f"{run['startup_seconds']:.1f}",
        f"{run['wall_seconds']:.1f}",
        f"{run['peak_memory_bytes'] / 2**20:.0f}",
        f"{run['validation_loss']:.4f}",
        f"{run['plain_flops'] / most:.0%} / {least}",
    ]
    return f"| {' | '.join(cells)} |"


def _profiles(profiles: Mapping[str, Any]) -> list[str]:
    lines = [
        "### Where the time of a step goes",
        "",
        f"Ours, the second epoch of {next(iter(profiles.values()))['conversations']} of these conversations under "
        "torch's profiler, which makes small operations dearer than they are. Share of the peak: of the same process.",
        "",
        "| | | share of time | calls a step | of peak |",
        "|---|---|---|---|---|",
    ]
    for method, run in profiles.items():
        whole, steps = run["steady_seconds"], run["steps"] / 2
        for kind, row in run["operations"].items():
            products = "products" in kind
            fast = f"{row['flops'] / row['seconds'] / run['peak_flops']:.0%}" if products and row["seconds"] else "-"
            lines.append(f"| {method} | {kind} | {row['seconds'] / whole:.0%} | {row['calls'] / steps:.0f} | {fast} |")
        told = sum(row["seconds"] for row in run["operations"].values())
        lines.append(f"| {method} | between operations (Python) | {max(0.0, 1 - told / whole):.0%} | | |")
    return lines


def _curves(points: Sequence[Mapping[str, Any]], picture: str) -> list[str]:
    lines = ["### What it costs: dataset, rank, model", ""]
    if picture:
        lines += [f"![Seconds an epoch and peak memory against dataset size, rank and model size]({picture})", ""]
    lines += ["| | | epoch s | examples/s | start-up s | peak memory MB |", "|---|---|---|---|---|---|"]
    for point in points:
        lines.append(
            f"| {point['axis']}, {point['method']} | {point['label']} | {point['steady_seconds']:.1f} | "
            f"{point['examples_per_second']:.2f} | {point['startup_seconds']:.1f} | "
            f"{point['peak_memory_bytes'] / 2**20:.0f} |"
        )
    return lines


# --- the picture -------------------------------------------------------------------------------------


def plot(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds an epoch (above) and peak memory (below) along each axis, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point["axis"] for point in points))
    kinds = (("seconds an epoch", "steady_seconds", 1), ("peak memory, GiB", "peak_memory_bytes", 2**30))
    figure, grid = pyplot.subplots(2, len(axes), figsize=(4 * len(axes), 6), squeeze=False)
    for column, axis in enumerate(axes):
        along = [point for point in points if point["axis"] == axis]
        for row, (unit, key, scale) in enumerate(kinds):
            for method in dict.fromkeys(point["method"] for point in along):
                chosen = [point for point in along if point["method"] == method]
                grid[row][column].plot(
                    [p["value"] for p in chosen], [p[key] / scale for p in chosen], "o-", label=method
                )
            most = max(point[key] / scale for point in along)
            grid[row][column].set(xlabel=axis, ylabel=unit, ylim=(0, 1.08 * most))
            grid[row][column].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
