"""Measures scoring: candidates of reply ranking one at a time by transformers, against `loglikelihood` over them all.

    python benchmarks/scoring.py --home ~/persona-lab-home          12 probes x 20 candidates of the example "magpie"

Both ways run in one process, by turns, on the same weights; the ratio is taken within each turn, because a shared
machine is not equally fast all the time. One at a time is one forward pass an item, with logits at the reply only
(`logits_to_keep`). Printed as well: how far the two are apart, in nats a token: about 1e-6 in fp32 (`--fp32`); in bf16
it is rounding, most of it that of the plain way's logits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.evaluation.distractors import distractors, own_lines
from persona_lab.home import Home
from persona_lab.inference.loading import load_model
from persona_lab.inference.scoring import loglikelihood
from persona_lab.models.machine import worker_machine
from persona_lab.models.registry import ensure
from persona_lab.personas.prompt import system_prompt
from persona_lab.personas.store import load_persona
from persona_lab.types import Message, Probe

EXAMPLES = Path(__file__).resolve().parents[1] / "personas"
Item = tuple[list[Message], str]


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


def ranking(persona_id: str, probes: int, candidates: int) -> list[Item]:
    """What reply ranking asks: every probe's true reply and the character's replies to other prompts."""
    folder = EXAMPLES / persona_id
    system = Message(role="system", content=system_prompt(load_persona(folder)))
    replies = []
    for text in (folder / "dataset.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        turns = [Message(**message) for message in row["messages"]]
        if turns[-1].role == "assistant":
            place = {"id": row["id"], "cluster": row["id"]}
            replies.append(Probe(kind="reply", messages=tuple(turns[:-1]), reply=turns[-1].content, **place))
    asked = replies[:: max(1, len(replies) // probes)][:probes]
    found = distractors(asked, own_lines(replies), candidates - 1)
    return [([system, *row.probe.messages], text) for row in found for text in (row.probe.reply, *row.wrong)]


def plain(model: Any, renderer: ChatRenderer, items: list[Item]) -> list[float]:
    """Log-likelihoods in nats, one forward pass each."""
    totals = []
    for messages, reply in items:
        ids = renderer.render([*messages, Message(role="assistant", content=reply)]).ids
        start = len(renderer.prompt_ids(messages))
        end = max(i for i, token in enumerate(ids) if token in renderer.eos_ids)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:end]]), use_cache=False, logits_to_keep=end - start + 1).logits
        log_p = logits[0, :-1].float().log_softmax(-1)
        totals.append(float(log_p.gather(1, torch.tensor(ids[start:end])[:, None]).sum()))
    return totals


def timed(way: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds, and the result."""
    begun = time.perf_counter()
    result = way(*given)
    return time.perf_counter() - begun, result


def line(name: str, values: list[float], unit: str) -> str:
    """Minimum, median, maximum."""
    return (
        f"{name}: {min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f} {unit} (min / median / max)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", help="data home that holds the starter, or where to fetch it to")
    parser.add_argument("--persona", default="magpie", choices=sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir()))
    parser.add_argument("--probes", type=int, default=12)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fp32", action="store_true")
    given = parser.parse_args()
    home = Home.resolve(given.home)
    info = ensure("starter", home, Quiet())
    model = load_model(info, worker_machine(home.root), full_precision=given.fp32)
    renderer = ChatRenderer(Path(info.path))
    items = ranking(given.persona, given.probes, given.candidates)
    plain(model, renderer, items[:2])  # the first passes are slower
    loglikelihood(model, renderer, items[:2])
    alone, together, apart = [], [], 0.0
    for _ in range(given.repeats):
        seconds, totals = timed(plain, model, renderer, items)
        alone.append(seconds)
        seconds, results = timed(loglikelihood, model, renderer, items)
        together.append(seconds)
        apart = max(apart, *(abs(a - b.total) / b.tokens for a, b in zip(totals, results, strict=True)))
    print(f"{len(items)} items of {given.probes} probes, {model.dtype}, {sum(r.tokens for r in results)} reply tokens")
    print(line("one at a time", alone, "s"))
    print(line("all at once", together, "s"))
    print(line("ratio", [a / b for a, b in zip(alone, together, strict=True)], "times"))
    print(f"furthest apart: {apart:.2g} nats a token")


if __name__ == "__main__":
    main()
