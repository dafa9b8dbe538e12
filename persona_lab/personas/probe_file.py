"""A persona's own probes, in its folder's probes.jsonl: read, checked, changed, written, and put back.

One JSON object a line, of one of three kinds:

    {"id": "fact-01", "kind": "fact", "question": "...", "paraphrases": [...], "answer": "...", "wrong": [...]}
    {"id": "attack-01", "kind": "adversarial", "attack": "identity", "prompt": "..."}
    {"id": "line-01", "kind": "reply", "messages": [{"role": "user", "content": "..."}], "reply": "..."}

A reply probe may have a `prompt` in place of `messages`. Facts become `Persona.facts` (see store.py). This module
writes one file and knows nothing of the library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from persona_lab.datasets.held_out import MIN_WORDS, long_enough, normalised
from persona_lab.datasets.toolkit import parse_json, read_text
from persona_lab.errors import BadInput, BadSetting, UnknownName
from persona_lab.home import write_atomic
from persona_lab.personas.store import PROBES
from persona_lab.types import AdversarialPrompt, Conversation, Fact, Frozen, Message

BACKUP = PROBES + ".bak"
MAX_BYTES = 4 * 2**20
MAX_PROBES = 2_000
MAX_TEXT = 4_000
"""Characters of a question, answer, prompt or line."""
MAX_LIST = 32
"""Paraphrases, wrong answers or turns of one probe."""
MAX_ID = 100
KINDS = ("fact", "adversarial", "reply")
STEMS = {"fact": "fact", "adversarial": "attack", "reply": "line"}


class _HasFact(Protocol):
    @property
    def fact(self) -> Fact: ...


_Proposed = TypeVar("_Proposed", bound=_HasFact)


class ReplyProbe(Frozen):
    """A line of the character that it was never trained on, and the turns before it."""

    id: str
    messages: tuple[Message, ...]
    reply: str

    @property
    def conversation(self) -> Conversation:
        """The turns and the line, as one conversation."""
        turns = (*self.messages, Message(role="assistant", content=self.reply))
        return Conversation(id=self.id, messages=turns, source=f"{PROBES}: {self.id}")


OwnProbe = Fact | AdversarialPrompt | ReplyProbe


@dataclass(frozen=True)
class ProbeFile:
    """The probes of one file, in its order. `problems`: (line number, what is wrong) of lines that were left out."""

    probes: tuple[OwnProbe, ...] = ()
    problems: tuple[tuple[int, str], ...] = field(default=(), compare=False)

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(p for p in self.probes if isinstance(p, Fact))

    @property
    def adversarial(self) -> tuple[AdversarialPrompt, ...]:
        return tuple(p for p in self.probes if isinstance(p, AdversarialPrompt))

    @property
    def replies(self) -> tuple[ReplyProbe, ...]:
        return tuple(p for p in self.probes if isinstance(p, ReplyProbe))

    def added(self, new: Iterable[OwnProbe]) -> ProbeFile:
        """With more probes at the end; one whose id is taken gets another, one that is here already is passed over.

        Raises:
            BadInput: there would be too many.
        """
        probes = list(self.probes)
        known = {_content(probe) for probe in probes}
        for probe in new:
            if _content(probe) not in known:
                known.add(_content(probe))
                probes.append(_with_free_id(probe, {p.id for p in probes}))
        if len(probes) > MAX_PROBES:
            raise BadInput(f"That would be {len(probes):,} probes; at most {MAX_PROBES:,} are kept.", "Add fewer.")
        return ProbeFile(tuple(probes))

    def removed(self, ids: Iterable[str]) -> ProbeFile:
        """Without these probes.

        Raises:
            UnknownName: one is not here (nothing is removed).
        """
        gone = set(ids)
        known = {probe.id for probe in self.probes}
        for name in sorted(gone - known):
            raise UnknownName("probe of your own", name, known)
        return replace(self, probes=tuple(probe for probe in self.probes if probe.id not in gone))

    def replaced(self, probe: OwnProbe) -> ProbeFile:
        """With this probe in the place of the one that has its id.

        Raises:
            UnknownName: there is none.
        """
        known = [each.id for each in self.probes]
        if probe.id not in known:
            raise UnknownName("probe of your own", probe.id, known)
        return replace(self, probes=tuple(probe if each.id == probe.id else each for each in self.probes))


def kind_of(probe: OwnProbe) -> str:
    """`fact`, `adversarial` or `reply`."""
    return "fact" if isinstance(probe, Fact) else "reply" if isinstance(probe, ReplyProbe) else "adversarial"


def asked(probe: OwnProbe) -> str:
    """What the probe asks, for people."""
    if isinstance(probe, Fact):
        return probe.question
    return probe.messages[-1].content if isinstance(probe, ReplyProbe) else probe.prompt


def _content(probe: OwnProbe) -> tuple[str, ...]:
    answer = probe.answer if isinstance(probe, Fact) else probe.reply if isinstance(probe, ReplyProbe) else ""
    return kind_of(probe), normalised(asked(probe)) or asked(probe), normalised(answer) or answer


def _with_free_id(probe: OwnProbe, taken: set[str]) -> OwnProbe:
    return probe if probe.id not in taken else probe.model_copy(update={"id": free_id(kind_of(probe), taken)})


def free_id(kind: str, taken: Iterable[str]) -> str:
    """The first unused id of a kind: `fact-01`, `attack-02`, ..."""
    known, number = set(taken), 1
    while f"{STEMS[kind]}-{number:02}" in known:
        number += 1
    return f"{STEMS[kind]}-{number:02}"


def not_asked_yet(file: ProbeFile, proposed: Iterable[_Proposed]) -> list[_Proposed]:
    """The proposed facts whose question no fact of the file asks."""
    known = {normalised(question) for fact in file.facts for question in (fact.question, *fact.paraphrases)}
    return [each for each in proposed if normalised(each.fact.question) not in known]


# --- checking -------------------------------------------------------------------------------------


def fact_problems(fact: Fact) -> list[tuple[str, str]]:
    """(field, what is wrong) for each field of a fact that cannot be used."""
    problems = [*_text_problems("question", fact.question), *_text_problems("answer", fact.answer)]
    for name, texts in (("paraphrases", fact.paraphrases), ("wrong", fact.wrong)):
        if len(texts) > MAX_LIST:
            problems.append((name, f"has {len(texts)} entries; at most {MAX_LIST} are used"))
        problems += [problem for text in texts for problem in _text_problems(name, text)][:1]
    wrong = [_plain(text) for text in fact.wrong]
    if _plain(fact.answer) in wrong:
        problems.append(("wrong", f"holds the right answer, {fact.answer!r}"))
    if len(set(wrong)) < len(wrong):
        problems.append(("wrong", "names an answer twice"))
    return problems


def probe_problems(probe: OwnProbe) -> list[tuple[str, str]]:
    """(field, what is wrong) for each field of a probe that cannot be used."""
    problems = []
    if not probe.id.strip() or len(probe.id) > MAX_ID or not probe.id.isprintable():
        problems.append(("id", f"must be a short name of at most {MAX_ID} characters"))
    if isinstance(probe, Fact):
        return problems + fact_problems(probe)
    if isinstance(probe, AdversarialPrompt):
        return [*problems, *_text_problems("prompt", probe.prompt), *_text_problems("attack", probe.attack)]
    if not probe.messages or probe.messages[-1].role != "user":
        problems.append(("messages", "must end with a turn of the user, which the line answers"))
    if len(probe.messages) > MAX_LIST:
        problems.append(("messages", f"has {len(probe.messages)} turns; at most {MAX_LIST} are used"))
    problems += [problem for message in probe.messages for problem in _text_problems("messages", message.content)][:1]
    problems += _text_problems("reply", probe.reply)
    if probe.reply.strip() and not long_enough(probe.reply):
        problems.append(("reply", f"is too short: a line of under {MIN_WORDS} words is anybody's"))
    return problems


def _plain(text: str) -> str:
    return normalised(text) or text.strip()


def _text_problems(name: str, text: str) -> list[tuple[str, str]]:
    if not text.strip():
        return [(name, "is empty")]
    return [(name, f"has {len(text):,} characters; at most {MAX_TEXT:,} are used")] if len(text) > MAX_TEXT else []


def parse_probe(row: Any, fallback_id: str = "") -> OwnProbe:
    """One row as a probe. Keys we do not know are passed over.

    Raises:
        BadInput: it is none (says which field is wrong and why).
    """
    if not isinstance(row, dict):
        raise BadInput("is not a JSON object")
    kind = row.get("kind", "fact")
    if kind not in KINDS:
        raise BadInput(f"is of the kind {kind!r}; the kinds are {', '.join(KINDS)}")
    model: Any = {"fact": Fact, "adversarial": AdversarialPrompt, "reply": ReplyProbe}[kind]
    values = {"id": fallback_id} | {key: row[key] for key in model.model_fields if key in row}
    if kind == "reply" and "messages" not in row and isinstance(row.get("prompt"), str):
        values["messages"] = [{"role": "user", "content": row["prompt"]}]
    try:
        probe: OwnProbe = model.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()[:3])
        raise BadInput(f"cannot be used: {told}") from error
    problems = probe_problems(probe)
    if problems:
        raise BadInput("; ".join(f"{name} {what}" for name, what in problems[:3]))
    return probe


# --- reading and writing --------------------------------------------------------------------------


def read_probes(path: Path) -> ProbeFile:
    """The probes of a file. A line that cannot be used is named in `problems`, and the rest is kept.

    Raises:
        BadInput: there is no file, or it is too large or no text.
    """
    probes: list[OwnProbe] = []
    problems: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(path, MAX_BYTES).split("\n"), 1):
        if not line.strip():
            continue
        if len(probes) >= MAX_PROBES:
            problems.append((number, f"and what follows is left out: at most {MAX_PROBES:,} probes are read"))
            break
        try:
            row = _parsed(line)
            probe = parse_probe(row, f"{_stem(row)}-{number}")
        except BadInput as error:
            problems.append((number, error.message))
            continue
        if probe.id in seen:
            problems.append((number, f"has the id {probe.id!r} of line {seen[probe.id]}; give it its own"))
            continue
        seen[probe.id] = number
        probes.append(probe)
    return ProbeFile(tuple(probes), tuple(problems))


def _stem(row: Any) -> str:
    return STEMS.get(str(row.get("kind", "fact")), "probe") if isinstance(row, dict) else "probe"


def _parsed(line: str) -> Any:
    try:
        return parse_json(line, "it")
    except BadInput as error:
        raise BadInput("is not valid JSON") from error


def probes_of(folder: Path) -> ProbeFile:
    """The probes in a persona's folder; none where there is no file.

    Raises:
        BadInput: the file is too large or no text.
    """
    path = folder / PROBES
    return read_probes(path) if path.is_file() and path.stat().st_size else ProbeFile()


def write_probes(folder: Path, file: ProbeFile) -> None:
    """Replace the folder's probes, whole or not at all; `undo_probes` puts the ones before back.

    Raises:
        BadSetting: with every problem, as `id.field`. BadInput: the file holds a line that would be lost. DiskFull.
    """
    check_probes_file(file)
    path = folder / PROBES
    broken = probes_of(folder).problems
    if broken:
        number, what = broken[0]
        raise BadInput(
            f"{path}, line {number} {what}. Nothing was changed, because that line would be lost.",
            "Repair or remove it in a text editor.",
        )
    write_atomic(folder / BACKUP, path.read_bytes() if path.is_file() else b"")
    write_atomic(path, as_lines(file.probes))


def check_probes_file(file: ProbeFile) -> None:
    """Refuse probes that cannot be used.

    Raises:
        BadSetting: with every problem, as `id.field`.
    """
    problems = [(f"{p.id}.{name}", what) for p in file.probes for name, what in probe_problems(p)]
    ids = [probe.id for probe in file.probes]
    problems += [(f"{name}.id", "is used twice") for name in sorted({i for i in ids if ids.count(i) > 1})]
    if len(ids) > MAX_PROBES:
        problems.append(("probes", f"are {len(ids):,}; at most {MAX_PROBES:,} are kept"))
    if problems:
        raise BadSetting("These probes cannot be used as they are.", "Correct the fields named.", problems)


def as_lines(probes: Iterable[OwnProbe]) -> str:
    """Probes as the file holds them."""
    rows = ({"id": p.id, "kind": kind_of(p), **p.model_dump(mode="json")} for p in probes)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def can_undo(folder: Path) -> bool:
    """Whether there is an earlier version."""
    return (folder / BACKUP).is_file()


def undo_probes(folder: Path) -> ProbeFile:
    """Put the version before the last change back; doing it twice brings the change back.

    Raises:
        BadInput: there is none.
    """
    path, backup = folder / PROBES, folder / BACKUP
    if not backup.is_file():
        raise BadInput("There is no earlier version of these probes.", "Nothing was changed since they came here.")
    now, before = path.read_bytes() if path.is_file() else b"", backup.read_bytes()
    write_atomic(path, before)
    write_atomic(backup, now)
    return probes_of(folder)


def edit_probes(folder: Path, change: Callable[[ProbeFile], ProbeFile]) -> ProbeFile:
    """Read, change and write the folder's probes; gives the new ones.

    Raises:
        As `write_probes` and `change`.
    """
    changed = change(probes_of(folder))
    write_probes(folder, changed)
    return changed
