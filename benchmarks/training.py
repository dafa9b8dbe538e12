"""Measures training: our strategies against TRL's SFTTrainer, by turns, and what ours cost by dataset, rank and model.

    pip install 'persona-lab[bench]'             once: TRL and datasets
    python benchmarks/training.py                LoRA and full, three pairs each: about 45 minutes on two cores
    python benchmarks/training.py --curves       cost curves of ours alone (needs no TRL)
    python benchmarks/training.py --profile      where the time of ours goes (needs no TRL)

Writes `performance-training.json` and `.md` (and `.png`) to `--out`. A run replaces only its own part, for the kind of
device it ran on, so that a CPU's and a GPU's figures stand on one page. The job: 64 conversations of Lord Goring from
$PERSONA_LAB_TEST_DATA (default ../shared/data), or of the example persona "magpie" where there are none; the starter
model, on a GPU a random Llama of about 1B parameters. How things are measured stands on the page it writes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from training_figures import markdown, paired, plot, ratio
from training_sides import TrainingJob, measure

from persona_lab import __version__
from persona_lab.datasets.build import build_dataset
from persona_lab.datasets.reading import read_dataset
from persona_lab.home import Home
from persona_lab.models.machine import worker_machine
from persona_lab.models.registry import ensure
from persona_lab.personas.store import load_persona
from persona_lab.plugins import Plugins
from persona_lab.processes import worker_environment
from persona_lab.settings import validate_settings
from persona_lab.types import BaseModelInfo, Dataset, Machine, Persona

ROOT = Path(__file__).resolve().parents[1]
NAME = "performance-training"
PACKAGES = ("torch", "transformers", "peft", "trl")
RESULT = "RESULT "
CONVERSATIONS = (16, 32, 64, 128, 256)
RANKS = (4, 8, 16, 32, 64)
# hidden and inner size, layers, heads, heads of keys; vocabulary and tokenizer are the starter's
LLAMAS = {
    "32M": (384, 1024, 8, 6, 3),
    "135M": (576, 1536, 30, 9, 3),
    "362M": (960, 2560, 32, 15, 5),
    "1.1B": (2048, 8192, 16, 32, 8),
}
PROFILED = 32
"""Conversations; looking at all of them takes minutes."""
CURVE_MODELS = ("32M", "135M", "362M")
DESCRIPTION = (
    "{{char}} is a flawless dandy of London society in the 1890s: thirty-four, always immaculately dressed, idle by "
    "profession. He plays with life and is on perfectly good terms with the world; he is fond of being misunderstood, "
    "for it gives him a post of vantage. Under the triviality he is loyal, kind and shrewd, and he speaks in short, "
    "light, polished paradoxes."
)


class Quiet:
    """Reports to the error stream."""

    def phase(self, title: str, total: int | None = None) -> None:
        """Say what begins."""
        print(title, file=sys.stderr)

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        """Nothing."""

    def log(self, message: str, level: str = "info") -> None:
        """Pass it on."""
        print(message, file=sys.stderr)


# --- what is trained ---------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def character() -> tuple[Persona, Dataset]:
    """Lord Goring where the test data are, else the example persona "magpie"."""
    folder = Path(os.environ.get("PERSONA_LAB_TEST_DATA") or ROOT.parent / "shared" / "data") / "lord_goring"
    if folder.is_dir():
        data = {"name": "Lord Goring", "description": DESCRIPTION, "extensions": {}}
        card = {"spec": "chara_card_v3", "spec_version": "3.0", "data": data}
        persona = Persona(id="lord_goring", name="Lord Goring", card=card)
        source = folder
    else:
        persona = load_persona(ROOT / "personas" / "magpie")
        source = ROOT / "personas" / "magpie" / "dataset.jsonl"
    reading = read_dataset(source, Plugins.load().all("reader"), persona)
    return persona, build_dataset(reading, persona.id, 1, persona.name, source.name)[0]


def first(dataset: Dataset, count: int, batch_size: int) -> Dataset:
    """`count` training conversations, repeated if there are too few, cut to whole batches; and the validation split."""
    train = dataset.of("train")
    several = [c.model_copy(update={"id": f"{c.id}-{turn}"}) for turn in range(count // len(train) + 1) for c in train]
    kept = several[: max(count - count % batch_size, batch_size)]
    return dataset.model_copy(update={"conversations": (*kept, *dataset.of("validation"))})


def random_llama(name: str, starter: BaseModelInfo, folder: Path) -> BaseModelInfo:
    """An untrained Llama with the starter's tokenizer, written into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, keys = LLAMAS[name]
    own = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": hidden // heads,
    }
    target = folder / f"llama-{name}"
    if not target.exists():
        shutil.copytree(starter.path, target, ignore=shutil.ignore_patterns("*.safetensors", "persona_lab.json"))
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(starter.config | own))).to(torch.bfloat16)
        model.save_pretrained(target)
    info = ensure(str(target), Home.resolve(folder / "home"), Quiet())
    return info.model_copy(update={"name": f"a random Llama of {name} parameters"})


def job_of(given: argparse.Namespace, base: BaseModelInfo, side: str, method: str, **changes: Any) -> TrainingJob:
    """A job with the strategy's own default rates."""
    strategy = Plugins.load().get("strategy", method)
    settings: Any = validate_settings(strategy.Config, {}, f"strategy {method!r}")
    persona, dataset = character()
    conversations = changes.pop("conversations", given.conversations)
    values: dict[str, Any] = {
        "side": side,
        "method": method,
        "seed": given.seed,
        "epochs": given.epochs,
        "batch_size": given.batch_size,
        "rank": given.rank,
        "learning_rate": settings.learning_rate,
        "warmup": settings.warmup,
        "base": base,
        "persona": persona,
        "dataset": first(dataset, conversations, given.batch_size),
        "validation": given.validation,
        "peak": True,
    }
    return TrainingJob(**(values | changes))


# --- measuring ---------------------------------------------------------------------------------------


def in_own_process(job: TrainingJob, launcher: str) -> dict[str, Any]:
    """The measurement of `job` by this script in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(job.model_dump_json(), encoding="utf-8")
        command = [*shlex.split(launcher), sys.executable, __file__, "--one", str(file)]
        done = subprocess.run(command, env=worker_environment(), capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not found:
        raise SystemExit(f"{job.side} {job.method} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(found[-1].removeprefix(RESULT)))


def compare(given: argparse.Namespace, base: BaseModelInfo) -> Iterator[dict[str, Any]]:
    """Pairs of ours and TRL's, by turns; every other pair begins with TRL. Yields all runs so far after each pair."""
    runs: list[dict[str, Any]] = []
    for pair in range(given.repeats):
        for method in given.methods:
            for side in ("ours", "trl")[:: 1 if pair % 2 == 0 else -1]:
                job = job_of(given, base, side, method, seed=given.seed + pair)
                found = in_own_process(job, given.launcher)
                runs.append({"side": side, "method": method, "pair": pair, "seed": job.seed, **found})
                print(f"{method} {side} #{pair}: {_short(found)}", flush=True)
            ours, theirs = paired(runs, method)
            speeds = [[run["examples_per_second"] for run in side] for side in (ours, theirs)]
            print(f"{method}, ours / TRL: {ratio(*speeds)}", flush=True)
            yield {"job": _facts(given, base, runs[0]), "runs": list(runs)}


def _facts(given: argparse.Namespace, base: BaseModelInfo, run: dict[str, Any]) -> dict[str, Any]:
    found = {key: run[key] for key in ("conversations", "tokens", "supervised", "prefix")}
    asked = {key: getattr(given, key) for key in ("epochs", "batch_size", "rank", "validation")}
    return found | asked | {"persona": character()[0].name, "base": base.name}


def curves(
    given: argparse.Namespace, base: BaseModelInfo, starter: BaseModelInfo, folder: Path
) -> Iterator[dict[str, Any]]:
    """One epoch of ours at each point of each axis: the fastest of `repeats`, in rounds, as a slow minute hits all."""
    plan: list[tuple[str, str, str, float, TrainingJob]] = []
    short = {"epochs": 1, "validation": 0, "peak": False}
    for count in given.curve_conversations:
        job = job_of(given, base, "ours", "lora", conversations=count, **short)
        plan.append(("conversations", "lora", str(count), count, job))
    for rank in given.curve_ranks:
        plan.append(("rank", "lora", str(rank), rank, job_of(given, base, "ours", "lora", rank=rank, **short)))
    for method in given.methods:
        for name in given.curve_models:
            model = random_llama(name, starter, folder)
            job = job_of(given, model, "ours", method, **short)
            plan.append(("million parameters", method, name, model.parameters / 1e6, job))
    found: list[list[dict[str, Any]]] = [[] for _ in plan]
    for _ in range(given.repeats):
        for (axis, method, label, _, job), rows in zip(plan, found, strict=True):
            rows.append(in_own_process(job, given.launcher))
            print(f"{axis} {label}, {method}: {_short(rows[-1])}", flush=True)
    best = [min(rows, key=lambda row: float(row["steady_seconds"])) for rows in found]
    places = [
        {"axis": axis, "method": method, "label": label, "value": value} for axis, method, label, value, _ in plan
    ]
    yield {"curves": [place | row for place, row in zip(places, best, strict=True)]}


def profiles(given: argparse.Namespace, base: BaseModelInfo) -> Iterator[dict[str, Any]]:
    """Where the time of ours goes: the second epoch, by kind of operation."""
    found: dict[str, Any] = {}
    for method in given.methods:
        job = job_of(given, base, "ours", method, conversations=PROFILED, epochs=2, validation=0, profile=True)
        found[method] = in_own_process(job, given.launcher)
        print(f"{method}: {found[method]['operations']}", flush=True)
        yield {"profiles": dict(found)}


def _short(found: dict[str, Any]) -> str:
    loss = found["validation_loss"]
    return (
        f"{found['examples_per_second']:.2f} examples/s, start-up {found['startup_seconds']:.1f} s, "
        f"{found['peak_memory_bytes'] / 2**20:.0f} MB" + ("" if loss is None else f", held-out {loss:.4f}")
    )


# --- writing -----------------------------------------------------------------------------------------


def write(out: Path, machine: Machine, part: dict[str, Any]) -> None:
    """Put `part` into the results of this kind of device, and write the page anew.

    Runs of other methods stay if they were of the same job.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, picture = out / f"{NAME}.json", out / f"{NAME}.png"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    kept = ("device_name", "cores", "memory_bytes", "accelerator_bytes", "bf16")
    section = found.setdefault(machine.device, {})
    section |= {
        "machine": machine.model_dump(include=set(kept)),
        "versions": {"Persona Lab": __version__, "Python": platform.python_version()}
        | section.get("versions", {})
        | versions,
        "date": time.strftime("%Y-%m-%d"),
    }
    if part.get("job") == section.get("job") and "runs" in part:
        measured = {run["method"] for run in part["runs"]}
        part = part | {"runs": [run for run in section["runs"] if run["method"] not in measured] + part["runs"]}
    section |= part
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found.get("cpu", {}).get("curves"):
        plot(found["cpu"]["curves"], picture)
    (out / f"{NAME}.md").write_text(markdown(found, picture.name if picture.is_file() else ""), encoding="utf-8")


def main() -> None:
    """Measure, print and write."""
    given = _arguments()
    if given.one:
        job = TrainingJob.model_validate_json(Path(given.one).read_text(encoding="utf-8"))
        print(RESULT + json.dumps(measure(job)), flush=True)
        return
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing and not given.curves and not given.profile:
        print(
            f"The comparison needs {' and '.join(missing)}: pip install 'persona-lab[bench]', or in a checkout "
            "pip install -e '.[bench]'.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    home = Home.resolve(given.home)
    starter = ensure("starter", home, Quiet())
    with tempfile.TemporaryDirectory() as folder:
        machine = worker_machine(Path(folder))
        model = given.base or ("1.1B" if machine.device == "cuda" else "starter")
        base = random_llama(model, starter, Path(folder)) if model in LLAMAS else ensure(model, home, Quiet())
        if given.profile:
            parts = profiles(given, base)
        else:
            parts = curves(given, base, starter, Path(folder)) if given.curves else compare(given, base)
        for part in parts:
            write(Path(given.out), machine, part)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", help="data home that holds the starter, or where to fetch it to")
    parser.add_argument("--base", help=f"starter, a folder, a hub id, or a random Llama: {', '.join(LLAMAS)}")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--repeats", type=int, default=3, help="pairs a method; with --curves, runs a point")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1, help="of the first pair; each further pair has the next")
    parser.add_argument("--validation", type=int, default=32, help="held-out conversations to score afterwards")
    parser.add_argument("--curves", action="store_true", help="cost curves of ours instead of the comparison")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes, by kind of operation")
    parser.add_argument("--curve-conversations", nargs="*", type=int, default=CONVERSATIONS)
    parser.add_argument("--curve-ranks", nargs="*", type=int, default=RANKS)
    parser.add_argument("--curve-models", nargs="*", default=CURVE_MODELS, choices=list(LLAMAS))
    parser.add_argument("--launcher", default="", help='put in front of each measurement: "taskset -c 0,1"')
    parser.add_argument("--out", default=str(ROOT / "docs"))
    parser.add_argument("--one", metavar="FILE", help="measure this one job (JSON), in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
