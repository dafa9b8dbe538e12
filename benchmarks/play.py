"""How many of lord_goring's pairs come out of the play read as a raw script?

    python benchmarks/play.py DATA

DATA holds lord_goring/pairs.jsonl and other_characters.jsonl. The play's speeches are in them, with their numbers: they
are put back in order and printed as Project Gutenberg prints the play (NAME. text, wrapped at 73 columns, acts, stage
directions inside and between speeches, now and then a name without its full stop, licence around it). Numbers that
neither file has (very short and very long speeches, about one in eighteen) are missing from the script too; a pair
whose two speeches are both there must come out. It is the play's text in the play's layout, not the play's file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import textwrap
from pathlib import Path
from typing import Any

ACTS = ("FIRST ACT", "SECOND ACT", "THIRD ACT", "FOURTH ACT")
DIRECTIONS = ("[_Smiling_.]", "[_Rising, and going towards the door_.]", "[_With a sigh_.]", "[_Looks at_ PHIPPS.]")
BETWEEN = (
    "[_Enter_ MASON _with a letter on a salver_.  LADY MARKBY, _who has been\nlooking at the orchids_, _rises_.]",
    "[_They go out together_.  _A pause_.  MABEL CHILTERN _takes the\nsofa_.]",
)


def speeches(folder: Path) -> tuple[dict[int, tuple[str, str, int]], list[dict[str, Any]]]:
    """(speaker, text, act) by number, and the pairs."""
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    others = [json.loads(line) for line in (folder / "other_characters.jsonl").read_text("utf-8").splitlines()]
    found: dict[int, tuple[str, str, int]] = {row["i"]: (row["speaker"], row["text"], row["act"]) for row in others}
    for pair in pairs:
        number = int(pair["id"].rsplit("-", 1)[1])
        found[number] = ("Lord Goring", pair["assistant"], pair["act"])
        found[number - 1] = (pair["user_speaker"], pair["user"], pair["act"])
        for back, line in enumerate(reversed(pair["context"]), 2):
            found.setdefault(number - back, (line["speaker"], line["text"], pair["act"]))
    return found, pairs


def as_printed(found: dict[int, tuple[str, str, int]], seed: int = 0) -> str:
    """The speeches as a raw script."""
    dice = random.Random(seed)
    lines = ["The Project Gutenberg eBook", "***START OF THE PROJECT GUTENBERG EBOOK AN IDEAL HUSBAND***", ""]
    lines += [
        "THE PERSONS OF THE PLAY",
        "",
        "VISCOUNT GORING, his Son",
        "",
        "LADY CHILTERN",
        "",
        "TIME: _The Present_",
        "",
    ]
    act, number = 0, 0
    for key in sorted(found):
        speaker, text, of_act = found[key]
        if of_act != act:
            act = of_act
            lines += ["", "ACT DROP" if number else "", "", ACTS[number], "", "SCENE", ""]
            number += 1
        words = text.replace("...", " . . .").split()
        if dice.random() < 0.25:
            words.insert(dice.choice((0, len(words))), dice.choice(DIRECTIONS))
        stop = "" if words[0].startswith("[") and dice.random() < 0.1 else "."
        lines += [textwrap.fill(f"{speaker.upper()}{stop}  {' '.join(words)}", 73, break_on_hyphens=False), ""]
        if dice.random() < 0.05:
            lines += [dice.choice(BETWEEN), ""]
    lines += ["CURTAIN", "", "***END OF THE PROJECT GUTENBERG EBOOK AN IDEAL HUSBAND***", "END USER LICENSE: none."]
    return "\n".join(lines)


def share_of_pairs(conversations: Any, pairs: list[dict[str, Any]]) -> tuple[float, list[str]]:
    """The share of pairs that come out (the turn before the reply ends with the question), and the ids lost."""
    made = set()
    for conversation in conversations:
        asked = ""
        for message in conversation.messages:
            if message.role == "user":
                asked = message.content.split("\n")[-1]
            else:
                made.add((_plain(asked), _plain(message.content.split("\n")[0])))
    lost = [pair["id"] for pair in pairs if (_plain(pair["user"]), _plain(pair["assistant"])) not in made]
    return 1 - len(lost) / len(pairs), lost


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def main() -> None:
    """Print the share."""
    import tempfile

    from persona_lab_builtin.readers.script import ScriptReader

    from persona_lab.types import Persona

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    folder = parser.parse_args().data / "lord_goring"
    found, pairs = speeches(folder)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "play.txt"
        path.write_text(as_printed(found), encoding="utf-8")
        persona = Persona(id="goring", name="Lord Goring", card={"data": {"name": "Lord Goring"}})
        reader = ScriptReader()
        print(f"detected: {reader.detect(path)}")
        result = reader.read(path, persona, {})
    share, lost = share_of_pairs(result.conversations, pairs)
    print(json.dumps({"speeches": len(found), "pairs": len(pairs), "share": share, "lost": lost}))


if __name__ == "__main__":
    main()
