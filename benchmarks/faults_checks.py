"""What must still be there after a fault of `faults.py`, and what the doctor says of a damaged home."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faults_driven import DEADLINE

from persona_lab import checkup
from persona_lab.checkup import looking
from persona_lab.engine import Engine
from persona_lab.errors import PersonaLabError
from persona_lab.home import Home
from persona_lab.jobs import ACTIVE


def verify(home: Path, facts: list[dict[str, Any]], resume: bool) -> dict[str, Any]:
    """Open the home again, compare it with what was promised, and finish what was cut off.

    Returns:
        {"acknowledged", "lost": [...], "interrupted", "named", "resumed", "where", "mended"}
    """
    lost: list[str] = []
    result: dict[str, Any] = {"acknowledged": 0, "interrupted": 0, "named": 0, "resumed": 0, "where": ""}
    try:
        json.loads((home / "library.json").read_text())
    except (OSError, ValueError) as error:
        lost.append(f"library: {error}")
    try:
        with Engine.open(home) as engine:
            _settle(engine)
            runs = [run for run in engine.runs() if run.status not in ("done", *ACTIVE)]
            result["interrupted"] = len(runs)
            silent = [run.id for run in runs if not (run.cause and run.message and run.fix)]
            result["named"] = len(runs) - len(silent)
            lost += [f"run {run_id} does not say what became of it" for run_id in silent]
            result["where"] = ", ".join(run.cause for run in runs)
            for run in runs if resume else ():
                engine.resume(run.id)
                ended = _ended(engine, run.id)
                if ended.status == "done":
                    result["resumed"] += 1
                else:
                    lost.append(f"run {run.id}: {ended.status} {ended.message}")
            lost += _promised(engine, facts)
    except (PersonaLabError, OSError, ValueError) as error:
        lost.append(f"the home does not open: {type(error).__name__}: {error}")
    looking.LEFTOVER_SECONDS = 0.0
    found = checkup.repair(Home(home), deep=True)
    left = checkup.examine(Home(home), deep=True)
    lost += [f"not mended: {f.path}: {f.what}" for f in left]
    lost += [f"damaged by the fault: {f.path}: {f.what}" for f in found if f.kind not in ("leftover", "run")]
    names = ("persona", "dataset", "vote", "variant", "export")
    result["acknowledged"] = sum(any(name in fact for name in names) for fact in facts) + 4
    mended = [f"{f.kind}: {f.what}" for f in found]
    return {**result, "mended": len(found), "put_aside": mended[:8], "lost": lost}


def _settle(engine: Engine) -> None:
    """Runs whose worker outlived the page, or that wait, come to their end."""
    for run in engine.runs():
        if run.status in ACTIVE:
            _ended(engine, run.id)


def _ended(engine: Engine, run_id: str) -> Any:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        run = engine.run(run_id)
        if run.status not in ACTIVE and (run.status != "done" or run.kind != "train" or run.variant):
            return run
        time.sleep(0.1)
    return engine.run(run_id)


def _promised(engine: Engine, facts: list[dict[str, Any]]) -> list[str]:
    """What was promised, or was in the base, and is not there."""
    missing = []
    personas = {persona.id for persona in engine.personas() if persona.installed}
    variants = {variant.id for variant in engine.variants()}
    votes, indexed = {vote.id for vote in engine.votes.all()}, {row["id"] for row in engine.library.all("votes")}
    if not votes:
        missing.append("the vote of the base")
    for fact in [{"persona": "tam"}, {"dataset": "tam-v1", "conversations": 24}, {"variant": "tam-lora-1"}, *facts]:
        if "persona" in fact and fact["persona"] not in personas:
            missing.append(f"persona {fact['persona']}")
        if "vote" in fact and not {fact["vote"]} <= votes & indexed:
            missing.append(f"vote {fact['vote']}")
        if "variant" in fact and fact["variant"] not in variants:
            missing.append(f"variant {fact['variant']}")
        if "dataset" in fact:
            count = len(engine.dataset(fact["dataset"]).conversations)
            if count != fact["conversations"]:
                missing.append(f"dataset {fact['dataset']}: {count} of {fact['conversations']} conversations")
        if "export" in fact and not _whole_export(Path(fact["export"])):
            missing.append(f"export {fact['export']}")
    # an export that was cut off is whole or not there
    for folder in engine.home.root.parent.glob("exported-*"):
        if not _whole_export(folder):
            missing.append(f"half an export in {folder}")
    return missing


def _whole_export(folder: Path) -> bool:
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = dict(reversed(line.split("  ", 1)) for line in lines)
        return bool(sums) and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == known for name, known in sums.items()
        )
    except OSError:
        return False


# --- damaged files ---


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), max(1, len(content) // 7)):
        content[place] ^= 0x55
    path.write_bytes(content)


WAYS: dict[str, Callable[[Path], None]] = {
    "cut in half": _cut,
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "bytes flipped": _flip,
}
DAMAGED = (
    "library.json", "runs/*/events.jsonl", "runs/*/job.json", "runs/*/exit.json", "variants/*/variant.json",
    "personas/*/card.json", "personas/*/held_out.jsonl", "personas/*/datasets/*.jsonl",
    "personas/*/datasets/*.summary.json", "votes/*.json",
)  # fmt: skip


def listed(home: Path) -> dict[str, set[str]] | None:
    """The ids of everything that the lab lists, by kind; None where the home does not open."""
    try:
        with Engine.open(home) as engine:
            return {
                "personas": {persona.id for persona in engine.personas() if persona.installed},
                "datasets": {dataset.id for dataset in engine.datasets()},
                "variants": {variant.id for variant in engine.variants()},
                "runs": {run.id for run in engine.runs()},
                "votes": {vote.id for vote in engine.votes.all()},
                "reports": {report.id for report in engine.reports()},
            }
    except (PersonaLabError, ValueError, OSError):
        return None


def belongs_to(file: Path) -> tuple[str, str]:
    """The kind and id of what a file of a home (relative to it) is of; two empty texts: of nothing that is listed."""
    parts = file.parts
    if parts[0] in ("runs", "variants"):
        return parts[0], parts[1]
    if parts[0] == "votes":
        return "votes", file.stem
    if len(parts) == 4 and parts[2] == "datasets":
        return "datasets", file.name.partition(".")[0]
    return ("personas", parts[1]) if file.name == "card.json" else ("", "")


def missing(before: Mapping[str, set[str]], now: Mapping[str, set[str]] | None, but: tuple[str, str]) -> list[str]:
    """What was listed before, is not now, and is not the one thing (kind, id) that was damaged itself."""
    return [
        f"{kind}/{one}"
        for kind, ids in before.items()
        for one in sorted(ids - (now or {}).get(kind, set()))
        if (kind, one) != but
    ]


def examined(home: Path, file: Path, before: Mapping[str, set[str]]) -> dict[str, Any]:
    """What the doctor says of a damaged home, and what it lists before and after the repair.

    Args:
        file: the damaged one, relative to the home.
        before: what was listed before the damage.
    """
    kind, one = itself = belongs_to(file)
    assert not kind or one in before[kind], f"{file} is of {itself}, which was never listed"
    contents = _contents(home)
    first = listed(home)
    named = checkup.examine(Home(home), deep=True)
    done = checkup.repair(Home(home), deep=True)
    still = set(_contents(home).values())
    gone = [path for path, content in contents.items() if content not in still]
    left = [f.path for f in checkup.examine(Home(home), deep=True) if f.mendable]
    last = listed(home)
    lost = [f"not mended: {path}" for path in left] + ([] if last else ["the home does not open"])
    lost += [f"not listed any more: {thing}" for thing in missing(before, last, itself)]
    lost += [f"its bytes are gone: {path}" for path in gone]
    return {
        "opened_before": first is not None,
        "missing_before": missing(before, first, itself),
        "named": [f"{f.path}: {f.what}"[:160] for f in named],
        "mended": [f.done[:160] for f in done if f.done],
        "opened_after": last is not None,
        "missing_after": missing(before, last, itself),
        "itself": one in (last or {}).get(kind, set()) if kind else None,
        "kept": not gone,
        "lost": lost,
    }


def _contents(home: Path) -> dict[str, bytes]:
    """The bytes of every file that may not go: the library and its backup are rewritten at each opening."""
    found = {}
    for path in home.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if content and not content.lstrip().startswith(b'{"meta"') and not content.isdigit():
            found[str(path.relative_to(home))] = content
    return found
