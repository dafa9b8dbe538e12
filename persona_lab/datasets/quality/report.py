"""The report on a dataset before a training, and fixes: what each check found, and the rows without it.

A fix gives rows for a new version and never changes one that is there. Rows keep their split; a row that becomes a
copy of one that is held out goes to the test split, so that what is held out stays so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from persona_lab.datasets.held_out import HeldOut
from persona_lab.datasets.progress import tick
from persona_lab.datasets.quality.checks import Check, Context, Hit, replies
from persona_lab.datasets.quality.content import (
    AssistantPhrases,
    EmptyReplies,
    OneWordReplies,
    OtherLanguages,
    WrongRole,
    common_words,
)
from persona_lab.datasets.quality.repairs import EncodingDamage, OverLong, PersonalData, Placeholders
from persona_lab.datasets.quality.repeats import ExactDuplicates, Imbalance, NearDuplicates
from persona_lab.errors import BadInput, UnknownName
from persona_lab.types import Conversation, Dataset, Frozen, Persona, Split

# in the order in which fixes are applied: letters before words, words before rows, rows before what repeats
CHECKS: tuple[Check, ...] = (
    EncodingDamage(),
    Placeholders(),
    WrongRole(),
    PersonalData(),
    EmptyReplies(),
    AssistantPhrases(),
    OneWordReplies(),
    OtherLanguages(),
    OverLong(),
    ExactDuplicates(),
    NearDuplicates(),
    Imbalance(),
)
MOST_TOKENS = 1024
"""What strategies read of a row unless told otherwise."""
WORDS_A_TOKEN = 0.7
"""English words a token, and some way to the safe side; the preview counts exactly."""
EXAMPLES = 5


class FindingRow(Frozen):
    """A row with some trouble: its number from 0, its id and split, and what was found."""

    row: int
    id: str
    split: Split | None
    text: str


class Finding(Frozen):
    """What one check found. `fix` says what mending does; empty where nothing can be done by itself."""

    kind: str
    title: str
    why: str
    fix: str
    count: int
    examples: tuple[FindingRow, ...]


class QualityReport(Frozen):
    """All findings, those with most rows first; kinds without any; and how long rows are, for plots.

    `reply_words`: words of each reply, sorted; `turns`: number of conversations by number of turns; `made`: rows by how
    they were made.
    """

    dataset: str
    conversations: int
    findings: tuple[Finding, ...]
    clean: tuple[str, ...]
    reply_words: tuple[int, ...]
    turns: dict[int, int]
    made: dict[str, int]


def quality_report(dataset: Dataset, persona: Persona, max_tokens: int = MOST_TOKENS) -> QualityReport:
    """Look for every kind of trouble. Takes about a minute for 100,000 rows; ticks and can be cancelled."""
    context = _context(dataset, persona, max_tokens)
    found: list[tuple[Check, list[Hit]]] = []
    for number, check in enumerate(CHECKS):
        tick(f"looking for {check.title.lower()}", number / len(CHECKS))
        found.append((check, check.hits(dataset, context)))
    listed = [_finding(check, hits, dataset) for check, hits in found if hits]
    words = sorted(len(reply.split()) for c in dataset.conversations for reply in replies(c))
    turns = Counter(sum(m.role != "system" for m in c.messages) for c in dataset.conversations)
    made = Counter(c.made for c in dataset.conversations if c.made)
    return QualityReport(
        dataset=dataset.id,
        conversations=len(dataset.conversations),
        findings=tuple(sorted(listed, key=lambda finding: -finding.count)),
        clean=tuple(check.title for check, hits in found if not hits),
        reply_words=tuple(words),
        turns=dict(sorted(turns.items())),
        made=dict(made),
    )


def _context(dataset: Dataset, persona: Persona, max_tokens: int) -> Context:
    return Context(persona, max(int(max_tokens * WORDS_A_TOKEN), 16), common_words(dataset))


def _finding(check: Check, hits: Sequence[Hit], dataset: Dataset) -> Finding:
    rows = dataset.conversations
    shown = [FindingRow(row=h.row, id=rows[h.row].id, split=rows[h.row].split, text=h.what) for h in hits[:EXAMPLES]]
    return Finding(
        kind=check.kind, title=check.title, why=check.why, fix=check.fix, count=len(hits), examples=tuple(shown)
    )


def fixed(
    dataset: Dataset, persona: Persona, kinds: Iterable[str], ledger: HeldOut, max_tokens: int = MOST_TOKENS
) -> tuple[tuple[Conversation, ...], tuple[str, ...]]:
    """The rows with some kinds of trouble mended, and what was done, for people.

    Args:
        ledger: what the persona holds out; rows that become like those are test.

    Raises:
        UnknownName: of a kind. BadInput: nothing was found to mend, or nothing would be left to train on.
    """
    known = {check.kind: check for check in CHECKS}
    wanted = list(dict.fromkeys(kinds))
    for kind in wanted:
        if kind not in known:
            raise UnknownName("kind of trouble", kind, list(known))
    if not wanted:
        raise BadInput("No kind of trouble to mend was named.", f"Known: {', '.join(known)}.")
    notes: list[str] = []
    now = dataset
    for number, check in enumerate(check for check in CHECKS if check.kind in wanted):
        tick(f"mending {check.title.lower()}", number / len(wanted))
        rows = check.mended(now, _context(now, persona, max_tokens))
        if rows != now.conversations:
            notes.append(f"{check.title}: {_difference(now.conversations, rows)}.")
            now = now.model_copy(update={"conversations": rows})
    if not notes:
        told = ", ".join(known[kind].title.lower() for kind in wanted)
        raise BadInput(
            f"{dataset.name!r} has nothing of this to mend: {told}.", "See `datasets check` for what it has."
        )
    rows, moved = _held_again(now, ledger)
    if moved:
        notes.append(f"{moved} rows that came to repeat held-out ones went to the test split.")
    if not any(row.split == "train" for row in rows):
        raise BadInput("Nothing would be left to train on.", "Mend fewer kinds at once, or add conversations.")
    return rows, tuple(notes)


def _difference(before: Sequence[Conversation], after: Sequence[Conversation]) -> str:
    old = {id(row) for row in before}
    changed = sum(id(row) not in old for row in after)
    gone = len(before) - (len(after) - changed) - changed
    parts = [f"{changed} rows changed"] if changed else []
    parts += [f"{gone} taken out"] if gone > 0 else [f"{-gone} more by cutting"] if gone < 0 else []
    return ", ".join(parts) or "order changed"


def _held_again(dataset: Dataset, ledger: HeldOut) -> tuple[tuple[Conversation, ...], int]:
    """Rows for training that repeat what is held out become test."""
    held = ledger.with_test_of(dataset)
    rows, moved = [], 0
    for row in dataset.conversations:
        leaks = row.split != "test" and held.find_line(row) is not None
        moved += leaks
        rows.append(row.model_copy(update={"split": "test"}) if leaks else row)
    return tuple(rows), moved
