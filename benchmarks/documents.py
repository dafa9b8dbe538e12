"""Does a character made of nothing but a text predict unseen passages of that text better than the base?

    nice python benchmarks/documents.py TEXT [--home HOME] [--seeds 0] [--prompts-by starter] [--set epochs=2 ...]

The text is imported as the page imports it (passages as replies, made prompts in front), `lora` is trained with its
defaults, and held_out_gain scores the passages that were held out. Prints one JSON document: bits per byte of the
held-out passages under the base and the variant with the same prompt, and the gain with its 95% interval (bootstrap
over sections of the text, since neighbouring passages are alike). With --prompts-by a base model writes the prompts
in place of templates, and both are trained: on the same passages, each scored with its own prompts. The starter
model must be in HOME, or is fetched. With --home the imported text and the prompts that this base wrote for it are used
again; another text, and prompts by another base, are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from persona_lab.engine import Engine
from persona_lab.errors import UnknownName
from persona_lab.types import DatasetSummary, Persona, RunView

METRICS = ("bpb_base", "bpb_variant", "g_true", "g_other", "specificity", "generalisation_gap")


def measure(home: Path, text: Path, seed: int, settings: dict[str, str], prompts_by: str = "") -> dict[str, Any]:
    """Train once and score; what was trained and the metrics."""
    with Engine.open(home) as engine:
        author = _author(engine, text)
        dataset = _dataset(engine, author, text, prompts_by)
        run = _done(engine, engine.train(author, "lora", settings=settings, seed=seed, dataset_id=dataset.id))
        made = engine.variant(run.variant)
        report = _done(engine, engine.evaluate([made.id], ["held_out_gain"]))
        kept = json.loads(Path(next(r for r in engine.reports(author) if r.id == report.id).data).read_text("utf-8"))
    metrics = {m["metric"]: m for v in kept["variants"] if v["variant"] == made.id for m in v["metrics"]}
    gain = metrics["g_true"]
    return {
        "seed": seed,
        "prompts": dataset.why,
        "prompts_by": prompts_by,
        "dataset": dataset.counts,
        "seconds": run.result.get("seconds"),
        "loss": run.result.get("loss"),
        "metrics": {name: {k: metrics[name][k] for k in ("value", "low", "high", "n")} for name in METRICS},
        "gain_bits_per_byte": {k: gain[k] / math.log(2) for k in ("value", "low", "high")},
    }


def _author(engine: Engine, text: Path) -> str:
    """The character of this very text: nothing of another text, or of an older state of it, can be taken for it."""
    author = f"author-{hashlib.sha256(text.read_bytes()).hexdigest()[:12]}"
    if not any(persona.id == author for persona in engine.personas()):
        engine.save_persona(Persona(id=author, name="The author", card={"data": {"name": "The author"}}))
    return author


def _dataset(engine: Engine, author: str, text: Path, prompts_by: str) -> DatasetSummary:
    """The text with templates as prompts, or that very version with the prompts of one base model."""
    known = engine.datasets(author)
    plain = next((dataset for dataset in known if not dataset.run), None) or engine.import_dataset(text, author)
    if not prompts_by:
        return plain
    for dataset in known:
        if dataset.run and dataset.parent == plain.id and _writer(engine, dataset.run) == prompts_by:
            return dataset
    run = _done(engine, engine.write_prompts(plain.id, prompts_by))
    return next(dataset for dataset in engine.datasets(author) if dataset.id == run.result["version"])


def _writer(engine: Engine, run_id: str) -> str:
    """The base model that wrote prompts in this run; empty where the run is gone: then nobody can say."""
    try:
        return engine.run(run_id).base
    except UnknownName:
        return ""


def _done(engine: Engine, run_id: str) -> RunView:
    run = engine.wait(run_id)
    if run.status != "done":
        raise SystemExit(f"{run_id} is {run.status}: {run.message} {run.fix}")
    return run


def main() -> None:
    """Print the result of each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts-by", default="", help="A base model (starter, ...) that writes prompts.")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    settings = dict(pair.split("=", 1) for pair in options.set)
    ways = ["", options.prompts_by] if options.prompts_by else [""]
    with nullcontext(options.home) if options.home else tempfile.TemporaryDirectory(prefix="documents-") as home:
        results = [measure(Path(home), options.text, seed, settings, way) for way in ways for seed in options.seeds]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
