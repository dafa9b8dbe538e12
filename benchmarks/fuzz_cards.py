"""Reads thousands of damaged and hostile character files: no crash, nothing over 2 seconds, nothing over 500 MB.

    python benchmarks/fuzz_cards.py --cases 10000 --seed 0 --out fuzz-cards.json

Each case is a good file (fuzz_seeds.py) that was damaged, bit by bit or in its structure with the checksums made right
again. It is read as the page would read it; what is taken is used as the page would use it, and written and read once
more. A refusal (BadInput) is as good as a card; any other exception is a failure, and so is a card that changes on its
way. The same seed gives the same files. Exit code 1 where there was a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import platform
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz_seeds import bombs, damaged, seeds

from persona_lab.errors import BadInput
from persona_lab.personas.bundle import Bundle
from persona_lab.personas.cards import CardFile, card_name, card_of, card_to_json, card_to_png
from persona_lab.personas.charx import write_charx
from persona_lab.personas.dialogues import example_dialogues
from persona_lab.personas.files import persona_file_of
from persona_lab.personas.lorebook import book_of, lore_for
from persona_lab.personas.macros import unknown_macros
from persona_lab.personas.prompt import greetings, lore_of, system_prompt
from persona_lab.personas.world_info import added_to
from persona_lab.types import Message, Persona

MOST_SECONDS = 2.0
MOST_MEMORY = 500 * 2**20
HANG_SECONDS = 30
SAID = "Tell me of the tug, the king and the 42 dragons! aaaaaaaaaaaaaaaaaaaaaaaa"


@dataclass
class Campaign:
    """What came of the cases so far."""

    cases: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def run(self, label: str, data: bytes, yaml: bool, must_refuse: bool = False) -> None:
        """Read one file, time it, and remember how it went."""
        self.cases += 1
        begun = time.perf_counter()
        try:
            kind = use(data, yaml)
            self.taken[kind] += 1
            if must_refuse:
                self.failures.append({"case": label, "error": "it was taken, and must be refused"})
        except BadInput as error:
            self.refused[label.split(":")[0]] += 1
            if not error.fix or "\n" in str(error) or len(str(error)) > 1_000:
                self.failures.append({"case": label, "error": f"no sentence for people: {str(error)[:300]!r}"})
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what this program looks for
            told = traceback.format_exc(limit=-3)
            self.failures.append({"case": label, "error": f"{type(error).__name__}: {error}"[:300], "where": told})
        seconds = time.perf_counter() - begun
        if seconds > MOST_SECONDS:
            self.failures.append({"case": label, "error": f"took {seconds:.1f} s"})
        self.slowest = max(self.slowest, (seconds, label))


def use(data: bytes, yaml: bool) -> str:
    """Read a file, and use and write what is in it; gives what it was.

    Raises:
        BadInput: it is refused. AssertionError: what was written is not what was read.
    """
    found = persona_file_of(data, "file", yaml)
    if isinstance(found, CardFile):
        _use_card(found)
        return found.spec
    if isinstance(found, Bundle):
        _use_card(found.card)
        return "bundle"
    merged, _ = added_to(None, found.entries)
    lore_for(book_of({"character_book": merged}), [SAID])
    return found.kind


def _use_card(found: CardFile) -> None:
    card = found.card
    persona = Persona(id="x", name=card_name(card["data"]), card=card)
    lore = lore_of(persona, [Message(role="user", content=SAID)])
    system_prompt(persona, lore=lore).encode("utf-8")
    for text in greetings(persona):
        text.encode("utf-8")
    example_dialogues(persona)
    unknown_macros(persona)
    text = card_to_json(card)
    written = [text.encode(), card_to_png(card, found.avatar_png), write_charx(text, card, found.files, None)]
    for content in written:
        again = card_of(content, "again").card
        if json.dumps(again, sort_keys=True) != json.dumps(card, sort_keys=True):
            raise AssertionError("the card changed on its way out and in")


def campaign(cases: int, seed: int) -> Campaign:
    """Good files, bombs, then `cases` damaged files."""
    result = Campaign()
    good = seeds()
    for name, data in good.items():
        result.run(f"good:{name}", data, name.endswith(".yaml"))
    if result.refused:
        result.failures.append({"case": "good", "error": f"a good file was refused: {dict(result.refused)}"})
    for name, data in bombs():
        result.run(f"bomb:{name}", data, name.endswith(".yaml"), must_refuse=True)
    for label, name, data in _damaged_files(good, cases, seed):
        result.run(label, data, name.endswith(".yaml"))
    return result


def _damaged_files(good: dict[str, bytes], cases: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    names = sorted(good)
    for number in range(cases):
        name = names[number % len(names)]
        how, data = damaged(name, good, Random(f"{seed}-{number}"))
        yield f"{name}:{how}:{number}", name, data


def peak_memory() -> int:
    """The most this process ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(result: Campaign, seed: int, seconds: float) -> dict[str, Any]:
    """The campaign as one JSON document."""
    memory = peak_memory()
    if memory > MOST_MEMORY:
        result.failures.append({"case": "all", "error": f"{memory / 2**20:.0f} MiB were held"})
    return {
        "cases": result.cases,
        "seed": seed,
        "failures": result.failures,
        "taken": dict(result.taken.most_common()),
        "refused": dict(result.refused.most_common()),
        "slowest": {"seconds": round(result.slowest[0], 3), "case": result.slowest[1]},
        "peak_memory_mib": round(memory / 2**20),
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
    }


def main() -> int:
    """Run the campaign; 1 where there was a failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(HANG_SECONDS * max(1, options.cases // 1_000), exit=True)
    begun = time.monotonic()
    document = report(campaign(options.cases, options.seed), options.seed, time.monotonic() - begun)
    text = json.dumps(document, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text, end="")
    return 1 if document["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
