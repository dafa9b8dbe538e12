"""What the card editor shows and what its forms mean, without a page; and the commands for characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from persona_lab.cli import app
from persona_lab.personas.editing import entries_of, with_entry
from persona_lab.personas.lorebook_entries import book_of
from persona_lab.types import Persona
from persona_lab.ui.card_view import FIELDS, IN_CHAT, entries_table, entry_fields, entry_values, preview

Make = Callable[..., Persona]


def words(text: str) -> int:
    return len(text.split())


def test_the_preview_shows_prompt_tokens_and_what_wakes(persona_factory: Make) -> None:
    entries = [{"keys": ["tug"], "content": "Tin <Prayer>.", "comment": "The <tug>"}]
    persona = persona_factory(character_book={"entries": entries}, scenario="At {{time}}.")
    quiet = preview(persona, "", words, "me", unsaved=True)
    assert "not saved yet" in quiet
    assert "{{time}}" in quiet
    assert "Tin" not in quiet
    woken = preview(persona, "Your tug?", words, "me", unsaved=False)
    assert "Tin &lt;Prayer&gt;." in woken
    assert "The &lt;tug&gt;: 2 tokens" in woken
    assert "<Prayer>" not in woken
    assert 'data-tokens="' in woken
    assert "None is woken" in preview(persona, "Hello.", words, "me", unsaved=False)


@pytest.mark.parametrize(
    "row",
    [
        {"keys": ["a", "b, c"], "content": "x", "insertion_order": 7, "enabled": False, "constant": True, "odd": 1},
        {
            "keys": ["a"], "secondary_keys": ["s"], "selective": True, "content": " x ", "use_regex": True,
            "priority": 2, "case_sensitive": False,
            "extensions": {"selectiveLogic": 3, "match_whole_words": True, "vendor": 1},
            "position": "before_char", "comment": "t",
        },
        {"keys": ["a"], "content": "x", "extensions": {"position": 4, "depth": 2, "role": 1}, "position": "after_char"},
        {"keys": ["a"], "content": "x", "extensions": {"position": 2}, "position": "before_char"},
        {"keys": ["a"], "content": "x", "extensions": {"position": 0}, "position": "before_char"},
        {"keys": ["a"], "secondary_keys": ["kept"], "selective": False, "content": "@@activate\nx"},
    ],
)  # fmt: skip
def test_an_entry_goes_through_the_form_unharmed(persona_factory: Make, row: dict[str, Any]) -> None:
    persona = persona_factory(character_book={"entries": [row]})
    (after,) = entries_of(with_entry(persona, 0, entry_fields(entry_values(row), row)))
    for key, value in row.items():
        assert after[key] == value, key
    (again,) = entries_of(with_entry(persona, 0, entry_fields(entry_values(after), after)))
    assert again == after


def test_where_an_entry_stands_can_be_changed(persona_factory: Make) -> None:
    row: dict[str, Any] = {"keys": ["a"], "content": "x", "extensions": {"vendor": 1}, "position": "before_char"}
    persona = persona_factory(character_book={"entries": [row]})

    def saved(persona: Persona, *where: Any) -> tuple[Persona, dict[str, Any]]:
        (before,) = entries_of(persona)
        made = with_entry(persona, 0, entry_fields([*entry_values(before)[:-3], *where], before))
        return made, entries_of(made)[0]

    persona, entry = saved(persona, IN_CHAT, 3, "assistant")
    assert entry["extensions"] == {"vendor": 1, "position": 4, "depth": 3, "role": 2}
    (read,) = book_of(persona.data).entries
    assert (read.depth, read.role) == (3, "assistant")
    assert "3 messages back, as the character" in entries_table(persona, None)
    assert "3 messages back" in preview(persona, "a", lambda text: 1, "me", unsaved=False)
    persona, entry = saved(persona, "after_char", 3, "assistant")
    assert (entry["position"], entry["extensions"]["position"]) == ("after_char", 1)
    assert book_of(persona.data).entries[0].depth is None


def test_the_table_escapes_and_marks(persona_factory: Make) -> None:
    rows = [
        {"keys": ["<k>"], "content": "<c>", "constant": True},
        {"keys": ["a"], "content": "@@odd\nx", "enabled": False},
    ]
    drawn = entries_table(persona_factory(character_book={"entries": rows}), 1)
    assert "<k>" not in drawn
    assert "always there" in drawn
    assert "switched off" in drawn
    assert "@@odd is ignored" in drawn
    assert drawn.count("aria-current") == 1


def test_every_prompted_field_has_a_box() -> None:
    from persona_lab.personas.editing import TEXTS

    assert {name for name, *_ in FIELDS} == set(TEXTS)


def test_the_command_line_shares_and_imports(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path / "home"), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    out = tmp_path / "nan.zip"
    run("personas", "export", "nan_tolliver", "--format", "bundle", "--licence", "CC0", "--out", str(out))
    found = run("personas", "import", str(out), "--id", "nan")
    assert (found["id"], found["notes"]) == ("nan", ["Licence: CC0"])
    (tmp_path / "w.json").write_text('{"entries": {"0": {"key": ["leek"], "content": "Leeks are holy."}}}')
    run("personas", "import", str(tmp_path / "w.json"), "--into", "nan")
    shown = run("personas", "show", "nan", "--said", "A leek!")
    assert "Leeks are holy." in shown["system_prompt"]
    assert "leek" in shown["lorebook"]["used"]
    assert "Leeks are holy." not in run("personas", "show", "nan")["system_prompt"]
    assert run("personas", "undo", "nan")["name"] == "Nan Tolliver"
    assert "leek" not in run("personas", "show", "nan", "--said", "A leek!")["lorebook"]["used"]
    assert len(run("personas", "dialogues", "nan", "--out", str(tmp_path / "d.jsonl"))) > 0
    assert json.loads((tmp_path / "d.jsonl").read_text().splitlines()[0])["messages"]
