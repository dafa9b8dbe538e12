"""Every strategy on every character, on the real starter: train, kill, resume, export, load, speak.

    python benchmarks/every_strategy.py --home DIR [--data DIR] [--out DIR] [--strategies ...] [--personas ...]

Each run is short (a fraction of an epoch) and its worker is killed with SIGKILL, once it has taken a few steps; then it
is resumed to its end. Its variant is exported and loaded by plain transformers in a process without Persona Lab, and
asked a question in our own chat, whose stamp must name the run's weights. Rows are kept in the home as they come:
stopped, the command goes on where it was. The shipped examples, and lord_goring where --data names test data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from persona_lab.engine import Engine
from persona_lab.home import write_atomic
from persona_lab.types import ChatRequest, Message, RunView, Sampling, Variant, now

EXAMPLES = ("nan_tolliver", "magpie", "ambrose_pell")
ROWS_FILE = "every-strategy-rows.json"
SHORT: dict[str, Any] = {"epochs": 0.15, "samples": 0, "evaluations_per_epoch": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"count": 4},
    "hybrid": SHORT | {"lora_epochs": 0.15, "map_conversations": 4},
    "foundation": SHORT | {"corpus_epochs": 1.0},
    "continue": SHORT | {"replay": 1.0},
    "steer": {"traits": "grumpy=60"},
}
STEPS_BEFORE_KILL = 3
CORPUS_CHARACTERS = 12_000
LOADER = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "persona_lab" not in sys.modules
folder, base, kind = sys.argv[1:4]
if kind == "adapter":
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
else:
    model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder if (Path(folder) / "tokenizer.json").exists() else base)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "Who are you?"}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)["input_ids"]
out = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
print(tokenizer.decode(out[0, ids.shape[1]:]))
"""


def main() -> int:
    """Run what is left to do, then report; 1 if anything failed."""
    options = _options()
    home = Path(options.home)
    rows: list[dict[str, Any]] = json.loads((home / ROWS_FILE).read_text()) if (home / ROWS_FILE).exists() else []
    with Engine.open(home) as engine:
        engine.base_model("starter")
        strategies = options.strategies or [part.id for part in engine.plugins.all("strategy")]
        # continue needs a variant to go on from
        strategies.sort(key=lambda name: name == "continue")
        for persona in _personas(engine, options):
            for strategy in strategies:
                if any((row["persona"], row["strategy"]) == (persona, strategy) for row in rows):
                    continue
                print(f"{strategy} on {persona}", file=sys.stderr, flush=True)
                rows.append(_one(engine, persona, strategy, home))
                write_atomic(home / ROWS_FILE, json.dumps(rows, indent=1) + "\n")
        device = engine.machine().device_name
    text = report(rows, device)
    print(text)
    if options.out:
        write_atomic(Path(options.out) / "every-strategy.md", text)
        write_atomic(Path(options.out) / "every-strategy.json", json.dumps(rows, indent=1) + "\n")
    return int(any(row["problem"] for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", required=True, help="A home for this alone; kept, so that it can go on.")
    parser.add_argument("--data", help="Folder of test data with lord_goring.")
    parser.add_argument("--strategies", nargs="*", help="Only these.")
    parser.add_argument("--personas", nargs="*", help="Only these.")
    parser.add_argument("--out", help="Folder for every-strategy.json and every-strategy.md.")
    return parser.parse_args()


def _personas(engine: Engine, options: argparse.Namespace) -> list[str]:
    wanted = list(options.personas or (*EXAMPLES, "lord_goring"))
    found = []
    for persona in wanted:
        if persona not in EXAMPLES and not any(known.id == persona for known in engine.personas()):
            folder = Path(options.data) / persona if options.data else None
            if folder is None or not folder.is_dir():
                print(f"{persona} is left out: --data names no folder with it.", file=sys.stderr)
                continue
            name = persona.replace("_", " ").title()
            card = engine.home.root / f"{persona}.json"
            card.write_text(json.dumps({"name": name, "description": f"{name}, as in the play."}))
            engine.import_persona(card, persona)
            engine.import_dataset(folder, persona)
        found.append(persona)
    return found


# --- one run --------------------------------------------------------------------------------------


def _one(engine: Engine, persona: str, strategy: str, home: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"persona": persona, "strategy": strategy, "time": now(), "problem": ""}
    try:
        variant = _train(engine, persona, strategy, home, row)
        _export(engine, variant, row)
        _speak(engine, variant, row)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong with one is a row of the table
        row["problem"] = f"{type(error).__name__}: {error}"[:300]
        print(row["problem"], file=sys.stderr)
    return row


def _train(engine: Engine, persona: str, strategy: str, home: Path, row: dict[str, Any]) -> Variant:
    settings = dict(SETTINGS.get(strategy, SHORT))
    if strategy == "continue":
        known = [v for v in engine.variants(persona) if v.strategy == "lora"]
        settings["variant"] = known[0].id if known else ""
    if strategy == "foundation":
        settings["corpus"] = str(_corpus(engine, persona, home))
    started = time.perf_counter()
    run = engine.train(persona, strategy, settings=settings)
    row["killed_after"] = _kill(engine, run)
    ended = engine.wait(run)
    if row["killed_after"] is not None:
        if ended.status != "interrupted":
            raise RuntimeError(f"after the kill the run is {ended.status}, not interrupted: {ended.message}")
        engine.resume(run)
        ended = engine.wait(run)
    if ended.status != "done":
        raise RuntimeError(f"{ended.status}: {ended.message} {ended.fix}")
    row["resumed_at"] = _resumed_at(engine, run)
    row["seconds"] = round(time.perf_counter() - started, 1)
    row["loss"] = ended.result["loss"]
    return engine.variant(_variant_of(ended))


def _variant_of(run: RunView) -> str:
    if not run.variant:
        raise RuntimeError("the run is done, but left no variant")
    return run.variant


def _kill(engine: Engine, run: str) -> int | None:
    """SIGKILL to the worker after a few steps; the step it had reached, None if it was done before."""
    while (view := engine.run(run)).status in ("queued", "running"):
        events, _ = engine.events(run)
        reached = [event.step for event in events if event.kind == "step"]
        workers = [event.pid for event in events if event.kind == "started"]
        if workers and (len(reached) >= STEPS_BEFORE_KILL or view.strategy == "prompt"):
            os.kill(workers[-1], signal.SIGKILL)
            return reached[-1] if reached else 0
        time.sleep(0.05)
    return None


def _resumed_at(engine: Engine, run: str) -> str:
    """What the second attempt said of where it went on."""
    said = [event.message for event in engine.events(run)[0] if event.kind == "log" and "Resumed" in event.message]
    return said[-1] if said else "from the beginning"


def _corpus(engine: Engine, persona: str, home: Path) -> Path:
    """A small corpus: the words of the other examples."""
    file = home / f"corpus-without-{persona}.txt"
    others = [name for name in EXAMPLES if name != persona]
    lines = []
    for name in others:
        engine.persona(name)
        newest = engine.dataset(engine.datasets(name)[-1].id)
        lines += [message.content for c in newest.of("train") for message in c.messages if message.role == "assistant"]
    file.write_text("\n\n".join(lines)[:CORPUS_CHARACTERS])
    return file


def _export(engine: Engine, variant: Variant, row: dict[str, Any]) -> None:
    if variant.kind == "prompt" and not variant.traits:
        row["exported"] = "nothing to export: it has no weights of its own"
        return
    # an adapter that goes with weights of this home is of no use elsewhere
    alone = variant.kind == "adapter" and variant.base == "starter"
    format = "adapter" if alone else "merged"
    out = engine.home.root / "exports" / variant.id
    shutil.rmtree(out, ignore_errors=True)
    ended = engine.wait(engine.export(variant.id, format, out))
    if ended.status != "done":
        raise RuntimeError(f"export: {ended.message}")
    command = [sys.executable, "-c", LOADER, str(out), engine.base_model(variant.base).path, format]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    loaded = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if loaded.returncode:
        raise RuntimeError(f"transformers does not load the export: {loaded.stderr[-300:]}")
    row["exported"] = format
    row["said_by_transformers"] = loaded.stdout.strip()[-80:]
    shutil.rmtree(out)


def _speak(engine: Engine, variant: Variant, row: dict[str, Any]) -> None:
    question = Message(role="user", content="Who are you?")
    sampling = Sampling(temperature=0, max_new_tokens=16)
    chunks = list(engine.chat([ChatRequest(pane="0", variant=variant, messages=(question,), sampling=sampling)]))
    last = chunks[-1]
    if last.error or last.stamp is None:
        raise RuntimeError(f"chat: {last.error}")
    if last.stamp.variant != variant.id:
        raise RuntimeError(f"the chat's stamp names {last.stamp.variant}")
    row["stamp"] = last.stamp.adapter


def report(rows: list[dict[str, Any]], device: str) -> str:
    """Markdown: a line a run."""
    failed = sum(bool(row["problem"]) for row in rows)
    head = ("character", "strategy", "killed after", "went on", "held-out loss", "exported", "answered by", "problem")
    lines = [
        "# Every strategy on every character",
        "",
        f"{len(rows)} runs on the real starter, {failed} with a problem. {device}. Each run was killed with SIGKILL",
        "after a few steps, resumed, its export loaded by transformers alone, its variant asked in our chat. Made by:",
        "`python benchmarks/every_strategy.py --home DIR --data DIR --out docs`.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    loss = row.get("loss") or {}
    before, after = loss.get("validation_before"), loss.get("validation_after")
    killed = row.get("killed_after")
    cells = (
        row["persona"],
        row["strategy"],
        "-" if killed is None else f"step {killed}",
        row.get("resumed_at", "-"),
        f"{before:.3f} to {after:.3f}" if before and after else "-",
        row.get("exported", "-"),
        row.get("stamp", "-"),
        row["problem"] or "none",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
