"""Are exports of the real starter what was trained: GGUF in llama.cpp, and merged folders without Persona Lab?

    nice python benchmarks/export_check.py --home DIR [--strategies lora qlora hybrid] [--types F16 Q8_0]
        [--persona nan_tolliver] [--set epochs=0.3 ...] [--fresh] [--out FILE]

Each strategy is trained shortly. Its variant is exported as a merged folder and as GGUF; the round-trip check that
every export has (8 held-out prompts: 32 greedy tokens and the mean log-likelihood of the real replies) compares
each with the variant, GGUF in llama.cpp. The merged folder's greedy replies are also asked of plain transformers in
a process that cannot import Persona Lab; with --fresh, in a virtual environment that has torch and transformers
only. Every GGUF reply is held against the merged folder's; where they part, the first token that differs is told
with how near the two best candidates were for the merged model. Prints one JSON document. Fails (1) where Q8_0 is
off by more than 1% or anything does not load.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from persona_lab.engine import Engine
from persona_lab.home import write_atomic
from persona_lab.types import RunView, Variant

SHORT: dict[str, Any] = {"epochs": 0.3, "samples": 0}
HYBRID: dict[str, Any] = {"lora_epochs": 0.3, "map_conversations": 4}
MOST_OFF_Q8 = 0.01
LOADER = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("persona_lab", "persona_lab_builtin"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, asked = sys.argv[1], json.loads(sys.stdin.read())
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
system = open(folder + "/system_prompt.txt", encoding="utf-8").read()
found = []
for prompt in asked:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=32, do_sample=False, repetition_penalty=1.0, temperature=None,
                         top_p=None, output_logits=True, return_dict_in_generate=True)
    said = out.sequences[0, ids["input_ids"].shape[1]:]
    near = [torch.topk(logits[0].log_softmax(-1), 2).values for logits in out.logits]
    found.append({"text": tokenizer.decode(said, skip_special_tokens=True), "tokens": said.tolist(),
                  "pieces": [tokenizer.decode([token]) for token in said.tolist()],
                  "gaps": [float(two[0] - two[1]) for two in near]})
assert not any(name.startswith("persona_lab") for name in sys.modules)
print(json.dumps(found))
"""


def main() -> int:
    """Train, export and compare; 1 if a result is worse than promised."""
    options = _options()
    home = Path(options.home)
    with Engine.open(home) as engine, _loading_python(options.fresh) as python:
        engine.persona(options.persona)
        rows = [_one(engine, strategy, options, python) for strategy in options.strategies]
        device = engine.machine().device_name
    document = {"device": device, "persona": options.persona, "variants": rows}
    text = json.dumps(document, indent=1)
    print(text)
    if options.out:
        write_atomic(Path(options.out), text + "\n")
    off = [row for row in rows if (q8 := row["exports"].get("Q8_0")) and q8["relative_difference"] > MOST_OFF_Q8]
    return int(bool(off))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", required=True, help="A home for this alone.")
    parser.add_argument("--persona", default="nan_tolliver")
    parser.add_argument("--strategies", nargs="+", default=["lora", "qlora", "hybrid"])
    parser.add_argument("--types", nargs="+", default=["F16", "Q8_0"])
    parser.add_argument("--set", action="append", default=[], help="Settings of every training.")
    parser.add_argument("--fresh", action="store_true", help="Load merged folders in an environment of their own.")
    parser.add_argument("--out", help="Also write the document there.")
    return parser.parse_args()


@contextmanager
def _loading_python(fresh: bool) -> Iterator[Path]:
    """The Python that loads merged folders: this one, or that of a virtual environment with torch and transformers and
    no Persona Lab, which is gone afterwards (it has gigabytes)."""
    if not fresh:
        yield Path(sys.executable)
        return
    with tempfile.TemporaryDirectory(prefix="without-persona-lab-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "torch", "transformers"], check=True)
        listed = subprocess.run([str(python), "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
        assert "persona" not in listed
        yield python


def _one(engine: Engine, strategy: str, options: argparse.Namespace, python: Path) -> dict[str, Any]:
    settings = SHORT | (HYBRID if strategy == "hybrid" else {})
    settings |= dict(pair.split("=", 1) for pair in options.set)
    run = _done(engine, engine.train(options.persona, strategy, settings=settings))
    variant = engine.variant(str(run.variant))
    row: dict[str, Any] = {"strategy": strategy, "settings": settings, "loss": run.result["loss"], "exports": {}}
    merged, check = _export(engine, variant, "merged", {})
    row["exports"]["merged"] = _brief(check)
    prompts = [item["prompt"] for item in check["rows"]]
    alone = _ask_alone(python, merged, prompts)
    row["replies"] = [{"prompt": p, "merged": a["text"]} for p, a in zip(prompts, alone, strict=True)]
    for kind in options.types:
        folder, check = _export(engine, variant, "gguf", {"type": kind})
        row["exports"][kind] = _brief(check) | _against_merged(alone, [item["export"] for item in check["rows"]])
        for reply, item in zip(row["replies"], check["rows"], strict=True):
            reply[kind] = item["export"]
        shutil.rmtree(folder)
    shutil.rmtree(merged)
    return row


def _done(engine: Engine, run_id: str) -> RunView:
    run = engine.wait(run_id)
    if run.status != "done":
        raise SystemExit(f"{run_id} is {run.status}: {run.message} {run.fix}")
    return run


def _export(engine: Engine, variant: Variant, form: str, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of its round-trip check."""
    out = engine.home.root / "exports" / f"{variant.id}-{form}"
    shutil.rmtree(out, ignore_errors=True)
    run = _done(engine, engine.export(variant.id, form, out, settings))
    return out, run.result["check"]


def _brief(check: dict[str, Any]) -> dict[str, Any]:
    likelihood = check["mean_loglikelihood"]
    return {
        "loaded_with": check["loaded_with"],
        "same_replies_as_variant": check["same_replies"],
        "same_tokenization": check["same_tokenization"],
        "loglikelihood_of_variant": likelihood["variant"],
        "loglikelihood_of_export": likelihood["export"],
        "relative_difference": likelihood["relative_difference"],
    }


def _ask_alone(python: Path, folder: Path, prompts: list[str]) -> list[dict[str, Any]]:
    """Greedy replies of a merged folder, by transformers in a process that has no Persona Lab."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", LOADER, str(folder)],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"transformers does not load {folder}: {done.stderr[-2000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _against_merged(alone: list[dict[str, Any]], said: list[str]) -> dict[str, Any]:
    """How many replies are the merged folder's, and how undecided that model was where one is not."""
    same = [one["text"].strip() == other.strip() for one, other in zip(alone, said, strict=True)]
    parted = []
    for one, other, equal in zip(alone, said, same, strict=True):
        if equal:
            continue
        text, place = "", 0
        for piece in one["pieces"][:-1]:
            if not other.strip().startswith((text + piece).strip()):
                break
            text, place = text + piece, place + 1
        parted.append({"token": place, "gap_nats": one["gaps"][place], "merged": one["text"], "export": other})
    return {"same_replies_as_merged": sum(same), "of": len(same), "parted": parted}


if __name__ == "__main__":
    raise SystemExit(main())
