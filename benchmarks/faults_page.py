"""The results of `faults.py` as Markdown: every number is counted from what it kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

from faults_driven import MOMENTS, VICTIMS

Rows = list[dict[str, Any]]
NOT_RUN = ["Not run yet.", ""]


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    moments, full, damage = (document[part] for part in ("moments", "full", "damage"))
    lines = [
        "# Faults",
        "",
        "What is lost when processes are killed, disks fill up and files are damaged, counted by",
        "[`benchmarks/faults.py`](../benchmarks/faults.py); every moment is in [faults.json](faults.json). Runs are of",
        "a tiny random model: what is tested is what is written and found again, not the model. It wrote this page.",
        "",
        *(f"- {s['date']} UTC: `{s['command']}` ({s['machine']})" for s in document["sessions"]),
        "",
        *_kills(moments),
        *_trainings(moments, full),
        *_full(full),
        *_damage(damage),
    ]
    lost = [entry for part in (moments, full, damage) for m in part for entry in m["lost"]]
    lines += ["## What was lost", "", *([f"- {entry}" for entry in lost] or ["Nothing."])]
    return "\n".join(lines) + "\n"


def _kills(moments: Rows) -> list[str]:
    lines = [
        "## kill -9 at random moments",
        "",
        "*Acknowledged*: datasets, characters, votes, variants and exports that somebody had been told of, and those",
        "the home began with. *Cut off*: runs that the kill interrupted; each must say so (*named*) and come to its",
        "end when it is resumed (*resumed*). *Lost*: anything acknowledged that is gone or changed, a library that",
        "cannot be read, a run that cannot be resumed, or damage that the doctor does not mend.",
        "",
        "| killed | while it | moments | acknowledged | cut off | named | resumed | lost |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    total = [0] * 6
    for victim, operations in VICTIMS.items():
        for operation in operations:
            cell = [m for m in moments if (m["victim"], m["operation"]) == (victim, operation)]
            names = ("acknowledged", "interrupted", "named", "resumed")
            counts = [len(cell), *(sum(m[n] for m in cell) for n in names), sum(len(m["lost"]) for m in cell)]
            total = [a + b for a, b in zip(total, counts, strict=True)]
            lines.append(f"| {victim} | {operation} | {' | '.join(map(str, counts))} |")
    lines += [f"| **all** | | {' | '.join(f'**{n}**' for n in total)} |", ""]
    if total[0] < MOMENTS * len(VICTIMS):
        told = f"{total[0]} moments so far; the campaign is made for {MOMENTS} a victim ({MOMENTS * len(VICTIMS)})."
        lines += [f"{told} The same command with the same `--out` goes on.", ""]
    places = Counter(m["where"] for m in moments if m["victim"] == "worker")
    if places:
        lines += [f"Workers were killed in these phases: {_told(places)}.", ""]
    return lines


def _trainings(moments: Rows, full: Rows) -> list[str]:
    """Which strategies were at work; moments of an earlier version of the program do not say."""
    found = Counter(m.get("strategy") or "not noted" for m in [*moments, *full] if m["operation"] == "train")
    return [f"What was trained when a training was hit: {_told(found)}.", ""] if found else []


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def _full(full: Rows) -> list[str]:
    if not full:
        return ["## Full disks", "", *NOT_RUN]
    lines = [
        "## Full disks",
        "",
        "A file system with so much room left; afterwards the room is given back, and what was cut off is resumed.",
        "",
        "| bytes left | while it | cut off, as | resumed | lost |",
        "|--:|---|---|--:|--:|",
    ]
    for m in sorted(full, key=lambda m: (m["operation"], m["free_bytes"])):
        what = m["where"] or ("refused" if m["said"] else "went well")
        lines.append(f"| {m['free_bytes']:,} | {m['operation']} | {what} | {m['resumed']} | {len(m['lost'])} |")
    return [*lines, ""]


def _damage(damage: Rows) -> list[str]:
    if not damage:
        return ["## Damaged files", "", *NOT_RUN]
    lines = [
        "## Damaged files",
        "",
        "Each damage is made in a fresh home; then `persona-lab doctor`, then `doctor --repair`. *Opens*: the home",
        "opens and lists everything else that it listed before the damage, before and after the repair. *Itself*: what",
        "the file is of (a run, a vote, ...) is still listed after the repair. *Kept*: the bytes of every other file,",
        "and of the damaged one, are still in the home. *Lost*: what is not listed any more though its own file was",
        "not damaged, bytes that are gone, what the doctor does not mend, a home that does not open.",
        "",
        "| file | damage | opens | named | repaired | itself | kept | lost |",
        "|---|---|---|---|---|---|---|--:|",
    ]
    for m in damage:
        cells = _checkpoint_cells(m) if "gone_on" in m else _file_cells(m)
        lines.append(f"| `{m['file']}` | {m['how']} | {' | '.join(cells)} | {len(m['lost'])} |")
    return [*lines, ""]


def _file_cells(m: dict[str, Any]) -> tuple[str, ...]:
    whole = [m[f"opened_{when}"] and not m[f"missing_{when}"] for when in ("before", "after")]
    itself = "" if m["itself"] is None else _yes(m["itself"])
    return ", ".join(map(_yes, whole)), _yes(m["named"]), _yes(m["mended"]), itself, _yes(m["kept"])


def _checkpoint_cells(m: dict[str, Any]) -> tuple[str, ...]:
    """Of a checkpoint: it is passed over at the resuming, and the run goes on from the one before."""
    opens = _yes(not any("does not open" in entry for entry in m["lost"]))
    from_where = "from the one before" if m["gone_on"] else "from the start"
    return opens, _yes(m["named"]), f"{m['resumed']} resumed {from_where} ({m['strategy']})", _yes(m["resumed"]), ""


def _yes(value: object) -> str:
    return "yes" if value else "no"
