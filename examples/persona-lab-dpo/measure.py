"""Does DPO move a real variant towards what was voted for, on votes that it did not learn from?

    nice python measure.py --home DIR [--persona nan_tolliver] [--epochs 1] [--questions 100] [--set epochs=2 ...]

A LoRA variant of the persona, under the first line of its card (so that it takes minutes on a laptop), is trained
on the starter, and says two things to each question (other seeds, temperature 1). A synthetic voter, who cannot be
mistaken about what it likes, prefers the reply with fewer words; equally long ones are left out. `dpo` learns from
four fifths of the questions. Prints one JSON document: the margin (log-likelihood of the preferred reply minus the
other's, nats) on the held-out fifth before and after, its gain with a 95% interval (bootstrap over questions), and
the mean words of fresh replies to the held-out questions by both variants. The package must be installed, or its
file copied to DIR/plugins.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from persona_lab.engine import Engine
from persona_lab.home import write_atomic
from persona_lab.types import ChatRequest, Message, Persona, RunView, Sampling, Variant

AT_ONCE = 16
MOST_TOKENS = 48
FRESH_SEEDS = (101, 102, 103)


def main() -> None:
    """Train, vote, train on the votes, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--persona", default="nan_tolliver")
    parser.add_argument("--variant", default="", help="Go on from this LoRA variant of the home; else one is trained.")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=1, help="Of the LoRA variant that the votes are about.")
    parser.add_argument("--set", action="append", default=[], help="Settings of dpo.")
    options = parser.parse_args()
    settings = dict(pair.split("=", 1) for pair in options.set)
    with Engine.open(options.home) as engine:
        persona = _short(engine, options.persona)
        rows = engine.dataset(engine.datasets(persona)[0].id).of("train")
        questions = list(dict.fromkeys(row.messages[0].content for row in rows if row.messages[0].role == "user"))
        begin = {"epochs": options.epochs, "samples": 0}
        known = options.variant or done(engine, engine.train(persona, "lora", settings=begin)).variant
        parent = engine.variant(str(known))
        first, second = (replies(engine, parent, questions[: options.questions], [seed]) for seed in (1, 2))
        votes = [vote for question in first if (vote := voted(question, first[question][0], second[question][0]))]
        file = options.home / "votes.jsonl"
        write_atomic(file, "".join(json.dumps(vote) + "\n" for vote in votes))
        asked = settings | {"variant": parent.id, "preferences": str(file)}
        run = done(engine, engine.train(persona, "dpo", settings=asked))
        child = engine.variant(str(run.variant))
        details = run.result["artifact"]["details"]
        held_out = _held_out(votes)
        words = {
            name: mean_words(replies(engine, variant, held_out, FRESH_SEEDS))
            for name, variant in (("before", parent), ("after", child))
        }
        told = {name: details[name] for name in details if name.startswith(("margin", "preferred", "held_out", "pref"))}
        device = engine.machine().device_name
    print(json.dumps({"device": device, "votes": len(votes), **told, "fresh_words": words}, indent=1))


def _short(engine: Engine, persona_id: str) -> str:
    """A copy of the persona with its data under a card of one line; its id. DPO reads the card with each reply."""
    whole = engine.persona(persona_id)
    card = {"data": {"name": whole.name, "description": whole.field("description").split(". ")[0][:200]}}
    short = Persona(id=f"{persona_id[:40]}-short", name=whole.name, card=card)
    if not engine.datasets(short.id):
        engine.save_persona(short)
        data = engine.catalog.dataset_path(engine.datasets(persona_id)[-1].id)
        engine.import_dataset(data, short.id)
    return short.id


def voted(question: str, one: str, other: str) -> dict[str, Any] | None:
    """A pair as the votes are exported; None where both are equally long, or one says nothing."""
    a, b = len(one.split()), len(other.split())
    if not a or not b or a == b:
        return None
    chosen, rejected = (one, other) if a < b else (other, one)
    turns = {"prompt": ("user", question), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
    return {name: [{"role": role, "content": text}] for name, (role, text) in turns.items()}


def _held_out(votes: list[dict[str, Any]]) -> list[str]:
    """The questions that the strategy holds out, by its own rule."""
    from persona_lab_dpo import split

    pairs = [([Message.model_validate(vote["prompt"][0])], "", "") for vote in votes]
    return [pair[0][0].content for pair in split(pairs, 0.2)[0]]


def replies(engine: Engine, variant: Variant, questions: list[str], seeds: Any) -> dict[str, list[str]]:
    """What the variant says to each question, once for each seed."""
    asked = [(question, seed) for question in questions for seed in seeds]
    said: dict[str, list[str]] = {question: [] for question in questions}
    for at in range(0, len(asked), AT_ONCE):
        batch = asked[at : at + AT_ONCE]
        requests = [
            ChatRequest(
                pane=str(number),
                variant=variant,
                messages=(Message(role="user", content=question),),
                sampling=Sampling(temperature=1, max_new_tokens=MOST_TOKENS, seed=seed),
            )
            for number, (question, seed) in enumerate(batch)
        ]
        texts = [""] * len(batch)
        for chunk in engine.chat(requests):
            if chunk.error:
                raise SystemExit(chunk.error)
            texts[int(chunk.pane)] += chunk.text
        for (question, _), text in zip(batch, texts, strict=True):
            said[question].append(text.strip())
    return said


def mean_words(said: dict[str, list[str]]) -> float:
    """Words of a reply, on average."""
    counts = [len(text.split()) for texts in said.values() for text in texts]
    return sum(counts) / len(counts)


def done(engine: Engine, run_id: str) -> RunView:
    """The run when it is over."""
    run = engine.wait(run_id)
    if run.status != "done":
        raise SystemExit(f"{run_id} is {run.status}: {run.message} {run.fix}")
    return run


if __name__ == "__main__":
    main()
