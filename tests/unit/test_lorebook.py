"""A lorebook wakes the entries that are spoken of, within its budget, in bounded time, and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from persona_lab.personas.lorebook import Book, Lore, book_of, lore_for
from persona_lab.personas.lorebook_entries import entry_of
from persona_lab.personas.prompt import lore_of, system_prompt, with_lore
from persona_lab.types import Message, Persona

Make = Callable[..., Persona]


def book(*entries: dict[str, Any], **limits: Any) -> Book:
    rows = [{"content": f"text {n}", "keys": [], **entry} for n, entry in enumerate(entries)]
    return book_of({"character_book": {"entries": rows, **limits}})


def woken(found: Lore) -> list[int]:
    return [entry.number for entry in found.used]


@pytest.mark.parametrize(
    ("entry", "said", "wakes"),
    [
        ({"keys": ["Dragon"]}, "two dragons", True),
        ({"keys": ["Dragon"], "case_sensitive": True}, "a dragon", False),
        ({"keys": ["cat"], "extensions": {"match_whole_words": True}}, "education", False),
        ({"keys": ["cat"], "extensions": {"match_whole_words": True}}, "cat-like", True),
        ({"keys": ["龍"]}, "那條龍", True),
        ({"keys": []}, "anything", False),
        ({"keys": ["a"], "enabled": False}, "a", False),
        ({"keys": ["{{char}}"]}, "Tam is here", True),
        ({"keys": ["king"], "selective": True, "secondary_keys": ["crown", "gold"]}, "the king", False),
        ({"keys": ["king"], "selective": True, "secondary_keys": ["crown", "gold"]}, "king and crown", True),
        ({"keys": ["king"], "selective": False, "secondary_keys": ["crown"]}, "the king", True),
        (
            {"keys": ["k"], "selective": True, "secondary_keys": ["a", "b"], "extensions": {"selectiveLogic": 3}},
            "k a",
            False,
        ),
        ({"keys": ["k"], "selective": True, "secondary_keys": ["a"], "extensions": {"selectiveLogic": 2}}, "k", True),
        (
            {"keys": ["k"], "selective": True, "secondary_keys": ["a"], "extensions": {"selectiveLogic": 1}},
            "k a",
            False,
        ),
        ({"keys": ["/dra(gon|ke)/i"]}, "DRAKE", True),
        ({"keys": ["dra(gon|ke)s?$"], "use_regex": True}, "drakes", True),
        ({"keys": ["("], "use_regex": True}, "(", False),
        ({"keys": ["k"], "content": "@@exclude_keys z\nx"}, "k z", False),
        ({"keys": ["k"], "content": "@@additional_keys z\nx"}, "k", False),
        ({"keys": ["k"], "content": "@@dont_activate\nx"}, "k", False),
        ({"keys": ["k"], "content": "@@unheard_of 3\n@@@scan_depth 0\nx"}, "k", False),
        ({"keys": ["k"], "content": "  \n"}, "k", False),
        ({"keys": ["k"], "extensions": {"probability": 0}}, "k", False),
        ({"keys": 7, "content": None, "insertion_order": "x", "extensions": []}, "7", False),
    ],
)
def test_keys(entry: dict[str, Any], said: str, wakes: bool) -> None:
    found = lore_for(book(entry), [said], lambda text: text.replace("{{char}}", "Tam"))
    assert bool(found.used) is wakes


def test_scan_depth_order_position_and_decorators() -> None:
    lore = book(
        {"keys": ["a"], "insertion_order": 5, "content": "five"},
        {"keys": ["a"], "insertion_order": 1, "position": "before_char", "content": "@@instruct_depth 4\none"},
        {"constant": True, "insertion_order": 3, "content": "three"},
        scan_depth=2,
    )
    found = lore_for(lore, ["x", "a", "y"])
    assert (found.before, found.after) == (("one",), ("three", "five"))
    assert found.used[0].ignored == ("instruct_depth",)
    assert lore_for(lore, ["a", "x", "y"]).texts == ("three",), "two messages are looked at"
    assert lore_for(book({"keys": ["a"], "extensions": {"scan_depth": 3}}, scan_depth=1), ["a", "x", "y"]).used
    after = book({"keys": ["a"], "content": "@@activate_only_after 2\nx"})
    assert not lore_for(after, ["a"] * 3, replies=1).used
    assert lore_for(after, ["a"] * 5, replies=2).used


def test_budget_keeps_constants_then_priority() -> None:
    entries = [
        {"keys": ["a"], "content": "one two three", "insertion_order": 1},
        {"keys": ["a"], "content": "four five six", "insertion_order": 2, "priority": 10},
        {"keys": ["a"], "content": "seven", "insertion_order": 3},
    ]
    found = lore_for(book(*entries, token_budget=4), ["a"], count=lambda text: len(text.split()))
    assert woken(found) == [1, 2]
    assert [entry.number for entry in found.left_out] == [0]
    constant = {"constant": True, "content": "x" * 12}  # four tokens by the rough rule
    assert woken(lore_for(book(*entries, constant, token_budget=4), ["a"], count=lambda t: len(t.split()))) == [3]


def test_entries_wake_each_other_only_where_asked_and_not_for_ever() -> None:
    chain = [{"keys": [f"k{n}"], "content": f"see k{n + 1}"} for n in range(20)]
    assert woken(lore_for(book(*chain), ["k0 "])) == [0]
    assert woken(lore_for(book(*chain, recursive_scanning=True), ["k0 "])) == [0, 1, 2, 3, 4, 5]
    quiet = [
        {"keys": ["a"], "content": "b", "extensions": {"prevent_recursion": True}},
        {"keys": ["b"], "content": "c"},
    ]
    assert woken(lore_for(book(*quiet, recursive_scanning=True), ["a"])) == [0]
    deaf = [{"keys": ["a"], "content": "b"}, {"keys": ["b"], "content": "c", "extensions": {"exclude_recursion": True}}]
    assert woken(lore_for(book(*deaf, recursive_scanning=True), ["a"])) == [0]


def test_hostile_regular_expressions_are_given_up_in_time() -> None:
    patterns = [
        ["(a+)+$"],
        [r"(.*)*\d(.*)*\d(.*)*!"],
        ["((x{1000}){1000}){1000}", "(" * 15 + "x{2}" + "){2}" * 15, "(?:(?R)|a)+", "(" * 400 + ")" * 400],
        [r"(\w+\s?)*=" + str(n) for n in range(80)],
    ]
    evil = [{"keys": keys, "use_regex": True} for keys in patterns]
    begun = time.monotonic()
    found = lore_for(book(*evil, {"keys": ["aaaa"]}), ["a" * 19_000 + "b"])
    assert time.monotonic() - begun < 2
    assert woken(found) == [4], "the plain key"
    assert any("takes too long" in problem for problem in found.problems)
    assert any("repeats too often" in problem for problem in found.problems)


def test_huge_books_stay_bounded() -> None:
    rows = [{"keys": [f"key {n} {k}" for k in range(40)], "content": "x"} for n in range(6_000)]
    begun = time.monotonic()
    huge = book_of({"character_book": {"entries": rows, "recursive_scanning": True}})
    lore_for(huge, ["nothing of it " * 2_000])
    assert len(huge.entries) == 500
    assert time.monotonic() - begun < 2
    for odd in (
        None,
        [],
        {"entries": None},
        {"entries": "x"},
        {"entries": [1, None]},
        {"scan_depth": -1, "entries": {}},
    ):
        assert book_of({"character_book": odd}).entries == ()
    assert entry_of({"keys": ["a"] * 3, "content": "x" * 90_000}, 0).content == "x" * 20_000


# --- in prompts -----------------------------------------------------------------------------------

TUG = {"keys": ["tug"], "content": "{{char}}'s tug is Tin Prayer.", "position": "after_char"}
ALWAYS = {"keys": [], "constant": True, "content": "It is 2251.", "position": "before_char"}


def asked(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_training_sees_constant_entries_only(persona_factory: Make) -> None:
    plain = persona_factory()
    assert system_prompt(persona_factory(character_book={"entries": [TUG]})) == system_prompt(plain)
    assert system_prompt(persona_factory(character_book={"entries": []})) == system_prompt(plain)
    both = persona_factory(character_book={"entries": [TUG, ALWAYS]}, post_history_instructions="Be brief.")
    assert system_prompt(both).split("\n")[1] == "It is 2251."
    assert "Tin Prayer" not in system_prompt(both)
    spoken = system_prompt(both, lore=lore_of(both, asked("Your tug?"))).split("\n")
    assert spoken[1] == "It is 2251."
    assert spoken[-2:] == ["Tamsin Quill's tug is Tin Prayer.", "Be brief."]


def deep(content: str, depth: int, role: int = 0, **more: Any) -> dict[str, Any]:
    """As SillyTavern writes an entry at a depth."""
    extensions = {"position": 4, "depth": depth, "role": role}
    return {"keys": ["tug"], "content": content, "position": "after_char", "extensions": extensions, **more}


def test_entries_at_a_depth_stand_in_the_conversation_not_in_the_prompt(persona_factory: Make) -> None:
    rows = [
        deep("one", 0, 2, insertion_order=2),
        deep("two", 4, 1, insertion_order=1),
        {"keys": ["tug"], "content": "@@depth 3\n@@role user\nthree", "insertion_order": 3},
        deep("four", True, 9),  # type: ignore[arg-type]
        deep("five", 2, constant=True),
        deep("six", 2, extensions={"position": True, "depth": 2}),
    ]
    persona = persona_factory(character_book={"entries": rows})
    lore = lore_of(persona, asked("Your tug?"))
    assert [(one.depth, one.role, one.content) for one in lore.inserted] == [
        (4, "user", "two"), (0, "assistant", "one"), (3, "user", "three"), (4, "system", "four"),
    ]  # fmt: skip
    system = system_prompt(persona)
    assert "five" in system, "training sees constant entries in the system prompt, and so does a chat"
    assert with_lore(system, persona, lore) == system_prompt(persona, lore=lore) == system + "\nsix"


def test_a_variant_keeps_its_prompt_and_gains_what_is_spoken_of(persona_factory: Make) -> None:
    persona = persona_factory(character_book={"entries": [TUG, ALWAYS]})
    system = system_prompt(persona)
    woke = lore_of(persona, asked("Your tug?"))
    assert with_lore(system, persona, lore_of(persona, asked("Hello."))) == system
    assert with_lore(system, persona, woke) == system_prompt(persona, lore=woke)
    older = "You are Tamsin.\nIt is 2251."
    assert with_lore(older, persona, woke) == older + "\nTamsin Quill's tug is Tin Prayer."
    assert with_lore(system, persona_factory(), lore_of(persona_factory(), asked("tug"))) == system
