"""What the card editor shows: the prompt as it will be, tokens, lorebook tables. Plain functions, no gradio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from persona_lab.personas.dialogues import example_dialogues
from persona_lab.personas.editing import entries_of
from persona_lab.personas.lorebook import Lore
from persona_lab.personas.lorebook_entries import AT_DEPTH, DEFAULT_DEPTH, ROLES, Entry, depth_of, entry_of, role_of
from persona_lab.personas.macros import unknown_macros
from persona_lab.personas.prompt import greetings, lore_of, substitute, system_prompt
from persona_lab.types import Message, Persona
from persona_lab.ui.html import chip, esc, plural, table
from persona_lab.ui.notices import problem_box

Count = Callable[[str], int]

# (card field, label, help, lines, group)
FIELDS: tuple[tuple[str, str, str, int, str], ...] = (
    ("name", "Name", "The model is told: You are …", 1, "who"),
    ("nickname", "Nickname", "Takes the place of {{char}} where it is not empty.", 1, "who"),
    ("description", "Description", "Who the character is: looks, past, work, people. The model reads this.", 5, "who"),
    ("personality", "Personality", "How the character thinks and talks.", 3, "who"),
    ("scenario", "Scenario", "Where the conversation takes place.", 2, "who"),
    ("first_mes", "First message", "What the character says when a chat begins.", 3, "says"),
    (
        "mes_example", "Example dialogues",
        "<START> begins one; lines begin with {{user}}: or {{char}}:. Not in the prompt: they can become data.",
        6, "says",
    ),
    (
        "system_prompt", "System prompt",
        "In place of the opening line “You are … Stay in character.”, which {{original}} brings back.", 2, "prompt",
    ),
    ("post_history_instructions", "Last instructions", "They end the prompt.", 2, "prompt"),
    ("creator_notes", "Creator's notes", "For people; the model never sees them.", 2, "about"),
    ("creator", "Creator", "Who made the card.", 1, "about"),
    ("character_version", "Version of the character", "As its maker counts.", 1, "about"),
)  # fmt: skip
_COUNTED = ("system_prompt", "description", "personality", "scenario", "post_history_instructions")
_LABELS = {name: label for name, label, *_ in FIELDS}


def preview(persona: Persona, said: str, count: Count, counted_by: str, unsaved: bool) -> str:
    """The prompt of a draft as the model will see it, with tokens; `said` wakes the lorebook."""
    lore = lore_of(persona, [Message(role="user", content=said)], count=count) if said.strip() else None
    prompt = system_prompt(persona, lore=lore)
    begins = greetings(persona)
    dialogues = example_dialogues(persona)
    turns = sum(message.role == "assistant" for dialogue in dialogues for message in dialogue.messages)
    tiles = [
        (f"{count(prompt):,}", "tokens in the system prompt"),
        (f"{count(begins[0]):,}" if begins else "0", "tokens in the first message"),
        (str(len(begins)), "ways to begin a chat"),
        (str(turns), f"example replies in {plural(len(dialogues), 'dialogue')}"),
    ]
    state = chip("not saved yet", "warn") if unsaved else chip("saved", "good")
    head = f'<p class="pl-soft">{state} Tokens counted by {esc(counted_by)}.</p>'
    drawn = "".join(f'<div class="pl-tile"><b>{value}</b><span>{esc(text)}</span></div>' for value, text in tiles)
    return "".join(
        (
            f'<div class="pl-preview" data-tokens="{count(prompt)}">{head}<div class="pl-tiles">{drawn}</div>',
            _unknown(persona),
            f'<h4>System prompt</h4><pre class="pl-mask">{esc(prompt)}</pre>',
            _woken(persona, lore, count),
            _by_field(persona, count),
            "</div>",
        )
    )


def _unknown(persona: Persona) -> str:
    found = unknown_macros(persona)
    if not found:
        return ""
    return problem_box(
        "Macros that are not known", f"{', '.join(found)} stay as they are in the prompt.",
        "Write the text out, or take them out.", "warn",
    )  # fmt: skip


def _woken(persona: Persona, lore: Lore | None, count: Count) -> str:
    entries = entries_of(persona)
    if not entries:
        return ""
    if lore is None:
        told = f"Entries in the lorebook: {len(entries)}. Write what is said to see which of them wake."
        return f'<p class="pl-soft">{told}</p>'
    named = "".join(chip(f"{entry.title}: {count(entry.content)} tokens{_where(entry)}", "good") for entry in lore.used)
    over = "".join(chip(f"{entry.title}: over the budget", "warn") for entry in lore.left_out)
    problems = "".join(f"<li>{esc(problem)}</li>" for problem in lore.problems)
    return (
        f'<h4>Lorebook entries in it</h4><p class="pl-woken">{named + over or "None is woken by that."}</p>'
        + (f'<ul class="pl-verdicts">{problems}</ul>' if problems else "")
    )  # fmt: skip


def _by_field(persona: Persona, count: Count) -> str:
    rows = [
        (esc(_LABELS[name]), f"{count(text):,}")
        for name in _COUNTED
        if (text := substitute(persona.field(name), persona).strip())
    ]
    return table(("Field", "Tokens"), rows, "Where the prompt's tokens go.") if rows else ""


# --- the lorebook ---------------------------------------------------------------------------------

IN_CHAT = "in_chat"
"""The form's value for an entry that stands in the conversation."""
_IN_SYSTEM = ("before_char", "after_char")
"""By their number in `extensions.position`."""
LOGIC = (
    ("any of them too", 0),
    ("all of them too", 3),
    ("none of them", 2),
    ("not all of them", 1),
)


def _where(entry: Entry) -> str:
    """Where an entry stands that is not in the system prompt, for people."""
    if entry.depth is None or entry.constant:
        return ""
    whose = {"system": "", "user": ", as the user", "assistant": ", as the character"}[entry.role]
    back = "at the end of the conversation" if entry.depth == 0 else f"{plural(entry.depth, 'message')} back"
    return f", {back}{whose}"


def entries_table(persona: Persona, chosen: int | None) -> str:
    """The lorebook; each entry's title is a button that carries its number."""
    rows = [_entry_row(row, entry_of(row, number), number == chosen) for number, row in enumerate(entries_of(persona))]
    return table(("Entry", "Keys", "What it says", "Order"), rows, "Choose an entry to change it.")


def _entry_row(row: Mapping[str, Any], entry: Entry, chosen: bool) -> tuple[str, ...]:
    current = ' aria-current="true"' if chosen else ""
    button = f'<button type="button" class="pl-rowbutton" data-id="{entry.number}"{current}>{esc(entry.title)}</button>'
    marks = [chip("always there", "busy")] if entry.constant else []
    marks += [] if entry.enabled else [chip("switched off")]
    marks += [chip("regular expressions")] if entry.regex else []
    marks += [chip(_where(entry).removeprefix(", "))] if _where(entry) else []
    marks += [chip(f"@@{name} is ignored", "warn") for name in entry.ignored]
    return (
        f"{button}<br>{''.join(marks)}" if marks else button,
        esc(", ".join(entry.keys)),
        f'<div class="pl-clamp">{esc(entry.content)}</div>',
        f"{entry.order:g}",
    )


def entry_values(row: Mapping[str, Any] | None) -> list[Any]:
    """An entry as the form's values: title, keys, content, secondary, logic, ticks, order, priority, position, depth,
    role."""
    if row is None:
        return ["", "", "", "", 0, ["enabled"], 100, 0, "after_char", DEFAULT_DEPTH, "system"]
    known = row.get("extensions") if isinstance(row.get("extensions"), dict) else {}
    depth = depth_of(known or {})
    entry = entry_of(row, 0)
    logic = (row.get("extensions") or {}).get("selectiveLogic") if isinstance(row.get("extensions"), dict) else 0
    ticks = [
        name
        for name, on in (
            ("enabled", entry.enabled),
            ("constant", row.get("constant") is True),
            ("case_sensitive", entry.case_sensitive),
            ("whole_words", entry.whole_words),
            ("use_regex", entry.regex),
        )
        if on
    ]
    title = row.get("comment") if isinstance(row.get("comment"), str) else row.get("name")
    content = row.get("content") if isinstance(row.get("content"), str) else ""
    secondary = _strings(row.get("secondary_keys")) if row.get("selective") is True else []
    return [
        title if isinstance(title, str) else "", "\n".join(_strings(row.get("keys"))), content, "\n".join(secondary),
        logic if logic in (0, 1, 2, 3) else 0, ticks, entry.order, entry.priority,
        _IN_SYSTEM[not entry.before] if depth is None else IN_CHAT,
        DEFAULT_DEPTH if depth is None else depth, role_of(known or {}),
    ]  # fmt: skip


def entry_fields(values: Sequence[Any], row: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a form's values say, as fields of an entry; what the form shows no other way stays as `row` has it."""
    title, keys, content, secondary, logic, ticks, order, priority, position, depth, role = values
    before = row or {}
    second = _lines(secondary)
    fields: dict[str, Any] = {
        "keys": _lines(keys),
        "content": content or "",
        "comment": (title or "").strip(),
        "enabled": "enabled" in ticks,
        "constant": "constant" in ticks,
        "insertion_order": _plain(order),
        "position": before.get("position", "after_char") if position == IN_CHAT else position,
        "selective": bool(second),
    }
    if second or not before.get("secondary_keys"):
        fields["secondary_keys"] = second
    for name, value in (("case_sensitive", "case_sensitive" in ticks), ("use_regex", "use_regex" in ticks)):
        if value or name in before:
            fields[name] = value
    if priority or "priority" in before:
        fields["priority"] = _plain(priority)
    known = before.get("extensions") if isinstance(before.get("extensions"), dict) else {}
    more: dict[str, Any] = {}
    if "whole_words" in ticks or "match_whole_words" in (known or {}):
        more["match_whole_words"] = "whole_words" in ticks
    if logic or "selectiveLogic" in (known or {}):
        more["selectiveLogic"] = int(logic or 0)
    if position == IN_CHAT:
        number = ROLES.index(role) if role in ROLES else 0
        more |= {"position": AT_DEPTH, "depth": int(depth or 0)}
        more |= {"role": number} if number or "role" in (known or {}) else {}
    elif (known or {}).get("position") in (*range(len(_IN_SYSTEM)), AT_DEPTH):
        more["position"] = _IN_SYSTEM.index(position)
    return fields | ({"extensions": more} if more else {})


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").split("\n") if line.strip()]


def _plain(number: float | None) -> int | float:
    value = number or 0
    return int(value) if float(value).is_integer() else value


def _strings(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
