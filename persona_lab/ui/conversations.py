"""Datasets as the page shows them: counts, pages of conversations, and tokens coloured by their loss mask."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.types import Conversation, DatasetSummary, PreviewToken
from persona_lab.ui.html import chip, esc, plural, table, when

ROWS_A_PAGE = 8
MOST_WARNINGS = 8
LEGEND = (
    '<p class="pl-legend"><span class="pl-tok pl-on">trained on</span>'
    '<span class="pl-tok pl-off">only read</span>'
    '<span class="pl-soft">'
    "The model learns to say the coloured words; it only reads the rest. ⏎ marks a line break.</span></p>"
)


def summary(dataset: DatasetSummary) -> str:
    """What is in a dataset and where it came from."""
    counts = dataset.counts
    tiles = "".join(
        f'<div class="pl-tile"><b>{counts.get(key, 0):,}</b><span>{esc(label)}</span></div>'
        for key, label in (
            ("train", "to learn from"),
            ("validation", "to watch training"),
            ("test", "held out for tests"),
            ("others", "lines of others"),
        )
    )
    left_out = [
        plural(counts[key], noun)
        for key, noun in (("duplicates", "duplicate"), ("skipped", "unusable row"))
        if counts.get(key)
    ]
    note = f" Left out: {', '.join(left_out)}." if left_out else ""
    source = f"From {dataset.source}, {when(dataset.created)}. {dataset.why}{note}"
    return f'<div class="pl-tiles">{tiles}</div><p class="pl-soft">{esc(source)}</p>{warnings(dataset.warnings)}'


def warnings(lines: Sequence[str]) -> str:
    """What a reader warned of, the first few."""
    if not lines:
        return ""
    items = "".join(f"<li>{esc(line)}</li>" for line in lines[:MOST_WARNINGS])
    more = f"<li>and {len(lines) - MOST_WARNINGS} more</li>" if len(lines) > MOST_WARNINGS else ""
    return f'<div class="pl-box pl-warn"><strong>Worth a look</strong><ul>{items}{more}</ul></div>'


def page_count(conversations: int) -> int:
    """How many pages of the table; at least one."""
    return max(1, -(-conversations // ROWS_A_PAGE))


def rows(conversations: Sequence[Conversation], page: int, chosen: int) -> str:
    """One page (from 0) of conversations, each to be clicked; `chosen` is the row shown below."""
    first = page * ROWS_A_PAGE
    body = [
        _row(number, conversation, number == chosen)
        for number, conversation in enumerate(conversations[first : first + ROWS_A_PAGE], start=first)
    ]
    return table(["Row", "Part", "Turns", "They say", "The character answers"], body, "Conversations")


def _row(number: int, conversation: Conversation, chosen: bool) -> list[str]:
    said = next((m.content for m in conversation.messages if m.role == "user"), "")
    answer = next((m.content for m in conversation.messages if m.role == "assistant"), "")
    mark = ' aria-current="true"' if chosen else ""
    tone = {"train": "busy", "validation": "warn", "test": "good"}.get(conversation.split or "", "")
    turns = sum(message.role != "system" for message in conversation.messages)
    return [
        f'<button type="button" class="pl-rowbutton" data-id="{number}"{mark}>{number}</button>',
        chip(conversation.split or "–", tone) + (chip(conversation.made) if conversation.made else ""),
        str(turns),
        f'<span class="pl-clamp">{esc(said)}</span>',
        f'<span class="pl-clamp">{esc(answer)}</span>',
    ]


def masked(tokens: Sequence[PreviewToken], total: int = 0, max_tokens: int = 0) -> str:
    """Tokens as the model sees them; where the whole row has more (`total`), how many a training cuts off."""
    spans = []
    for token in tokens:
        text = esc(token.text).replace("\n", "⏎\n")
        kind = "pl-on" if token.trained else "pl-off"
        spans.append(f'<span class="pl-tok {kind}">{text}</span>')
    trained = sum(token.trained for token in tokens)
    count = f'<p class="pl-soft">{len(tokens):,} tokens, {trained:,} of them trained on.</p>'
    cut = ""
    if total > len(tokens):
        lost = f"{total - len(tokens):,} of {total:,} tokens are cut off"
        told = f"A training that reads {max_tokens:,} tokens of a row takes the oldest turns out first, and shows this:"
        cut = f'<div class="pl-box pl-warn" data-cut="{total - len(tokens)}"><strong>{lost}</strong><p>{told}</p></div>'
    return f'{cut}{LEGEND}<div class="pl-mask" data-trained="{trained}">{"".join(spans)}</div>{count}'


def plain(conversation: Conversation) -> str:
    """A conversation as bubbles, for when the model (and so its tokens) is not there yet."""
    turns = "".join(
        f'<p class="pl-turn pl-turn-{esc(m.role)}"><b>{esc(m.role)}</b> {esc(m.content)}</p>'
        for m in conversation.messages
    )
    return f'<div class="pl-mask">{turns}</div>'
